"""Losses over the batch's scores by loops, and their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lsrjax.losses import objective
from lsrjax.losses.mann_whitney import mann_whitney
from lsrjax.losses.passage_centric import passage_centric
from lsrjax.models.views import Dense, MultiVector

B, G, D = 4, 3, 6


def normal(seed, *shape, scale=1.0):
    values = scale * np.random.default_rng(seed).normal(size=shape)
    return values.astype(np.float32)


def places():
    """Every query and document, and whether this is its positive."""
    for query in range(B):
        for document in range(B * G):
            yield query, document, document == query * G


@pytest.mark.parametrize(("some", "temperature"), [(False, 1.0), (True, 0.2)])
def test_mann_whitney_by_loops(some, temperature):
    scores = normal(0, B, B * G, scale=2)
    excluded = np.random.default_rng(1).random(scores.shape) < 0.4 if some else None
    if some:
        excluded[:, 0] = True  # a positive counts for its query all the same
    negatives = [
        scores[q, d]
        for q, d, positive in places()
        if not positive and not (some and excluded[q, d])
    ]
    steps = [
        (scores[q, d] - negative) / temperature
        for q, d, positive in places()
        if positive
        for negative in negatives
    ]
    expected = -torch.nn.functional.logsigmoid(torch.tensor(steps)).mean().item()
    loss = jax.jit(jax.value_and_grad(mann_whitney))
    found, gradient = loss(scores, temperature, excluded)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert abs(float(gradient.sum())) < 1e-5  # all scores may grow by the same
    for q, d, positive in places():
        unused = some and excluded[q, d] and not positive
        sign = 0 if unused else -1 if positive else 1
        assert np.sign(gradient[q, d]) == sign


def test_mann_whitney_bounds_the_area_over_the_curve():
    labels = [positive for *_, positive in places()]
    for seed in range(5):
        scores = normal(seed, B, B * G, scale=3)
        over = 1 - roc_auc_score(labels, scores.ravel())
        assert 0 < over <= float(mann_whitney(scores)) / np.log(2)
    # A query whose scores are all higher counts, unlike with InfoNCE.
    raised = scores + 9 * (np.arange(B) == 1)[:, None]
    assert float(mann_whitney(raised)) > float(mann_whitney(scores)) + 0.1


def test_mann_whitney_without_a_negative_costs_nothing():
    scores = normal(0, B, B * G)
    every = np.ones(scores.shape, bool)
    value, gradient = jax.value_and_grad(mann_whitney)(scores, 1.0, every)
    assert float(value) == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize(("some", "temperature"), [(False, 1.0), (True, 0.2)])
def test_passage_centric_is_the_cross_entropy_of_torch(some, temperature):
    own, others = normal(2, B), normal(3, B, B * G)
    excluded = np.random.default_rng(1).random(others.shape) < 0.4 if some else None
    inputs = [torch.tensor(x, requires_grad=True) for x in (own, others)]
    rows = []
    for b in range(B):
        kept = [d for d in range(B * G) if d != b * G and not (some and excluded[b, d])]
        logits = torch.cat([inputs[0][b : b + 1], inputs[1][b, kept]]) / temperature
        rows.append(torch.nn.functional.cross_entropy(logits, torch.tensor(0)))
    expected = torch.stack(rows).mean()
    expected.backward()
    loss = jax.jit(jax.value_and_grad(passage_centric, (0, 1)))
    found, gradients = loss(own, others, temperature, excluded)
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(gradient, wanted.grad.numpy(), atol=1e-6)


def test_pair_compares_documents_with_each_other():
    """Both terms as PAIR has them, of embeddings."""
    queries, documents = normal(4, B, D), normal(5, B * G, D)
    views = {"query": {"v": Dense(queries)}, "document": {"v": Dense(documents)}}
    plain = {"mask_same_text": False}
    loss = objective.of(
        {
            "infonce": {"weight": 0.9} | plain,
            "passage_centric": {"weight": 0.1} | plain,
        }
    )
    targets = {"positives": 1}
    found = {name: float(part) for name, part in loss(views, targets).items()}
    positives = documents[::G]
    products = torch.tensor(positives @ documents.T)
    for b in range(B):
        products[b, b * G] = float((queries[b] * positives[b]).sum())
    own = torch.tensor([b * G for b in range(B)])
    by_query = torch.nn.functional.cross_entropy(
        torch.tensor(queries @ documents.T), own
    )
    by_passage = torch.nn.functional.cross_entropy(products, own)
    assert found["infonce"] == pytest.approx(0.9 * by_query.item(), rel=1e-5)
    assert found["passage_centric"] == pytest.approx(0.1 * by_passage.item(), rel=1e-5)


def test_a_passage_of_tokens_is_scored_by_its_own():
    """The scores with its query and with documents are sums over the same tokens."""
    query, document = (
        MultiVector(jnp.asarray(normal(seed, count, 3, D)), jnp.ones((count, 3), bool))
        for seed, count in ((6, B), (7, B * G))
    )
    loss = objective.of({"passage_centric": {"mask_same_text": False}})
    views = {"query": {"t": query}, "document": {"t": document}}
    (found,) = loss(views, {}).values()
    first = np.asarray(document.tokens_BLD[::G])

    def max_sim(left, right):
        return (left @ right.T).max(axis=1).sum()

    own = np.array([max_sim(first[b], query.tokens_BLD[b]) for b in range(B)])
    others = np.array([[max_sim(p, d) for d in document.tokens_BLD] for p in first])
    expected = passage_centric(own, others)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
