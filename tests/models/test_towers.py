"""Towers of their own for queries and documents, and queries without an encoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import tiny

from lsrjax.data.batching.length_shapes import Shape, cut
from lsrjax.models import retriever
from lsrjax.models.batch import apply_batch
from lsrjax.models.dense_heads import fired
from lsrjax.models.retriever import QUERY_TOWER, RetrieverSpec, towers_of
from lsrjax.models.views import score_all

B, G, L, VOCAB, PIVOT = 3, 2, 7, 53, 41
COUNTS = {"query": 1, "document": G}
HEADS = {
    "splade": {"tied": True},
    "dense": {"pooling": "mean", "embedding_size": 5},
    "milco": {"lexecho": True, "pivot_vocab_size": PIVOT, "pivot_hidden_size": 10},
    "csr": {
        "pooling": "mean",
        "latents": 24,
        "active_latents": 3,
        "revived_latents": 4,
        "dead_after": 2,
    },
}
LENGTHS = [4, 1, 3, 7, 2, 5, 6, 1, 7]  # of B queries, then of B times G documents
# Cut across the roles, and each role on its own.
TOGETHER = Shape(((4, 3), (5, 7)))
QUERIES, DOCUMENTS = Shape(((3, 5),)), Shape(((3, 5), (3, 7)))


@functools.cache
def spec_of(head, towers="shared", dropout=0.0, **options):
    encoder = tiny.encoder(
        "bert" if head == "splade" else "xlm-roberta",
        vocab_size=VOCAB,
        max_positions=L + 2,
        pad_token_id=1,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        initializer_range=0.3,
    )
    return RetrieverSpec.of(head, encoder, towers=towers, **HEADS[head], **options)


@functools.cache
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(2, 19, length).tolist() for length in LENGTHS]


def together():
    texts = {"query": rows()[:B], "document": rows()[B:]}
    return {"texts": cut(texts, TOGETHER, pad_id=1)}


def apart():
    return {
        "texts": cut(
            {"document": rows()[B:]}, DOCUMENTS, pad_id=1, first={"document": B}
        ),
        "queries": cut({"query": rows()[:B]}, QUERIES, pad_id=1),
    }


def scores_and_gradient(spec, params, batch, **options):
    """Scores, with a weight for each, and the gradient of their sum."""
    graphdef, _ = retriever.split(spec)
    weights = np.random.default_rng(1).normal(size=(B, B * G)).astype(np.float32)

    def total(params, batch):
        batch = dict(batch)
        views = apply_batch(graphdef, params, batch.pop("texts"), **batch, **options)
        assert views.keys() == COUNTS.keys()
        assert all(list(found) == list(spec.views) for found in views.values())
        scores = score_all(views["query"], views["document"])
        return (weights * scores).sum(), (scores, fired(views))

    jitted = jax.jit(jax.grad(total, has_aux=True))
    gradient, (scores, fired_by) = jitted(params, batch)
    return jax.device_get((scores, gradient, fired_by))


def close(found, wanted):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * scale, rtol=0),
        found,
        wanted,
    )


def test_chunks_of_queries_and_documents_of_one_shape_are_each_their_own():
    """JAX keeps what it has traced by the function and the shapes."""
    spec = spec_of("dense", "separate")
    params = retriever.init_params(spec, 3)
    params[QUERY_TOWER] = jax.tree.map(lambda x: x + 0.1, params[QUERY_TOWER])
    graphdef, _ = retriever.split(spec)
    documents = {"document": rows()[B:]}
    texts = cut(documents, Shape(((B * G, L),)), pad_id=1, first={"document": B})
    queries = cut({"query": rows()[:B]}, Shape(((B, L),)), pad_id=1)

    def views(chunk):
        return apply_batch(graphdef, params, texts, queries=queries, chunk=chunk)

    close(jax.device_get(views(2)), jax.device_get(views(0)))


KEY = jax.random.key(5)
# The rest only where time does not matter: each compiles two gradients.
CASES = [
    pytest.param("milco", 0.2, 2, marks=pytest.mark.slow),
    pytest.param("milco", 0.0, 0, marks=pytest.mark.slow),
    pytest.param("splade", 0.0, 0, marks=pytest.mark.slow),
    pytest.param("splade", 0.2, 2, marks=pytest.mark.slow),
    pytest.param("dense", 0.0, 0, marks=pytest.mark.slow),
    pytest.param("dense", 0.2, 2, marks=pytest.mark.slow),
    ("csr", 0.2, 0),
    pytest.param("csr", 0.2, 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("head", "dropout", "chunk"), CASES)
def test_towers_of_equal_weights_are_a_shared_one(head, dropout, chunk):
    """Scores are the same, and the two gradients add up to that of the shared one."""
    shared = spec_of(head, dropout=dropout)
    separate = spec_of(head, "separate", dropout=dropout)
    params = retriever.init_params(separate, 3)
    document, query = towers_of(params)
    close(query, document)
    key = KEY if dropout else None
    scores, gradient, fired_by = scores_and_gradient(
        separate, params, apart(), dropout_key=key, chunk=chunk
    )
    wanted, whole, wanted_fired = scores_and_gradient(
        shared, document, together(), dropout_key=key
    )
    assert scores.shape == (B, B * G) and np.std(wanted) > 0.01
    close(scores, wanted)
    jax.tree.map(np.testing.assert_array_equal, fired_by, wanted_fired)
    assert set(fired_by) == (set(COUNTS) if head == "csr" else set())
    gradients = towers_of(gradient)
    close(jax.tree.map(np.add, *gradients), whole)
    for one in gradients:
        reached = {
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(one)
            if np.abs(leaf).max() > 0
        }
        assert any("encoder" in name for name in reached)
        assert any("head" in name for name in reached) or head == "dense"


def text_of(some):
    mask = np.arange(L) < np.array([len(row) for row in some])[:, None]
    ids = np.ones((len(some), L), np.int32)
    ids[mask] = np.concatenate(some)
    return {"ids": ids, "mask": mask.astype(np.int32)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(graphdef, params, text, role):
    return retriever.apply(graphdef, params, text, role=role)


def test_each_tower_encodes_its_own_texts():
    shared, separate = spec_of("splade"), spec_of("splade", "separate")
    first, second = (retriever.init_params(shared, seed) for seed in (1, 2))
    params = retriever.with_query_tower(first, second)
    graphdef, plain = retriever.split(separate)[0], retriever.split(shared)[0]
    text = text_of(rows())
    for role, own in (("document", first), ("query", second)):
        found = encode(graphdef, params, text, role)
        wanted = encode(plain, own, text, None)
        close(found["terms"].raw_BV, wanted["terms"].raw_BV)
    with pytest.raises(ValueError, match="Encode queries and documents apart"):
        mixed = text | {"query": np.arange(len(rows())) < B}
        retriever.apply(graphdef, params, mixed)


def test_latents_of_each_tower_are_counted_on_their_own():
    idle = jnp.array([4.0, 0, 7])
    before = {"head": {"autoencoder": {"idle": idle}}}
    before = retriever.with_query_tower(before)
    fired_by = {"query": jnp.array([0, 2, 0]), "document": jnp.array([0, 0, 1])}
    after = retriever.after_step(before, fired_by)
    document, query = towers_of(after)
    assert document["head"]["autoencoder"]["idle"].tolist() == [5, 1, 0]
    assert query["head"]["autoencoder"]["idle"].tolist() == [5, 0, 8]
    one, _ = towers_of(before)
    after = retriever.after_step(one, fired_by)
    assert QUERY_TOWER not in after
    assert after["head"]["autoencoder"]["idle"].tolist() == [5, 0, 0]
    assert retriever.after_step(before, {}) is before


def products(jaxpr):
    """Matrix products in a computation, at any depth."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name == "dot_general"
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr),
        ):
            inner = getattr(value, "jaxpr", value)
            count += products(inner) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.parametrize("queries", ["static", "words"])
def test_queries_of_ids_alone_meet_no_encoder(queries):
    spec = spec_of("splade", queries=queries, special_ids=(2,))
    graphdef, params = retriever.split(spec)[0], retriever.init_params(spec, 0)
    if queries == "static":
        weights = np.random.default_rng(2).uniform(1, 2, VOCAB).astype(np.float32)
        params["head"]["static"] = weights
    else:
        weights = np.ones(VOCAB, np.float32)
    expected = np.zeros((B, VOCAB), np.float32)
    for row, ids in zip(expected, rows()[:B], strict=True):
        kept = [i for i in ids if i != 2]
        row[kept] = weights[kept]

    def encode_batch(params, batch):
        batch = dict(batch)
        return apply_batch(graphdef, params, batch.pop("texts"), **batch)

    # Nothing of the encoder reaches the queries.
    broken = params | {"encoder": jax.tree.map(lambda x: x * np.nan, params["encoder"])}
    views = jax.jit(encode_batch)(broken, apart())
    found = views["query"]["terms"]
    np.testing.assert_array_equal(found.weights_BV, expected)
    np.testing.assert_array_equal(found.raw_BV, expected)
    assert np.isnan(views["document"]["terms"].raw_BV).all()

    # And no matrix product is made for them, with the documents' as the measure.
    one = [text_of(rows())]

    def count(spec, role, parts=one):
        graphdef, abstract = retriever.split(spec)
        return products(
            jax.make_jaxpr(lambda p: retriever.apply(graphdef, p, parts, role=role))(
                abstract
            ).jaxpr
        )

    assert count(spec, "query") == 0
    # Queries, keys, values, two of attention, three behind it and two of a head.
    assert count(spec, "document") == count(spec_of("splade"), "query") == 10
    # In a batch, the documents alone make all the products there are.
    whole = products(jax.make_jaxpr(encode_batch)(params, apart()).jaxpr)
    parts = [
        {"ids": part["ids"], "mask": part["mask"]} for part in apart()["texts"]["parts"]
    ]
    assert len(parts) == 2 and whole == count(spec, "document", parts)
    # All that parts do not share is attention and, on a CPU, the tiles of the head.
    assert whole == count(spec, "document") + 3


def test_a_spec_with_towers_comes_back():
    spec = spec_of("splade", "separate")
    assert RetrieverSpec.from_dict(spec.to_dict()) == spec
    # Models that were saved without the field have shared towers.
    values = spec.to_dict()
    del values["towers"]
    assert RetrieverSpec.from_dict(values) == dataclasses.replace(spec, towers="shared")
