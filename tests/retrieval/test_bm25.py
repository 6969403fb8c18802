import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from lsrjax.retrieval.bm25 import BM25, tokenize, weights, words_and_ngrams

TEXTS = [
    "GNU compiler for C",
    "the editor of the GNU project; the GNU editor",
    "画像 editor",
    "PDF 描画ライブラリ",
    "",
    "unrelated words",
]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("GNU용 압축", ["gnu", "용", "압축"]),
        ("PDF描画", ["pdf", "描画"]),
        ("描画ライ", ["描画", "画ラ", "ライ"]),
        ("一つ・字", ["一つ", "字"]),
        ("ＰＤＦ ﾌｫﾝﾄ", ["pdf", "フォ", "ォン", "ント"]),
        ("x86-64, naïve_X (v2.1)", ["x86", "64", "naïve", "x", "v2", "1"]),
        ("e\u0301te\u0301 Ёлка", ["été", "ёлка"]),
        ("SQL-сервер linuxсервер", ["sql", "сервер", "linux", "сервер"]),
        ("हिन्दी", ["हिन्दी"]),
        ("… --- !", []),
    ],
)
def test_terms_that_scripts_can_share(text, terms):
    assert tokenize(text) == terms


def test_ngrams_stand_beside_words_and_cross_them():
    ngrams = ["# ab", "#ab ", "#b c", "# c ", "# ab ", "#ab c", "#b c "]
    assert words_and_ngrams("Ab_, c!") == ["ab", "c", *ngrams]
    # Of Chinese characters, bigrams are the words.
    assert words_and_ngrams("描画ライ")[:4] == ["描画", "画ラ", "ライ", "# 描画"]
    assert "#न्द" in words_and_ngrams("हिन्दी")
    assert words_and_ngrams("") == words_and_ngrams("…") == []


def test_ngrams_find_words_that_differ_in_their_endings():
    texts = ["configuration of servers", "a game"]
    assert (BM25(texts).search(["konfigurationen"], 1)[0] == -1).all()
    found, _ = BM25(texts, terms=words_and_ngrams).search(["konfigurationen"], 2)
    assert found.tolist() == [[0, -1]]


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4)])
def test_weights_of_whole_counts_are_those_of_the_index(k1, b):
    index = BM25(TEXTS, k1=k1, b=b)
    found = weights(index.queries(TEXTS), k1, b)
    np.testing.assert_allclose(found.toarray(), index.documents.toarray(), rtol=1e-6)


def test_weights_of_expected_counts_by_hand():
    counts = sparse.csr_matrix([[0.5, 2.0], [0.0, 1.0]])
    # df .5 and 2 of 2 documents, of lengths 2.5 and 1, 1.75 in the mean.
    idf = math.log(1 + 2 / 1.0), math.log(1 + 0.5 / 2.5)
    norm = 1.2 * (0.25 + 0.75 * 2.5 / 1.75), 1.2 * (0.25 + 0.75 / 1.75)
    expected = [
        [idf[0] * 0.5 / (0.5 + norm[0]), idf[1] * 2 / (2 + norm[0])],
        [0, idf[1] / (1 + norm[1])],
    ]
    np.testing.assert_allclose(weights(counts, 1.2, 0.75).toarray(), expected, 1e-6)
    assert weights(sparse.csr_matrix((2, 3)), 1.2, 0.75).nnz == 0


def scores_by_formula(query, texts, k1, b):
    docs = [Counter(tokenize(text)) for text in texts]
    mean_length = sum(doc.total() for doc in docs) / len(docs)
    scores = []
    for doc in docs:
        score = 0.0
        for term in tokenize(query):
            df = sum(term in other for other in docs)
            idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
            length = 1 - b + b * doc.total() / mean_length
            score += idf * doc[term] / (doc[term] + k1 * length)
        scores.append(score)
    return np.array(scores)


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4)])
@pytest.mark.parametrize(
    "query", ["gnu editor", "the the editor", "描画 GNU용 프로그램", "画像"]
)
def test_scores_match_the_formula(query, k1, b):
    expected = scores_by_formula(query, TEXTS, k1, b)
    indices, scores = BM25(TEXTS, k1=k1, b=b).search([query], 10)
    hits = np.count_nonzero(expected)
    assert hits > 0
    assert set(indices[0, :hits].tolist()) == set(np.flatnonzero(expected).tolist())
    np.testing.assert_allclose(scores[0, :hits], expected[indices[0, :hits]], rtol=1e-5)
    assert (np.diff(scores[0, :hits]) <= 0).all()
    np.testing.assert_array_equal(indices[0, hits:], -1)
    np.testing.assert_array_equal(scores[0, hits:], 0)


def test_defaults_are_those_of_lucene():
    _, scores = BM25(TEXTS).search(["gnu editor"], 3)
    _, expected = BM25(TEXTS, k1=1.2, b=0.75).search(["gnu editor"], 3)
    np.testing.assert_array_equal(scores, expected)


def test_queries_without_known_terms_find_nothing():
    indices, _ = BM25(TEXTS).search(["", "zzz", "gnu"], 2)
    np.testing.assert_array_equal(indices[:2], -1)
    assert (indices[2] >= 0).all()


def test_equal_scores_come_in_the_order_of_the_corpus():
    indices, _ = BM25(["b", "a x", "a x", "a x"]).search(["a"], 2)
    np.testing.assert_array_equal(indices, [[1, 2]])


def test_a_corpus_without_terms_is_an_error():
    with pytest.raises(ValueError, match="none of the 2 texts"):
        BM25(["...", ""])


def test_nothing_is_printed(capfd):
    BM25(TEXTS).search(["gnu"], 2)
    assert capfd.readouterr() == ("", "")


def test_importing_it_does_not_start_jax():
    code = (
        "import sys, lsrjax.retrieval.bm25;"
        "sys.exit('jax' in sys.modules or 'bm25s' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
