"""The compacted rows of random matrices, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.ops.compact import compact


@pytest.mark.parametrize("most", [1, 7, 40, 99])
def test_ids_and_weights_are_those_that_numpy_finds(most):
    rng = np.random.default_rng(0)
    dense_BV = np.where(rng.random((9, 40)) < 0.2, rng.normal(size=(9, 40)), 0)
    dense_BV[1], dense_BV[4], dense_BV[2, 3], dense_BV[5, -1] = 0, 1, np.nan, -np.inf
    dense_BV[3], dense_BV[3, [0, 39]] = 0, 2
    dense_BV = dense_BV.astype(np.float32)
    ids_BK, weights_BK, counts_B = map(np.asarray, compact(jnp.asarray(dense_BV), most))
    assert ids_BK.shape == (9, min(most, 40))
    np.testing.assert_array_equal(counts_B, (dense_BV != 0).sum(axis=1))
    for row_V, ids_K, weights_K in zip(dense_BV, ids_BK, weights_BK, strict=True):
        wanted = np.flatnonzero(row_V)[:most]
        np.testing.assert_array_equal(ids_K[: len(wanted)], wanted)
        np.testing.assert_array_equal(weights_K[: len(wanted)], row_V[wanted])
        assert (ids_K[len(wanted) :] == 40).all()
