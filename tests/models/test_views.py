"""Representations score as the dense vectors that they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsrjax.models.views import Bag, Dense, MultiVector, Vector, score_all, score_groups

B, G, SIZE = 3, 2, 17


def bag(count, width, seed):
    """Few ids, so that terms repeat within a text and between texts; some weights 0."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 5, (count, width)).astype(np.int32)
    weights = rng.uniform(0.1, 2, (count, width)).astype(np.float32)
    weights *= rng.random((count, width)) < 0.7
    return Bag(jnp.asarray(ids), jnp.asarray(weights), SIZE)


def dense(view):
    """[B, size] by an addition for each term."""
    out = np.zeros((len(view.ids_BK), view.size))
    for row in range(out.shape[0]):
        for term, weight in zip(view.ids_BK[row], view.weights_BK[row], strict=True):
            out[row, int(term)] += float(weight)
    return out


def vector(count, seed):
    weights = np.random.default_rng(seed).uniform(-1, 1, (count, SIZE))
    raw = jnp.asarray(weights, jnp.float32)
    return Vector(jax.nn.relu(raw), raw)


def test_bag_scores_are_those_of_dense_vectors():
    queries, documents = bag(B, 7, 0), bag(B * G, 11, 1)
    all_pairs = dense(queries) @ dense(documents).T
    np.testing.assert_allclose(queries.score_all(documents), all_pairs, rtol=1e-5)
    own = np.stack([all_pairs[b, b * G : (b + 1) * G] for b in range(B)])
    np.testing.assert_allclose(queries.score_groups(documents), own, rtol=1e-5)


def test_bag_scores_have_the_gradient_of_dense_vectors():
    queries, documents = bag(B, 7, 0), bag(B * G, 11, 1)
    incoming = np.random.default_rng(2).normal(size=(B, B * G)).astype(np.float32)

    def total(weights):
        view = Bag(queries.ids_BK, weights, SIZE)
        return (incoming * view.score_all(documents)).sum()

    of_terms = incoming @ dense(documents)
    expected = np.take_along_axis(of_terms, np.asarray(queries.ids_BK), axis=1)
    found = jax.grad(total)(queries.weights_BK)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_vector_scores():
    queries, documents = vector(B, 0), vector(B * G, 1)
    q, d = np.asarray(queries.weights_BV), np.asarray(documents.weights_BV)
    np.testing.assert_allclose(queries.score_all(documents), q @ d.T, rtol=1e-5)
    own = [[q[b] @ d[b * G + g] for g in range(G)] for b in range(B)]
    np.testing.assert_allclose(queries.score_groups(documents), own, rtol=1e-5)


@pytest.mark.parametrize("score", [score_all, score_groups])
def test_scores_add_up_over_views(score):
    queries = {"pivot": vector(B, 0), "source": bag(B, 7, 1)}
    documents = {"pivot": vector(B * G, 2), "source": bag(B * G, 11, 3)}
    parts = [score({v: queries[v]}, {v: documents[v]}) for v in queries]
    np.testing.assert_allclose(score(queries, documents), sum(parts), rtol=1e-5)
    assert min(float(abs(part).max()) for part in parts) > 0.1


@pytest.mark.parametrize("view", [vector(B, 4), bag(B, 7, 5)])
def test_statistics_are_those_of_dense_vectors(view):
    full = dense(view) if isinstance(view, Bag) else np.asarray(view.weights_BV)
    np.testing.assert_allclose(view.row_sums(), full.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(view.column_means(), full.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(view.active_terms(), (full != 0).sum(axis=1))


def test_a_repeated_term_is_one_active_term():
    ids = jnp.array([[4, 4, 4, 9], [4, 4, 7, 7], [1, 2, 3, 4]])
    weights = jnp.array([[0.0, 1, 2, 3], [0, 0, 0, 5], [0, 0, 0, 0]])
    assert Bag(ids, weights, SIZE).active_terms().tolist() == [2, 1, 0]


def multi_vector(count, length, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(count, length, 5)).astype(np.float32)
    mask = rng.random((count, length)) < 0.7
    mask[-1] = False  # a text without a token
    return MultiVector(jnp.asarray(tokens), jnp.asarray(mask))


def max_sim(query, document):
    """Token by token."""
    (q, q_mask), (d, d_mask) = (
        (np.asarray(tokens), np.asarray(mask)) for tokens, mask in (query, document)
    )
    if not d_mask.any():
        return 0.0
    return sum(max(a @ b for b in d[d_mask]) for a in q[q_mask])


def test_late_interaction_is_the_sum_of_the_best_matches():
    queries, documents = multi_vector(B, 4, 0), multi_vector(B * G, 6, 1)
    each = [
        list(zip(view.tokens_BLD, view.mask_BL, strict=True))
        for view in (queries, documents)
    ]
    expected = [[max_sim(q, d) for d in each[1]] for q in each[0]]
    found = queries.score_all(documents)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    own = [row[b * G : (b + 1) * G] for b, row in enumerate(expected)]
    found = queries.score_groups(documents)
    np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(
        lambda x: MultiVector(x, queries.mask_BL).score_all(documents).sum()
    )(queries.tokens_BLD)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~np.asarray(queries.mask_BL)].any()


def test_dense_scores_are_dot_products():
    rng = np.random.default_rng(0)
    q, d = (rng.normal(size=(n, 5)).astype(np.float32) for n in (B, B * G))
    queries, documents = Dense(jnp.asarray(q)), Dense(jnp.asarray(d))
    np.testing.assert_allclose(queries.score_all(documents), q @ d.T, rtol=1e-5)
    own = [[q[b] @ d[b * G + g] for g in range(G)] for b in range(B)]
    np.testing.assert_allclose(queries.score_groups(documents), own, rtol=1e-5)


def test_a_view_counts_by_the_scale_of_its_query():
    queries, documents = vector(B, 0), vector(B * G, 1)
    plain, doubled = ({"terms": dataclasses.replace(queries, scale=s)} for s in (1, 2))
    for score in (score_all, score_groups):
        wanted = 2 * score(plain, {"terms": documents})
        found = score(doubled, {"terms": documents})
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
