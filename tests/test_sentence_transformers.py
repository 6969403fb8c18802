"""Losses, regularizers and modules against those of sentence-transformers 6.2.

The same embeddings and labels go in; values and gradients have to agree to 1e-5 of the
largest entry.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from programs import tiny
from sentence_transformers.sentence_transformer import losses as dense_losses
from sentence_transformers.sparse_encoder import losses as theirs
from sentence_transformers.sparse_encoder.modules import (
    SparseAutoEncoder,
    SpladePooling,
)
from sentence_transformers.util import dot_score, maxsim

from lsrjax.losses import objective, regularizers
from lsrjax.models.dense_heads import Autoencoder
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.views import Dense, MultiVector, Vector, normalized
from lsrjax.ops.vocab_pool import vocab_pool
from lsrjax.ops.vocab_sum import vocab_sum

B, G, V = 6, 4, 50


def sparse(seed, *shape):
    """Weights of which about half are 0."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=shape), 0).astype(np.float32)


QUERIES, DOCUMENTS = sparse(0, B, V), sparse(1, B, G, V)
SCORES = np.random.default_rng(2).normal(0, 3, (B, G)).astype(np.float32)


def assert_close(found, wanted, name=""):
    found, wanted = np.asarray(found), np.asarray(wanted)
    tolerance = 1e-5 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0, err_msg=name)


def of_torch(loss):
    """Value and gradients for queries and documents; `loss(columns)`."""
    queries, documents = (
        torch.tensor(x, requires_grad=True) for x in (QUERIES, DOCUMENTS)
    )
    value = loss([queries, *documents.unbind(dim=1)])
    value.backward()
    return value.item(), queries.grad.numpy(), documents.grad.numpy()


def of_jax(loss):
    """The same; `loss(views by text)`."""

    def total(queries, documents):
        flat = documents.reshape(-1, V)
        views = {
            "query": {"terms": Vector(queries, queries)},
            "document": {"terms": Vector(flat, flat)},
        }
        return loss(views)

    value, gradients = jax.value_and_grad(total, (0, 1))(QUERIES, DOCUMENTS)
    return float(value), *gradients


def same(ours, of_theirs):
    found, wanted = of_jax(ours), of_torch(of_theirs)
    for name, a, b in zip(
        ("value", "queries", "documents"), found, wanted, strict=True
    ):
        assert_close(a, b, name)
    assert abs(wanted[0]) > 1e-3


def objective_of(name, **options):
    loss = objective.of({name: options})
    targets = {"scores": SCORES, "positives": 1}
    return lambda views: sum(loss(views, targets).values())


LABELS = torch.tensor(SCORES)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_infonce(temperature):
    """SparseMultipleNegativesRankingLoss orders documents by column, we by query."""
    loss = theirs.SparseMultipleNegativesRankingLoss(None, scale=1 / temperature)
    same(
        objective_of("infonce", mask_same_text=False, temperature=temperature),
        lambda columns: loss.compute_loss_from_embeddings(columns, None),
    )


def test_margin_mse():
    loss = theirs.SparseMarginMSELoss(None)
    same(
        objective_of("margin_mse"),
        lambda columns: loss.compute_loss_from_embeddings(columns, LABELS),
    )


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_embedding(distance):
    """SparseMSELoss is the mean over a vector's numbers, and over columns of texts."""
    teacher = sparse(3, B, V), sparse(4, B, G, V)
    loss = {
        "mse": theirs.SparseMSELoss(None),
        "cosine": dense_losses.EmbedDistillLoss(None, distance_metric="cosine"),
    }[distance]

    def of_theirs(columns):
        return loss.compute_loss_from_embeddings(columns, labels)

    labels = [torch.tensor(teacher[0]), *torch.tensor(teacher[1]).unbind(dim=1)]
    views = {
        text: {"terms": Vector(x.reshape(-1, V), x.reshape(-1, V))}
        for text, x in zip(("query", "document"), teacher, strict=True)
    }
    found = objective.of({"embedding": {"distance": distance}})

    def ours(views_of_student):
        parts = found(views_of_student, {"teacher": views})
        texts = {"embedding_query": 1, "embedding_document": G}
        whole = sum(count * parts[name] for name, count in texts.items())
        return whole / (1 + G) / (V if distance == "mse" else 1)

    same(ours, of_theirs)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl(temperature):
    loss = theirs.SparseDistillKLDivLoss(None, temperature=temperature)
    same(
        objective_of("kl", temperature=temperature),
        lambda columns: loss.compute_loss_from_embeddings(columns, LABELS),
    )


class Given(torch.nn.Module):
    """A model whose texts are their embeddings."""

    def get_embedding_dimension(self):
        return V

    def forward(self, features):
        return {"sentence_embedding": features["embedding"]}


@pytest.mark.parametrize("weights", [(), (0.5, 2.0)])
def test_matryoshka(weights):
    """MatryoshkaLoss over all of the embedding and over two prefixes."""
    sizes, temperature, rng = (20, 7), 0.1, np.random.default_rng(5)
    shapes = (B, V), (B, G, V)
    given = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    model = Given()
    ranking = dense_losses.MultipleNegativesRankingLoss(
        model, scale=1 / temperature, similarity_fct=dot_score
    )
    summed = dense_losses.MatryoshkaLoss(
        model, ranking, [V, *sizes], [1, *weights] if weights else None
    )
    queries, documents = (torch.tensor(x, requires_grad=True) for x in given)
    columns = [queries, *documents.unbind(dim=1)]
    value = summed([{"embedding": x} for x in columns], None)
    value.backward()
    contrast = {"mask_same_text": False, "temperature": temperature}
    prefixes = {"prefixes": sizes, "prefix_weights": weights}
    loss = objective.of({"infonce": contrast | prefixes})

    def ours(queries, documents):
        flat = documents.reshape(-1, V)
        texts = {"query": queries, "document": flat}
        views = {
            name: {"dense": Dense(normalized(x), unit=True)}
            for name, x in texts.items()
        }
        return sum(loss(views, {"positives": 1}).values())

    found, gradients = jax.value_and_grad(ours, (0, 1))(*given)
    assert float(found) == pytest.approx(value.item(), rel=1e-5)
    for own, their in zip(gradients, (queries, documents), strict=True):
        assert_close(own, their.grad.numpy())


@pytest.mark.parametrize("threshold", [None, 24])
def test_splade_loss(threshold):
    """The sum of a loss and both regularizers, with and without the threshold."""
    lambdas = {"query": 0.05, "document": 0.03}
    config = {"name": "flops"}
    if threshold:
        config = {"name": "masked_flops", "threshold": threshold}
    regularizer = regularizers.of(config | lambdas)
    main = objective_of("infonce", mask_same_text=False)

    def ours(views):
        return main(views) + sum(
            regularizers.penalties(regularizer, views, lambdas).values()
        )

    # As SpladeLoss.forward adds them up; it takes texts, not embeddings.
    flops = theirs.FlopsLoss(None, threshold=threshold)
    ranking = theirs.SparseMultipleNegativesRankingLoss(None)

    def of_theirs(columns):
        return (
            ranking.compute_loss_from_embeddings(columns, None)
            + 0.05 * flops.compute_loss_from_embeddings(columns[0])
            + 0.03 * flops.compute_loss_from_embeddings(torch.cat(columns[1:]))
        )

    if threshold:
        active = (DOCUMENTS != 0).sum(axis=-1)
        assert (active > threshold).any() and (active <= threshold).any()
    same(ours, of_theirs)


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_splade_pooling(pooling):
    """From hidden states to weights: their pooling takes the logits."""
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(B, 7, 9)).astype(np.float32)
    decoder = rng.normal(size=(V, 9)).astype(np.float32)
    bias = rng.normal(size=V).astype(np.float32)
    mask = (np.arange(7) < rng.integers(1, 8, (B, 1))).astype(np.int64)
    incoming = rng.normal(size=(B, V)).astype(np.float32)

    def ours(hidden):
        if pooling == "sum":
            weights = vocab_sum(hidden, decoder, bias, mask)
        else:
            raw, _ = vocab_pool(hidden, decoder, bias, mask)
            weights = jnp.log1p(jax.nn.relu(raw))
        return (weights * incoming).sum(), weights

    (_, weights), gradient = jax.value_and_grad(ours, has_aux=True)(hidden)
    states = torch.tensor(hidden, requires_grad=True)
    logits = states @ torch.tensor(decoder).T + torch.tensor(bias)
    module = SpladePooling(pooling_strategy=pooling)
    module.train()
    features = {"token_embeddings": logits, "attention_mask": torch.tensor(mask)}
    pooled = module(features)["sentence_embedding"]
    (pooled * torch.tensor(incoming)).sum().backward()
    assert_close(weights, pooled.detach())
    assert_close(gradient, states.grad)


def test_csr_loss_and_autoencoder():
    """With a tenth of InfoNCE on the codes, some latents dead."""
    size, latents, k, revived = 8, 30, 3, 4
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, B, size)).astype(np.float32)  # anchors, positives
    weight = rng.normal(size=(latents, size)).astype(np.float32) / 3
    bias, center = (
        rng.normal(0, 0.1, count).astype(np.float32) for count in (latents, size)
    )
    idle = np.where(np.arange(latents) % 3 == 0, 31, 5)

    module = SparseAutoEncoder(size, latents, k=k, k_aux=revived, dead_threshold=30)
    with torch.no_grad():
        module.encoder.weight.copy_(torch.tensor(weight))
        module.latent_bias.copy_(torch.tensor(bias))
        module.pre_bias.copy_(torch.tensor(center))
    inputs = torch.tensor(x, requires_grad=True)
    outputs = []
    for column in inputs:
        # Their count goes on within a batch; ours at its end.
        module.stats_last_nonzero.copy_(torch.tensor(idle))
        module.eval()
        outputs.append(module({"sentence_embedding": column}))
    parts = theirs.CSRReconstructionLoss(None, beta=0.1).compute_loss_from_embeddings(
        outputs
    )
    codes = [features["sentence_embedding"] for features in outputs]
    ranking = theirs.SparseMultipleNegativesRankingLoss(None)
    wanted = sum(parts.values()) + 0.1 * ranking.compute_loss_from_embeddings(
        codes, None
    )
    wanted.backward()

    encoder = tiny.encoder(
        vocab_size=11, hidden_size=size, num_heads=1, max_positions=8
    )
    spec = RetrieverSpec.of(
        "csr",
        encoder,
        latents=latents,
        active_latents=k,
        revived_latents=revived,
        dead_after=30,
    )
    ours = Autoencoder(spec.options, size, rngs=nnx.Rngs(0))
    ours.kernel[...], ours.bias[...] = jnp.asarray(weight.T), jnp.asarray(bias)
    # Theirs is 1 after the step in which a latent fires, ours 0.
    ours.center[...], ours.idle[...] = jnp.asarray(center), jnp.asarray(idle - 1.0)
    graphdef, params = nnx.split(ours)
    contrast = {"weight": 0.1, "mask_same_text": False}
    loss = objective.of({"reconstruction": {}, "infonce": contrast})

    def total(params, x):
        module = nnx.merge(graphdef, params)
        views = {
            name: {"latents": module(one)}
            for name, one in zip(("query", "document"), x, strict=True)
        }
        return sum(loss(views, {"positives": 1}).values()), views

    (value, views), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(
        params, x
    )
    for name, code in zip(("query", "document"), codes, strict=True):
        assert_close(views[name]["latents"].weights_BV, code.detach())
        assert float(views[name]["latents"].error_dead_B1.min()) > 0
    assert_close(value, wanted.item())
    assert_close(gradients[1], inputs.grad, "embeddings")
    of_params = gradients[0]
    assert_close(of_params["kernel"][...].T, module.encoder.weight.grad, "kernel")
    assert_close(of_params["bias"][...], module.latent_bias.grad, "bias")
    assert_close(of_params["center"][...], module.pre_bias.grad, "center")


def test_late_interaction():
    rng = np.random.default_rng(5)
    queries = rng.normal(size=(B, 4, 6)).astype(np.float32)
    documents = rng.normal(size=(B * G, 9, 6)).astype(np.float32)
    q_mask = np.arange(4) < rng.integers(1, 5, (B, 1))
    d_mask = np.arange(9) < rng.integers(1, 10, (B * G, 1))
    found = MultiVector(jnp.asarray(queries), jnp.asarray(q_mask)).score_all(
        MultiVector(jnp.asarray(documents), jnp.asarray(d_mask))
    )
    wanted = maxsim(
        torch.tensor(queries),
        torch.tensor(documents),
        torch.tensor(q_mask),
        torch.tensor(d_mask),
    )
    assert_close(found, wanted)
