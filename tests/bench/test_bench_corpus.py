"""Engines and mining on a corpus of no size, and what the corpus is made of."""

import re

import numpy as np
import pytest

from lsrjax.bench import corpus
from lsrjax.bench.__main__ import main
from lsrjax.bench.synthetic import SyntheticCorpus


def test_engines_and_mining_are_measured(capsys):
    sizes = "--documents 300 --terms 12 --vocabulary 500 --queries 7 --query-terms 6"
    more = "--depth 9 --mined 5 --mined-terms 3 --repeats 1 --engine exact"
    main(["corpus", *sizes.split(), *more.split(), "--options", "block=100"])
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    (row,) = (line for line in out.splitlines() if line.startswith("│"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[0] == "exact" and cells[-1] == "1.000"
    found = " ".join(out.split())
    assert "300 documents of 12 terms, 7 queries of 6" in found
    assert re.search(r"BM25, 9 best documents of 5 queries of 3 words: [\d.e-]+ s", out)
    assert re.search(r"largest memory: [\d.]+ GB", out)


def test_bad_options_end_with_one_line(capsys):
    for options, message in (("block", "not FIELD=VALUE"), ("blok=3", "blok")):
        with pytest.raises(SystemExit) as stopped:
            main(["corpus", "--engine", "exact", "--options", options])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and message in error


def test_recall_is_the_share_of_the_best_that_was_found():
    wanted = np.array([[1, 2, 3], [4, -1, -1], [5, 6, 7]])
    found = np.array([[3, 9, 1], [4, 8, 7], [-1, -1, -1]])
    assert corpus.recall(found, wanted) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_the_corpus_is_the_same_each_time_and_follows_zipf():
    made = SyntheticCorpus(9000, 30, 5000)
    ids, whole = made.whole()
    _, again = SyntheticCorpus(9000, 30, 5000).whole()
    assert ids[-1] == "8999" and whole.shape == (9000, 5000)
    assert (whole != again).nnz == 0
    assert whole.data.min() > 0 and 20 < whole.nnz / 9000 <= 30
    holders = np.sort(np.bincount(whole.indices, minlength=5000))[::-1]
    assert holders[0] > 20 * holders[200] > 0
    assert next(made.words(1, 4, 0)) == next(made.words(1, 4, 0))
    assert next(made.words(1, 4, 0)) != next(made.words(1, 4, 1))


def test_queries_have_a_document_that_they_were_made_of():
    made = SyntheticCorpus(400, 40, 20_000)
    queries = made.queries(20, 12)
    shared = ((queries > 0).astype(int) @ (made.whole()[1] > 0).astype(int).T).toarray()
    assert queries.shape == (20, 20_000)
    assert (shared.max(axis=1) >= 9).all() and np.median(shared) <= 5
