"""Why a document was found."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from lsrjax.retrieval.matches import of_terms
from lsrjax.retrieval.text_search import TextSearch
from lsrjax.retrieval.vector_formats.vectors import SPARSE


def test_terms_by_what_they_add_and_columns_of_a_hash_together():
    query, document = (
        sparse.csr_matrix(np.array([row], np.float32))
        for row in ([0, 2, 1, 0, 3, 1, 2], [5, 1, 3, 0, 1, 0, 2])
    )
    views = {"pivot": 3, "surface": 4}
    found = of_terms(query, document, views, [*"abc", "n_0", "n_1", "n_2", "n_3"])
    assert [(one.view, one.term, one.score) for one in found] == [
        ("surface", "n-grams in common", pytest.approx(7.0)),
        ("pivot", "c", 3.0),
        ("pivot", "b", 2.0),
    ]


def test_columns_of_a_hash_are_no_terms_of_a_text():
    class Shown(TextSearch):
        index = SimpleNamespace(kind=SPARSE)
        _spec = SimpleNamespace(views={"surface": 2, "pivot": 2})

        def __init__(self):
            pass

        def _names(self):
            return ["n_0", "n_1", "e_a", "e_b"]

    vector = sparse.csr_matrix(np.array([[3, 0, 1, 2]], np.float32))
    found = Shown()._terms(vector, 0, None)
    assert found == {"pivot": [("e_b", 2.0), ("e_a", 1.0)]}
