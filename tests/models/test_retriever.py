"""A batch cut into parts and chunks, against every text encoded alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import tiny

from lsrjax.convert.names import by_layer
from lsrjax.data.batching.length_shapes import Shape, cut
from lsrjax.distributed.trees import path_name
from lsrjax.models import batch, retriever
from lsrjax.models.batch import apply_batch
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.views import Vector

B, L, VOCAB, PIVOT_VOCAB = 3, 7, 53, 41
COUNTS = {"query": 1, "document": 2}
N = B * sum(COUNTS.values())
WHOLE = Shape(((N, L),))
# Cuts within the names, and parts of one text.
PARTS = Shape(((4, 3), (1, 4), (4, 7)))
SHAPES = {"whole": WHOLE, "parts": PARTS}
LENGTHS = [7, 1, 4, 3, 6, 2, 7, 3, 2]


def spec_of(head, hidden_dropout=0.0, attention_dropout=0.0):
    encoder = tiny.encoder(
        "bert" if head == "splade" else "xlm-roberta",
        vocab_size=VOCAB,
        max_positions=L + 2,
        pad_token_id=1,
        hidden_dropout=hidden_dropout,
        attention_dropout=attention_dropout,
        # Random weights of the usual size make all texts nearly alike.
        initializer_range=0.3,
    )
    if head == "splade":
        return RetrieverSpec.of(head, encoder, tied=True)
    return RetrieverSpec.of(
        head,
        encoder,
        lexecho=True,
        pivot_vocab_size=PIVOT_VOCAB,
        pivot_hidden_size=10,
    )


@functools.cache
def model(head, hidden_dropout=0.0, attention_dropout=0.0):
    spec = spec_of(head, hidden_dropout, attention_dropout)
    params = retriever.init_params(spec_of(head), 3)
    if "source" in spec.views:
        params["head"]["echo"]["bias"] = jnp.float32(0.5)
    return retriever.split(spec)[0], params


@functools.cache
def rows():
    """Queries, then documents by query; few ids, so that they repeat in a text."""
    rng = np.random.default_rng(0)
    return [rng.integers(2, 9, length).tolist() for length in LENGTHS]


def named(rows):
    """The same by name."""
    return {"query": rows[:B], "document": rows[B:]}


def vectors(view):
    """What of a view is compared, by term: [texts, terms] of each kind of number."""
    if isinstance(view, Vector):
        return {"weights": view.weights_BV, "raw": view.raw_BV}
    texts = jnp.arange(len(view.ids_BK))[:, None]
    dense = jnp.zeros((len(view.ids_BK), view.size))
    return {"weights": dense.at[texts, view.ids_BK].add(view.weights_BK)}


@functools.cache
def incoming(head):
    """The gradient that comes into every term of every text."""
    rng = np.random.default_rng(1)
    sizes = spec_of(head).views
    return {
        name: {
            kind: rng.normal(size=(N, size)).astype(np.float32)
            for kind in ("weights", "raw")
        }
        for name, size in sizes.items()
    }


def weighted(head, views):
    """The sum of all terms, each with its own weight, and what was summed."""
    found = {name: vectors(view) for name, view in views.items()}
    total = sum(
        (incoming(head)[name][kind] * x).sum()
        for name, kinds in found.items()
        for kind, x in kinds.items()
    )
    return total, found


@functools.cache
def alone(head):
    """Terms of all texts and the gradient, every text encoded on its own."""
    graphdef, params = model(head)
    mask = np.arange(L) < np.array(LENGTHS)[:, None]
    ids = np.ones((N, L), np.int32)
    ids[mask] = np.concatenate(rows())

    def objective(params, texts):
        def one(text):
            text = jax.tree.map(lambda x: x[None], text)
            return retriever.apply(graphdef, params, text)

        views = jax.lax.map(one, texts)
        return weighted(head, jax.tree.map(lambda x: x[:, 0], views))

    return differentiated(
        objective, params, {"ids": ids, "mask": mask.astype(np.int32)}
    )


def differentiated(objective, params, texts):
    jitted = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (_, found), gradient = jitted(params, texts)
    return jax.device_get((found, gradient))


def batched(head, shape, *, dropout=(0.0, 0.0), key=None, **options):
    """The same from `apply_batch`."""
    graphdef, params = model(head, *dropout)

    def objective(params, texts):
        views = apply_batch(graphdef, params, texts, dropout_key=key, **options)
        assert views.keys() == COUNTS.keys()
        by_name = [views[name] for name in COUNTS]
        return weighted(head, jax.tree.map(lambda *x: jnp.concatenate(x), *by_name))

    return differentiated(objective, params, cut(named(rows()), shape, pad_id=1))


def assert_close(found, expected):
    """Terms and gradients within 1e-6 of the largest entry of each array."""
    (terms, gradient), (expected_terms, expected_gradient) = found, expected
    assert jax.tree.structure(terms) == jax.tree.structure(expected_terms)
    # Each layer's queries, keys and values have a scale of their own.
    gradient, expected_gradient = (
        params | {"encoder": by_layer(params["encoder"], "bert")}
        for params in (gradient, expected_gradient)
    )
    # The gradient of the keys' bias is 0 but for rounding, hence a smallest scale.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    for tree, wanted, smallest in (
        (terms, expected_terms, 0.0),
        (gradient, expected_gradient, 0.01 * largest),
    ):
        leaves = jax.tree_util.tree_leaves_with_path(wanted)
        for (path, want), have in zip(leaves, jax.tree.leaves(tree), strict=True):
            scale = max(smallest, np.abs(want).max())
            np.testing.assert_allclose(
                have, want, atol=1e-6 * scale, rtol=0, err_msg=path_name(path)
            )


@pytest.mark.parametrize(
    ("head", "shape", "chunk"),
    [
        ("splade", "whole", 0),
        pytest.param("splade", "parts", 3, marks=pytest.mark.slow),
        pytest.param("milco", "whole", 4, marks=pytest.mark.slow),
        pytest.param("milco", "parts", 0, marks=pytest.mark.slow),
        pytest.param("milco", "parts", 1, marks=pytest.mark.slow),
        ("milco", "parts", 3),
    ],
)
def test_a_batch_is_its_texts_encoded_alone(head, shape, chunk):
    assert_close(batched(head, SHAPES[shape], chunk=chunk), alone(head))


@pytest.mark.parametrize(
    ("head", "remat", "chunk"),
    [
        pytest.param("splade", "dots", 0, marks=pytest.mark.slow),
        pytest.param("milco", "dots", 3, marks=pytest.mark.slow),
        ("milco", "layer", 0),
    ],
)
def test_what_is_computed_again_changes_nothing(head, remat, chunk):
    assert_close(batched(head, PARTS, remat=remat, chunk=chunk), alone(head))


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(graphdef, params, texts, chunk=0, key=None):
    return apply_batch(graphdef, params, texts, chunk=chunk, dropout_key=key)


def test_views_are_those_of_the_names_in_the_order_of_the_examples():
    """LexEcho's bags say which text they are of."""
    graphdef, params = model("milco")
    wanted = named(rows())
    for shape, chunk in ((WHOLE, 0), (PARTS, 0), (PARTS, 3)):
        views = encode(graphdef, params, cut(wanted, shape, pad_id=1), chunk)
        assert views.keys() == wanted.keys()
        for name, texts in wanted.items():
            assert set(views[name]) == {"pivot", "source"}
            bag = views[name]["source"]
            assert bag.ids_BK.shape == (len(texts), L)
            for ids, weights, row in zip(
                bag.ids_BK, bag.weights_BK, texts, strict=True
            ):
                assert ids[: len(row)].tolist() == row
                assert not weights[len(row) :].any()


DROPOUT = {"hidden": (0.3, 0.0), "attention": (0.0, 0.3)}
KEY = jax.random.key(7)


@functools.cache
def dropped(kind):
    return batched("milco", WHOLE, dropout=DROPOUT[kind], key=KEY)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param("whole", {"chunk": 4, "remat": "layer"}, marks=pytest.mark.slow),
        pytest.param("parts", {}, marks=pytest.mark.slow),
        ("parts", {"chunk": 3, "remat": "dots"}),
    ],
    ids=["chunks", "parts", "parts and chunks"],
)
@pytest.mark.parametrize("kind", DROPOUT)
def test_dropout_is_the_same_however_a_batch_is_cut(kind, shape, options):
    found = batched("milco", SHAPES[shape], dropout=DROPOUT[kind], key=KEY, **options)
    assert_close(found, dropped(kind))


@pytest.mark.parametrize("kind", DROPOUT)
def test_dropout_is_drawn_for_each_text_and_from_the_key(kind):
    graphdef, params = model("milco", *DROPOUT[kind])

    def raw(texts, key):
        views = encode(graphdef, params, cut(named(texts), WHOLE, pad_id=1), 0, key)
        return np.concatenate([views[name]["pivot"].raw_BV for name in COUNTS])

    plain = alone("milco")[0]["pivot"]["raw"]
    np.testing.assert_allclose(raw(rows(), None), plain, atol=1e-6, rtol=0)
    # Texts that are equal are dropped differently, and again under another key.
    equal = [rows()[0]] * N
    found = np.concatenate([raw(equal, KEY), raw(equal, jax.random.key(8))])
    apart = np.abs(found[:, None] - found[None]).max(axis=2)
    assert (apart[~np.eye(2 * N, dtype=bool)] > 1e-3).all()
    np.testing.assert_array_equal(raw(equal, KEY), found[:N])


def test_the_gradient_of_the_reordering_is_that_of_plain_indexing():
    rng = np.random.default_rng(0)
    rows = {
        name: rng.normal(size=(11, *rest)).astype(np.float32)
        for name, rest in (("vectors", (5,)), ("bags", (3, 2)))
    }
    order = rng.permutation(11).astype(np.int32)
    places = {"query": order[:4], "document": order[4:]}

    def plain(rows):
        return {
            name: {kind: x[place] for kind, x in rows.items()}
            for name, place in places.items()
        }

    found, backward = jax.vjp(lambda rows: batch._named(rows, places), rows)
    expected, plain_backward = jax.vjp(plain, rows)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    g = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), expected)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(backward(g)))
    jax.tree.map(np.testing.assert_array_equal, backward(g), plain_backward(g))


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("splade", {"tied": True}),
        ("splade", {"tied": True, "pooling": "cls"}),
        ("dense", {"pooling": "cls", "normalize": False}),
        ("dense", {"pooling": "mean", "normalize": False}),
        ("dense", {"pooling": "last", "normalize": False}),
    ],
)
def test_a_prompt_is_read_and_not_pooled(head, options):
    """Two tokens of queries and one of documents; a text may have no more."""
    spec = RetrieverSpec.of(
        *(head, spec_of("splade").encoder),
        **options,
        query_unpooled=2,
        document_unpooled=1,
    )
    params = retriever.init_params(spec, 3)
    graphdef, _ = retriever.split(spec)
    encoded = jax.jit(functools.partial(retriever.apply, graphdef))
    states_of = jax.jit(
        lambda params, ids, mask: nnx.merge(graphdef, params).encoder(ids, mask)
    )
    ids = np.random.default_rng(0).integers(2, VOCAB, (6, L))
    lengths, query = np.array([7, 4, 3, 5, 2, 2]), np.arange(6) % 2 == 0
    for left in (False, True):
        mask = np.arange(L)[None] < lengths[:, None]
        mask = mask[:, ::-1] if left else mask
        text = {"ids": ids, "mask": mask, "query": query}
        (view,) = encoded(params, text).values()
        states = states_of(params, ids, mask)
        if head == "splade":
            whole = nnx.merge(graphdef, params)
            words = params["encoder"]["embeddings"]["word"]["embedding"]
            flat = states.reshape(6 * L, -1)
            h_TD, w_VD, b_V = whole.head.mlm.factors(flat, words)
            states = (h_TD @ w_VD.T + b_V).reshape(6, L, -1)
        for row, mask_L, is_query, state_LD in zip(
            range(6), mask, query, np.asarray(states), strict=True
        ):
            kept_KD = state_LD[mask_L][2 if is_query else 1 :]
            found = (view.raw_BV if head == "splade" else view.embedding_BD)[row]
            pooled = {
                None: lambda x: x.max(axis=0),
                "cls": lambda x: x[0],
                "mean": lambda x: x.mean(axis=0),
                "last": lambda x: x[-1],
            }[options.get("pooling")]
            if len(kept_KD):
                np.testing.assert_allclose(found, pooled(kept_KD), atol=2e-5)
            elif head == "dense":
                assert not found.any()
            else:
                assert not view.weights_BV[row].any()
