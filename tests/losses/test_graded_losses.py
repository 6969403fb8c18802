"""Losses over graded lists and pairs against other programs, and their laws."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import losses as dense_losses
from sentence_transformers.sparse_encoder import losses as sparse_losses

from lsrjax.losses import objective
from lsrjax.losses.graded_lists import listnet, wasserstein
from lsrjax.losses.graded_pairs import cosent, cosine
from lsrjax.models.views import Bag, Dense, MultiVector, Vector

B, G, D = 5, 3, 7


def normal(seed, *shape, scale=1.0):
    values = scale * np.random.default_rng(seed).normal(size=shape)
    return values.astype(np.float32)


def graded(loss):
    return jax.jit(jax.value_and_grad(loss))


def grades(*shape):
    return np.random.default_rng(9).integers(0, 4, shape).astype(np.float32)


# Lists.


def test_listnet_is_the_cross_entropy_of_torch():
    temperature, of_grades = 0.3, 2.0
    scores, labels = normal(0, B, G), grades(B, G)
    logits = torch.tensor(scores, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        logits / temperature, torch.softmax(torch.tensor(labels) / of_grades, dim=1)
    )
    expected.backward()
    found, gradient = graded(listnet)(scores, labels, temperature, of_grades)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-6)


def softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def wasserstein_by_roots(scores, labels, temperature, of_grades):
    """With roots of whole matrices over the documents, in float64."""
    student = softmax(np.float64(scores) / temperature)
    target = softmax(np.float64(labels) / of_grades)
    means = np.square(student.mean(axis=0) - target.mean(axis=0)).sum()
    S, T = np.cov(student.T), np.cov(target.T)
    root = symmetric_root(S)
    both = symmetric_root(root @ T @ root)
    return means + np.trace(S + T) - 2 * np.trace(both)


def symmetric_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


@pytest.mark.parametrize(
    ("documents", "temperature", "of_grades"),
    [(3, 1.0, 1.0), (15, 0.3, 2.0)],  # fewer and more than queries
)
def test_wasserstein_by_roots_of_matrices(documents, temperature, of_grades):
    scores, labels = normal(0, B, documents), grades(B, documents)
    options = labels, temperature, of_grades
    found, gradient = graded(wasserstein)(scores, *options)
    expected = wasserstein_by_roots(scores, *options)
    assert float(found) == pytest.approx(expected, rel=2e-5)
    for place in ((0, 0), (1, 2), (4, 1)):
        step = np.zeros(scores.shape)
        step[place] = 1e-4
        higher, lower = (
            wasserstein_by_roots(scores + d, *options) for d in (step, -step)
        )
        slope = (higher - lower) / 2e-4
        assert float(gradient[place]) == pytest.approx(slope, abs=2e-5)


def test_no_distance_between_equal_lists():
    labels = grades(B, 11)
    shifted = labels + normal(1, B, 1)
    found, gradient = graded(wasserstein)(shifted, labels)
    assert float(found) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(gradient, np.zeros((B, 11)), atol=1e-5)


@pytest.mark.parametrize("queries", [1, B])
def test_wasserstein_without_spread_is_finite(queries):
    """One query, and the same grades for all: a covariance is 0."""
    labels = np.tile(np.float32([3, 1, 0]), (queries, 1))
    scores = normal(2, queries, 3)
    found, gradient = graded(wasserstein)(scores, labels)
    student, target = softmax(scores), softmax(labels)
    means = np.square(student.mean(axis=0) - target[0]).sum()
    spread = student.var(axis=0, ddof=1).sum() if queries > 1 else 0
    assert float(found) == pytest.approx(means + spread, rel=1e-4)
    assert np.isfinite(gradient).all() and np.asarray(gradient).any()


def letters(texts):
    return np.array([[ord(t), 0] for t in texts], np.int32)


# Query 2 is the first once more; document a is in two groups.
QUERIES = "qrsqt"
DOCUMENTS = ["abc", "dae", "fgh", "ijk", "lmn"]


@pytest.mark.parametrize("name", ["listnet", "wasserstein"])
def test_lists_over_the_batch_leave_out_equal_texts(name):
    queries, documents = normal(3, B, D), normal(4, B * G, D)
    labels = grades(B, G)
    targets = {
        "scores": labels,
        "query_key": letters(QUERIES),
        "document_key": np.stack([letters(texts) for texts in DOCUMENTS]),
    }
    options = {"in_batch": True} if name == "listnet" else {}
    loss = objective.of({name: {"temperature": 0.7} | options})
    views = {"query": {"v": Dense(queries)}, "document": {"v": Dense(documents)}}
    (found,) = loss(views, targets).values()

    scores = np.float64(queries @ documents.T) / 0.7
    graded = np.zeros((B, B * G))
    for b in range(B):
        for other in range(B):
            for g, text in enumerate(DOCUMENTS[other]):
                same_query = QUERIES[other] == QUERIES[b]
                place = other * G + g
                if other == b:
                    graded[b, place] = labels[b, g]
                elif same_query or text == DOCUMENTS[b][0]:
                    graded[b, place] = scores[b, place] = -np.inf
    assert np.isinf(graded).sum() == 2 * G + 1
    if name == "wasserstein":
        expected = wasserstein_by_roots(scores, graded, 1, 1)
    else:
        target, student = softmax(graded), softmax(scores)
        kept = target > 0
        expected = -(target[kept] * np.log(student[kept])).sum() / B
    assert float(found) == pytest.approx(expected, rel=2e-5)


# Pairs.

LABELS = np.float32([0.2, 1.0, 0.2, 0.6, 0.0])


def compare(name, options, view, theirs, first, second):
    """Value and gradients of a loss of pairs and of theirs."""
    loss = objective.of({name: options})

    def ours(first, second):
        views = {"query": {"v": view(first)}, "document": {"v": view(second)}}
        (value,) = loss(views, {"scores": LABELS[:, None]}).values()
        return value

    found, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(first, second)
    inputs = [torch.tensor(x, requires_grad=True) for x in (first, second)]
    wanted = theirs.compute_loss_from_embeddings(inputs, torch.tensor(LABELS))
    wanted.backward()
    assert float(found) == pytest.approx(wanted.item(), rel=1e-5) and wanted > 0.1
    for gradient, of_theirs in zip(gradients, inputs, strict=True):
        expected = of_theirs.grad.numpy()
        tolerance = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, atol=tolerance)


def vector(weights):
    return Vector(weights, weights)


def test_cosent_is_that_of_sentence_transformers():
    temperature = 0.05
    first, second = normal(5, B, D), normal(6, B, D)
    scale = 1 / temperature
    options = {"temperature": temperature}
    theirs = dense_losses.CoSENTLoss(None, scale=scale)
    compare("cosent", options, Dense, theirs, first, second)
    model = types.SimpleNamespace()  # whose similarity it names
    theirs = sparse_losses.SparseCoSENTLoss(model, scale=scale)
    weights = np.maximum(first, 0), np.maximum(second, 0)
    assert all(row.any() for x in weights for row in x)
    compare("cosent", options, vector, theirs, *weights)
    by_score = dense_losses.CoSENTLoss(
        None, scale, similarity_fct=lambda a, b: (a * b).sum(dim=1)
    )
    options |= {"similarity": "score"}
    compare("cosent", options, Dense, by_score, first, second)


@pytest.mark.parametrize(
    ("size", "temperature"),
    [(D, 0.05), (D + 1, 0.5)],  # odd and even
)
def test_angle_is_that_of_sentence_transformers(size, temperature):
    theirs = dense_losses.AnglELoss(None, scale=1 / temperature)
    first, second = normal(7, B, size), normal(8, B, size)
    options = {"temperature": temperature}
    compare("angle", options, Dense, theirs, first, second)


def test_groups_of_several_documents_are_pairs():
    """The same as their pairs one by one, the query repeated."""
    queries, documents, labels = normal(0, B, D), normal(1, B * G, D), grades(B, G)
    loss = objective.of({"cosent": {}})

    def of(queries, labels):
        views = {"query": {"v": Dense(queries)}, "document": {"v": Dense(documents)}}
        (value,) = loss(views, {"scores": labels}).values()
        return float(value)

    repeated = np.repeat(queries, G, axis=0)
    expected = of(repeated, labels.reshape(-1, 1))
    assert of(queries, labels) == pytest.approx(expected, rel=1e-6) and expected > 0.1


def test_pairs_of_equal_labels_cost_nothing():
    similarity = normal(0, B)
    value, gradient = graded(cosent)(similarity, np.ones(B, "f"), 0.05)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros(B))
    # The order of labels counts, not their size, and no common shift of similarities.
    once = cosent(similarity, LABELS, 0.5)
    again = cosent(similarity + 0.5, LABELS**2 * 7 - 3, 0.5)
    assert float(once) == pytest.approx(float(again), rel=1e-5)


def test_cosine_of_several_views():
    """Of the concatenation of the views' vectors, scaled; of tokens, by MaxSim."""
    ids = np.array([[1, 4, 1], [0, 2, 3], [4, 4, 4], [3, 3, 0], [0, 1, 2]])
    weights, others = np.abs(normal(2, B, 3)), np.abs(normal(3, B, 3))

    def spread(weights):
        wide = np.zeros((B, 5), np.float32)
        for row, places, own in zip(wide, ids, weights, strict=True):
            np.add.at(row, places, own)
        return wide

    dense, scale = (normal(0, B, D), normal(1, B, D)), 0.3
    views = [
        {"d": Dense(jnp.asarray(x), scale), "b": Bag(jnp.asarray(ids), w, 5)}
        for x, w in zip(dense, (jnp.asarray(weights), jnp.asarray(others)), strict=True)
    ]
    first, second = (
        np.concatenate([np.sqrt(scale) * x, spread(w)], axis=1)
        for x, w in zip(dense, (weights, others), strict=True)
    )
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    expected = (first * second).sum(axis=1) / lengths
    np.testing.assert_allclose(cosine(*views)[:, 0], expected, rtol=1e-5)

    tokens = normal(5, B, 4, D)
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    mask = np.arange(4) < np.array([[4], [2], [1], [3], [4]])
    text = {"t": MultiVector(jnp.asarray(tokens), jnp.asarray(mask))}
    np.testing.assert_allclose(cosine(text, text), np.ones((B, 1)), rtol=1e-5)


def test_an_empty_text_has_no_similarity_and_a_finite_gradient():
    first, second = normal(0, B, D), normal(1, B, D)
    first[2] = 0

    def total(first):
        found = cosine({"v": Dense(first)}, {"v": Dense(second)})
        return (found**2).sum(), found

    (_, found), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(first))
    assert float(found[2, 0]) == 0 and np.asarray(found)[[0, 1, 3, 4]].all()
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[2].any()
