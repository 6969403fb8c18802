import numpy as np
import pytest
from scipy import sparse

from lsrjax.errors import InputError
from lsrjax.retrieval.pruning import Pruning


def _dense(rows):
    return sparse.csr_matrix(np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        ("top:2", [[0, 3, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, -5, 2, 0]]),
        ("mass:0.5", [[0, 3, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, -5, 0, 0]]),
        ("mass:1", [[1, 3, 2, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, -5, 2, 0]]),
        ("ratio:0.5", [[0, 3, 2, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, -5, 0, 0]]),
    ],
)
def test_what_is_kept(budget, wanted):
    rows = [[1, 3, 2, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, -5, 2, 0]]
    pruned = Pruning.parse(budget).apply(_dense(rows))
    assert pruned.toarray().tolist() == wanted
    assert pruned.nnz == np.count_nonzero(wanted) and pruned.has_sorted_indices


@pytest.mark.parametrize("budget", ["top:7", "mass:0.83", "ratio:0.31"])
def test_against_one_row_at_a_time(budget):
    rng = np.random.default_rng(0)
    matrix = sparse.random(
        40, 60, density=0.4, format="csr", dtype=np.float32, random_state=rng
    )
    pruning = Pruning.parse(budget)
    for row, found in zip(matrix.toarray(), pruning.apply(matrix), strict=True):
        order = sorted(np.flatnonzero(row), key=lambda j: (-row[j], j))
        if pruning.kind == "top":
            kept = order[: int(pruning.value)]
        elif pruning.kind == "ratio":
            kept = [j for j in order if row[j] >= pruning.value * row[order[0]]]
        else:
            kept, held = [], 0.0
            while held < pruning.value * row.astype(float).sum():
                kept.append(order[len(kept)])
                held += float(row[kept[-1]])
        assert found.indices.tolist() == sorted(kept)
        assert found.data.tolist() == row[sorted(kept)].tolist()


def test_the_input_stays_as_it_was_and_an_empty_matrix_is_fine():
    matrix = _dense([[1, 2, 3]])
    Pruning.parse("top:1").apply(matrix)
    assert matrix.nnz == 3
    assert Pruning.parse("mass:0.5").apply(sparse.csr_matrix((0, 5))).shape == (0, 5)


@pytest.mark.parametrize(
    "text", ["top", "top:0", "top:1.5", "top:inf", "mass:0", "mass:1.1", "best:3", ""]
)
def test_an_unknown_budget_is_refused(text):
    with pytest.raises(InputError, match="top:128, mass:0.9, ratio:0.1"):
        Pruning.parse(text)


def test_its_name_reads_back():
    for text in ("top:128", "mass:0.9", "ratio:0.1"):
        assert str(Pruning.parse(text)) == text
