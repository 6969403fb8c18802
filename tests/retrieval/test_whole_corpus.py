"""Negatives of a whole corpus."""

import json
import types

import pytest

from lsrjax.config.fields import get_default
from lsrjax.data.batching.drawing import wording
from lsrjax.data.sources import WithNegatives, open_source
from lsrjax.errors import InputError
from lsrjax.retrieval.teacher_scores import corpus_of, prepare


def groups_of(tmp_path, corpus, rows, **fields):
    """Rows by file, with a corpus beside them."""
    (tmp_path / "docs.jsonl").write_text(
        "".join(json.dumps({"id": k, "text": t}) + "\n" for k, t in corpus.items())
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = get_default().data
    data.source.files = str(tmp_path / "rows.jsonl")
    data.corpus = str(tmp_path / "docs.jsonl")
    return open_source(data, "group", mined=True)


CORPUS = {f"d{i}": f"word{i % 5} text{i}" for i in range(30)} | {"x": "", "y": "text0"}


@pytest.mark.parametrize("by_id", [True, False])
def test_negatives_are_mined_from_the_whole_corpus(tmp_path, by_id):
    """Not from the two rows' own documents; and never one without a text."""
    rows = [
        {"query": "word0", "positive_document_ids": ["d0"]},
        {"query": "word1", "positive_document_ids": ["d1"]},
    ]
    if not by_id:  # a positive of the corpus, and one that it lacks
        rows = [
            {"query": "word0", "pos": [CORPUS["d0"]]},
            {"query": "word1", "pos": ["word1 elsewhere"]},
        ]
    source = groups_of(tmp_path, CORPUS, rows)
    corpus, positives = corpus_of(source, whole=True)
    assert len(corpus) == len(CORPUS) + (not by_id)
    assert [wording(corpus[place]) for place in positives] == [
        wording(group.positives[0]) for group in source
    ]
    mined = types.SimpleNamespace(depth=10, count=4)
    found = prepare(source, corpus, positives, mined=mined, teacher=None, seed=0)[
        "negatives"
    ]
    for row, negatives in enumerate(found):
        texts = [wording(corpus[place]) for place in negatives]
        assert len(set(texts)) == 4 and "" not in texts
        # BM25's hits: the documents that share the query's only word.
        assert all(text.startswith(f"word{row} ") for text in texts)
        assert positives[row] not in negatives
    groups = WithNegatives(source, corpus, found, None)
    assert [wording(text) for text in groups[1].negatives] == texts


def test_a_corpus_of_texts_that_are_not_mined_has_no_effect(tmp_path):
    groups_of(tmp_path, CORPUS, [{"query": "a", "pos": ["b"]}])
    data = get_default().data
    data.source.files, data.corpus = (
        str(tmp_path / "rows.jsonl"),
        str(tmp_path / "docs.jsonl"),
    )
    with pytest.raises(InputError, match="corpus = .*would have no effect"):
        open_source(data, "group")
