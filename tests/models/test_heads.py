"""Heads: every entry of the table keeps the contract, and LexEcho its options."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import tiny

from lsrjax.checkpoint import saved_model, train_states
from lsrjax.models import retriever
from lsrjax.models.dense_heads import Autoencoder, after_step
from lsrjax.models.heads import HEADS
from lsrjax.models.lookups import CLASS
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.texts import Texts
from lsrjax.models.views import (
    SPARSE,
    Bag,
    Code,
    MultiVector,
    Vector,
    score_all,
    score_groups,
)

B, L, D, V, PIVOT = 3, 7, 12, 53, 41
SPECIAL = (1, 2)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SPECS = {
    "splade": [
        {"tied": True},
        {"tied": False},
        {"tied": True, "pooling": "sum"},
        {"tied": True, "pooling": "cls"},
        {"tied": True, "queries": "static", "special_ids": SPECIAL},
        {"tied": True, "queries": "words", "special_ids": SPECIAL},
    ],
    "milco": [
        {"lexecho": False},
        {"lexecho": True},
        {"translations": 3, "stems": 23, "ngrams": 64},
    ],
    "token_weights": [
        {"special_ids": SPECIAL},
        {"queries": "static", "special_ids": SPECIAL},
        {"queries": "words", "special_ids": SPECIAL},
    ],
    "dense": [
        {"pooling": "cls"},
        {"pooling": "mean", "embedding_size": 5, "normalize": False},
    ],
    "csr": [
        {
            "pooling": "mean",
            "latents": 11,
            "active_latents": 2,
            "revived_latents": 3,
            "dead_after": 2,
        }
    ],
    "m3": [
        {"special_ids": SPECIAL, "view_weights": (1.0, 0.3, 0.5)},
        {"view_weights": (1, 1, 1), "embedding_size": 5, "token_bias": True},
    ],
    "aggretriever": [
        {"tied": True, "normalize": True, "semantic_size": 3, "lexical_size": 5},
        {"normalize": False, "tied": False, "semantic_size": 3, "lexical_size": 40},
    ],
    "hybrid": [
        {"tied": True, "view_weights": (1.0, 0.5)},
        {"tied": False, "embedding_size": 5, "embedding_pooling": "mean"},
    ],
    "colbert": [{}, {"embedding_size": 5, "skip_ids": (3, 4, 5)}],
}
CASES = [(head, options) for head in HEADS for options in SPECS.get(head, ())]


def test_every_head_has_a_case():
    missing = [head for head in HEADS if not SPECS.get(head)]
    assert not missing, f"add the options of a spec of {', '.join(missing)} to SPECS"


def spec_of(head="milco", **options):
    encoder = tiny.encoder(
        vocab_size=V, hidden_size=D, max_positions=L, initializer_range=0.3
    )
    sizes = {"pivot_vocab_size": PIVOT, "pivot_hidden_size": 10}
    sizes = sizes if head == "milco" else {}
    return RetrieverSpec.of(head=head, encoder=encoder, **sizes, **options)


def texts():
    rng = np.random.default_rng(0)
    mask = (np.arange(L) < np.array([[L], [4], [1]])).astype(np.int32)
    return rng.integers(1, V, (B, L)).astype(np.int32) * mask, mask


# The first text is a query.
QUERY = jnp.array([True, False, False])


def call(head, hidden_BLD, ids_BL, mask_BL, words_VD, query_B=None):
    """The head's views of texts of one length."""
    part = {"ids": ids_BL, "mask": mask_BL}
    part |= {} if query_B is None else {"query": query_B}
    hidden_TD = hidden_BLD.reshape(-1, hidden_BLD.shape[-1])
    return head(hidden_TD, Texts.of([part]), words_VD)


def values(view):
    """What scores are made of."""
    fields = ("weights_BV", "weights_BK", "embedding_BD", "tokens_BLD")
    (found,) = (getattr(view, field) for field in fields if hasattr(view, field))
    return found


def views_of(spec, head, hidden, words):
    """The views of all texts; of queries without an encoder, from their ids."""
    ids, mask = texts()
    if spec.encodes_queries:
        return call(head, hidden, ids, mask, words, QUERY)
    query = head.from_ids(ids[:1], mask[:1])
    documents = call(head, hidden[1:], ids[1:], mask[1:], words)
    return jax.tree.map(lambda *x: jnp.concatenate(x), query, documents)


def made(head, spec, seed=0):
    """A head with random parameters, as one program."""
    build = HEADS[head]
    return nnx.jit(lambda: build(spec, dtype=jnp.float32, rngs=nnx.Rngs(seed)))()


def filled(module):
    """With tables of tokens that are not empty, as an initialisation leaves them."""
    rng = np.random.default_rng(7)
    if getattr(module, "dictionary", None) is not None:
        for table in (module.dictionary, module.stems):
            terms = rng.integers(0, PIVOT, table.terms.shape)
            table.terms[...] = terms.astype(np.float32)
        for table in (module.stems, module.ngrams):
            characters = rng.integers(0, 9, table.characters.shape)
            table.characters[...] = characters.astype(np.float32)
        module.stems.characters[...] += CLASS
        for table in (module.dictionary, module.stems, module.ngrams):
            table.weights[...] = rng.uniform(0.1, 1, table.weights.shape)
    return module


@functools.partial(jax.jit, static_argnums=(0, 1))
def weighted_sum(spec, graphdef, head_params, hidden, words, weights):
    """A scalar of every view, its gradients, and the views."""

    def total(head_params, hidden, words):
        head = nnx.merge(graphdef, head_params)
        views = views_of(spec, head, hidden, words)
        parts = [(weights[name] * values(view)).sum() for name, view in views.items()]
        return sum(parts), views

    gradients, views = jax.grad(total, (0, 1, 2), has_aux=True)(
        head_params, hidden, words
    )
    return gradients, views


@pytest.mark.parametrize(("head", "options"), CASES, ids=str)
def test_contract(head, options):
    """Shapes and types of the views; finite non-zero gradients of every parameter."""
    spec = spec_of(head, **options)
    module = filled(made(head, spec, 1))
    graphdef, params = nnx.split(module)
    rng = np.random.default_rng(6)
    hidden = rng.normal(size=(B, L, D)).astype(np.float32)
    words = rng.normal(size=(V, D)).astype(np.float32)
    _, mask = texts()
    shapes = jax.eval_shape(lambda h, w: views_of(spec, module, h, w), hidden, words)
    weights = {
        name: rng.normal(size=values(view).shape).astype(np.float32)
        for name, view in shapes.items()
    }
    gradients, views = weighted_sum(spec, graphdef, params, hidden, words, weights)

    assert list(views) == list(spec.views)
    for name, size in spec.views.items():
        check_view(views[name], size, options)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients[0]):
        assert np.isfinite(leaf).all(), path
        # What is not learned has no gradient.
        given = "idle|(dictionary|stems).*terms|characters"
        fixed = re.search(given, str(path)) is not None
        assert np.any(leaf) != fixed, path
    assert not np.asarray(gradients[1])[mask == 0].any()
    assert np.asarray(gradients[2]).any() == options.get("tied", False)


@pytest.mark.parametrize(("head", "options"), CASES, ids=str)
def test_parts_are_each_alone(head, options):
    """A query of one length and documents of two others, end to end."""
    spec = spec_of(head, **options)
    module = filled(made(head, spec, 1))
    rng = np.random.default_rng(4)
    words = rng.normal(size=(V, D)).astype(np.float32)
    parts = []
    for number, (texts, length) in enumerate(((1, 5), (3, 2), (2, 7))):
        mask = np.arange(length) < rng.integers(1, length + 1, texts)[:, None]
        part = {"ids": jnp.asarray(rng.integers(1, V, mask.shape) * mask), "mask": mask}
        if spec.encodes_queries:
            part["query"] = jnp.full(texts, number == 0)
        parts.append(part)
    hidden = [
        jnp.asarray(rng.normal(size=(*part["ids"].shape, D)), jnp.float32)
        for part in parts
    ]

    @nnx.jit
    def views(module, hidden, parts, words):
        end_to_end = jnp.concatenate([h.reshape(-1, D) for h in hidden])
        together = module(end_to_end, Texts.of(parts), words)
        alone = [
            module(h.reshape(-1, D), Texts.of([part]), words)
            for h, part in zip(hidden, parts, strict=True)
        ]
        return together, alone

    together, alone = views(module, hidden, parts, words)
    assert list(together) == list(spec.views)
    for name, view in together.items():
        found, first = np.asarray(values(view)), 0
        for own in alone:
            want = np.asarray(values(own[name]))
            have = found[first : first + len(want)]
            if isinstance(view, (Bag, MultiVector)):
                length = want.shape[1]
                assert not have[:, length:].any()
                have = have[:, :length]
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6, err_msg=name)
            first += len(want)
        assert first == len(found) == 6


def check_view(view, size, options):
    if isinstance(view, Code):
        assert view.weights_BV.shape == view.raw_BV.shape == (B, size)
        k = options["active_latents"]
        largest = np.sort(np.maximum(view.raw_BV, 0), axis=1)[:, -k:]
        np.testing.assert_allclose(np.sort(view.weights_BV, axis=1)[:, -k:], largest)
        assert (view.active_terms() <= k).all()
    elif isinstance(view, Vector):
        assert view.weights_BV.shape == view.raw_BV.shape == (B, size)
        assert view.weights_BV.dtype == jnp.float32
        assert (view.weights_BV >= 0).all()
        logits = options.get("queries", "encoded") == "encoded"
        if logits and "pooling" not in options and size != options.get("ngrams"):
            expected = np.log1p(np.maximum(view.raw_BV, 0))
            np.testing.assert_allclose(view.weights_BV, expected, rtol=1e-5)
    elif isinstance(view, Bag):
        assert view.ids_BK.shape == view.weights_BK.shape == (B, L)
        assert view.size == size
        assert (view.ids_BK < size).all()
    else:
        assert values(view).shape in ((B, size), (B, L, size))
        lengths = np.linalg.norm(values(view), axis=-1)
        # M3 divides a query's tokens by their number; the first text is a query.
        lengths = lengths[1:] if "view_weights" in options else lengths
        if options.get("normalize", True):
            assert (np.isclose(lengths, 1, atol=1e-5) | (lengths == 0)).all()
    if isinstance(view, SPARSE):
        assert (view.active_terms() > 0).any()


@pytest.mark.parametrize(("head", "options"), CASES, ids=str)
def test_spec_comes_back(head, options):
    spec = spec_of(head, **({"special_ids": (0, 2)} | options))
    assert RetrieverSpec.from_dict(spec.to_dict()) == spec
    _, abstract = retriever.split(spec)
    params = retriever.init_params(spec, 0)
    assert jax.tree.map(lambda a: a.shape, params) == jax.tree.map(
        lambda a: a.shape, abstract
    )


@pytest.mark.parametrize(("head", "options"), CASES, ids=str)
def test_what_is_saved_comes_back(head, options, tmp_path):
    """The parameters bit for bit, and a spec of the same structure."""
    spec = spec_of(head, **options)
    graphdef, abstract = retriever.split(spec)
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), abstract
    )
    saved_model.write_model_files(tmp_path, spec, GOLDEN / "bert", None)
    checkpoints = train_states.Checkpoints(tmp_path, keep=1, metric="R@5")
    checkpoints.save({"step": jnp.int32(1), "params": params, "opt_state": ()}, None)
    checkpoints.close()
    model = saved_model.load_model(tmp_path)
    assert model.spec == spec and retriever.split(model.spec)[0] == graphdef
    assert jax.tree.structure(model.params) == jax.tree.structure(params)
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(model.params),
        jax.tree.leaves(params),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted, err_msg=str(path))


# One dimension, kernel 1 and bias 0: a token's weight is relu of its hidden state.
HIDDEN = np.array([[2.0, 5, 3, 5, 1, -4, 9]], np.float32)[:, :, None]
IDS = np.array([[7, 8, 7, 8, 2, 3, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 1, 0]], np.int32)


def echo(scale=1.0, **options):
    encoder = tiny.encoder(vocab_size=V, hidden_size=1, num_heads=1, max_positions=L)
    sizes = {"pivot_vocab_size": PIVOT, "pivot_hidden_size": 10}
    spec = RetrieverSpec.of("milco", encoder, lexecho=True, **sizes, **options)
    module = made("milco", spec).echo
    module.kernel[...], module.bias[...] = jnp.ones(1), jnp.zeros(())
    module.scale[...] = jnp.float32(scale)
    texts = Texts.of([{"ids": jnp.asarray(IDS), "mask": jnp.asarray(MASK)}])
    return nnx.jit(lambda module, hidden: module(hidden, texts))(module, HIDDEN[0])


def test_echo_sums_repeats_and_leaves_padding_out():
    bag = echo(scale=0.5)
    np.testing.assert_array_equal(bag.ids_BK, IDS)
    expected = [[1, 2.5, 1.5, 2.5, 0.5, 0, 0]]
    np.testing.assert_allclose(bag.weights_BK, expected)
    assert bag.active_terms().tolist() == [3]


def test_echo_keeps_the_strongest_repeat():
    bag = echo(repeats="max")
    # Of the two 8s of equal weight, the first one stays.
    np.testing.assert_allclose(bag.weights_BK, [[0, 5, 3, 0, 1, 0, 0]])


def test_echo_leaves_special_tokens_out():
    bag = echo(exclude_special_tokens=True, special_ids=(2, 8))
    np.testing.assert_allclose(bag.weights_BK, [[2, 0, 3, 0, 0, 0, 0]])
    kept = echo(exclude_special_tokens=False, special_ids=(2, 8))
    np.testing.assert_allclose(kept.weights_BK, [[2, 5, 3, 5, 1, 0, 0]])


def head_of(name, params=None, **options):
    """A head over one-dimensional states, and what it gives for `HIDDEN`."""
    encoder = tiny.encoder(vocab_size=V, hidden_size=1, num_heads=1, max_positions=L)
    spec = RetrieverSpec.of(name, encoder, **options)
    module = made(name, spec)
    for path, value in (params or {}).items():
        target = functools.reduce(getattr, path.split("."), module)
        target[...] = jnp.asarray(value, jnp.float32)
    words = jnp.linspace(-1, 1, V)[:, None]

    def views(query=False):
        ids, mask = jnp.asarray(IDS), jnp.asarray(MASK)
        if query and not spec.encodes_queries:
            return module.from_ids(ids, mask)
        return nnx.jit(call)(module, HIDDEN, ids, mask, words, jnp.array([query]))

    return views


def plain_splade():
    """The module of `head_of("splade", tied=True)`, with no bias set."""
    encoder = tiny.encoder(vocab_size=V, hidden_size=1, num_heads=1, max_positions=L)
    return made("splade", RetrieverSpec.of("splade", encoder, tied=True))


def weights_of(view):
    """What a view weighs each term with, [B, V]."""
    if isinstance(view, Vector):
        return view.weights_BV
    rows = np.arange(len(view.ids_BK))[:, None]
    found = np.zeros((len(rows), V), np.float32)
    np.add.at(found, (rows, np.asarray(view.ids_BK)), np.asarray(view.weights_BK))
    return found


@pytest.mark.parametrize("queries", ["words", "static"])
@pytest.mark.parametrize("head", ["splade", "token_weights"])
def test_queries_without_an_encoder_are_their_distinct_words(head, queries):
    weights = np.linspace(0.5, 2, V) if queries == "static" else np.ones(V)
    views = head_of(
        head,
        {"static": weights} if queries == "static" else {},
        queries=queries,
        special_ids=(2,),
    )
    # 7 and 8 come twice, 2 is special, 0 stands in the padding.
    expected = np.zeros(V)
    expected[[3, 7, 8]] = weights[[3, 7, 8]]
    query = views(query=True)["terms"]
    np.testing.assert_allclose(weights_of(query)[0], expected)
    document = views()["terms"]
    encoded = head_of(head, special_ids=(2,))()["terms"]
    np.testing.assert_allclose(weights_of(document), weights_of(encoded))
    score = weights_of(document)[0] @ expected
    np.testing.assert_allclose(query.score_all(document)[0, 0], score, rtol=1e-6)


def test_sum_pooling_is_the_sum_of_the_tokens_weights_cls_the_first_one():
    plain = {"mlm.bias": np.full(V, 0.3)}
    found = head_of("splade", plain, tied=True, pooling="sum")()["terms"].weights_BV
    first = head_of("splade", plain, tied=True, pooling="cls")()["terms"].weights_BV
    expected = 0
    for token in range(int(MASK.sum())):
        states = HIDDEN[:, token : token + 1]
        module = plain_splade()
        module.mlm.bias[...] = jnp.full(V, 0.3)
        one = jnp.ones((1, 1), jnp.int32)
        words = jnp.linspace(-1, 1, V)[:, None]
        view = nnx.jit(call)(module, states, one, one, words)["terms"]
        expected += np.asarray(view.weights_BV)
        if token == 0:
            np.testing.assert_allclose(first, expected, rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_token_weights_keep_the_strongest_repeat_and_no_special_token():
    plain = {"weigh.kernel": [1.0], "weigh.bias": 0.0}
    bag = head_of("token_weights", plain, special_ids=(2,))()["terms"]
    np.testing.assert_allclose(bag.weights_BK, [[0, 5, 3, 0, 0, 0, 0]])


@pytest.mark.parametrize(("pooling", "expected"), [("cls", 2.0), ("mean", 2.0)])
def test_dense_pools_the_states_of_tokens(pooling, expected):
    found = head_of("dense", pooling=pooling, normalize=False)()["dense"]
    np.testing.assert_allclose(found.embedding_BD, [[expected]])


def test_colbert_leaves_punctuation_out_of_documents_only():
    views = head_of("colbert", skip_ids=(8, 3), normalize=False)
    document, query = views()["tokens"], views(query=True)["tokens"]
    assert document.mask_BL.tolist() == [[True, False, True, False, True, False, False]]
    assert query.mask_BL.tolist() == [[True] * 6 + [False]]
    np.testing.assert_allclose(document.tokens_BLD[0, :, 0], [2, 0, 3, 0, 1, 0, 0])


def csr(idle):
    """An autoencoder whose latents have been idle so long, and a few embeddings."""
    options = {"latents": 6, "active_latents": 1, "revived_latents": 2, "dead_after": 3}
    encoder = tiny.encoder(vocab_size=V, hidden_size=4, num_heads=1, max_positions=L)
    spec = RetrieverSpec.of("csr", encoder, pooling="cls", **options)
    module = Autoencoder(spec.options, 4, rngs=nnx.Rngs(0))
    module.idle[...] = jnp.asarray(idle, jnp.float32)
    module.center[...] = jnp.array([0.1, -0.2, 0.3, 0.0])
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    return module, jnp.asarray(x)


def by_hand(module, x, count, allowed=None):
    """What `count` of the allowed latents decode to, text by text."""
    kernel, center = np.asarray(module.kernel[...]), np.asarray(module.center[...])
    raw = (np.asarray(x) - center) @ kernel + np.asarray(module.bias[...])
    out = np.zeros_like(np.asarray(x))
    for row in range(len(raw)):
        order = [j for j in np.argsort(-raw[row]) if allowed is None or j in allowed]
        for j in order[:count]:
            out[row] += max(raw[row, j], 0) * kernel[:, j]
    return out


def test_errors_of_the_autoencoder_are_those_of_its_decoding():
    module, x = csr([0, 5, 3, 0, 2, 0])
    code = module(x)
    left = np.asarray(x) - np.asarray(module.center[...]) - by_hand(module, x, 1)
    np.testing.assert_allclose(
        code.error_B1[:, 0], np.square(left).mean(axis=1), rtol=1e-4
    )
    more = np.asarray(x) - np.asarray(module.center[...]) - by_hand(module, x, 4)
    np.testing.assert_allclose(
        code.error_4k_B1[:, 0], np.square(more).mean(axis=1), rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(
        code.rest_BD, left + np.asarray(module.center[...]), rtol=1e-4, atol=1e-6
    )
    # Latents 1 and 2 are dead.
    missed = left - by_hand(module, x, 2, allowed={1, 2})
    expected = np.square(missed).mean(axis=1)
    np.testing.assert_allclose(code.error_dead_B1[:, 0], expected, rtol=1e-4)


def test_only_the_dead_learn_what_is_left_over():
    module, x = csr([0, 5, 3, 0, 2, 0])
    graphdef, params = nnx.split(module)

    def error(params):
        return nnx.merge(graphdef, params)(x).error_dead_B1.sum()

    gradient = jax.grad(error)(params)
    learns = np.asarray(gradient["kernel"][...]).any(axis=0)
    assert not learns[[0, 3, 4, 5]].any() and learns[[1, 2]].any()
    module, x = csr([0] * 6)
    assert not np.asarray(module(x).error_dead_B1).any()


def test_idle_steps_are_counted_over_the_batch():
    before = {"head": {"autoencoder": {"idle": jnp.array([4.0, 0, 7])}}}
    after = after_step(before, jnp.array([0, 2, 1]))
    assert after["head"]["autoencoder"]["idle"].tolist() == [5, 0, 0]
    assert after_step(before, None) is before


def test_hybrid_is_dense_and_splade_of_the_same_states():
    bias = np.linspace(-0.5, 1, V)
    options = {"embedding_pooling": "mean", "normalize": False, "tied": True}
    head = head_of("hybrid", {"mlm.bias": bias}, view_weights=(2.0, 0.5), **options)()
    terms = head_of("splade", {"mlm.bias": bias}, tied=True)()["terms"]
    dense = head_of("dense", pooling="mean", normalize=False)()["dense"]
    np.testing.assert_array_equal(head["terms"].weights_BV, terms.weights_BV)
    np.testing.assert_array_equal(head["dense"].embedding_BD, dense.embedding_BD)
    expected = 2 * dense.embedding_BD[0] @ dense.embedding_BD[0]
    expected += 0.5 * terms.weights_BV[0] @ terms.weights_BV[0]
    np.testing.assert_allclose(score_all(head, head)[0, 0], expected, rtol=1e-6)


def test_aggretriever_by_loops():
    """Over every token, term and number, in float64."""
    rng = np.random.default_rng(5)
    size, semantic = 4, 3
    params = {
        "mlm.bias": rng.normal(size=V),
        "semantic.kernel": rng.normal(size=(1, semantic)),
        "semantic.bias": rng.normal(size=semantic),
        "strength.kernel": [[0.7]],
        "strength.bias": [-0.4],
    }
    sizes = {"semantic_size": semantic, "lexical_size": size}
    found = head_of("aggretriever", params, tied=True, **sizes)()["dense"]
    module = plain_splade()
    words, largest = np.linspace(-1, 1, V), np.full(V, -np.inf)
    tokens = int(MASK.sum())
    for token in range(1, tokens):
        state = float(HIDDEN[0, token, 0])
        out = float(module.mlm.transform(jnp.full((1, 1), state))[0, 0])
        exp = np.exp(out * words + params["mlm.bias"])
        largest = np.maximum(largest, (0.7 * state - 0.4) * exp / exp.sum())
    kept, lexical = largest[V % (2 * size) :], []
    for number in range(size):
        pair = [max(kept[2 * number + sign :: 2 * size]) for sign in (0, 1)]
        lexical.append(pair[0] if pair[0] > pair[1] else -pair[1])
    first = float(HIDDEN[0, 0, 0])
    own = first * params["semantic.kernel"][0] + params["semantic.bias"]
    np.testing.assert_allclose(
        found.embedding_BD[0], [*own, *lexical], rtol=1e-4, atol=1e-6
    )


def test_m3_scores_are_a_weighted_sum_with_the_mean_of_the_best_matches():
    options = {"view_weights": (1.0, 0.3, 0.5), "normalize": False}
    plain = {"terms.weigh.kernel": [1.0], "terms.weigh.bias": 0.0}
    plain |= {"tokens.projection.kernel": [[1.0]]}
    views = head_of("m3", plain, **options)
    query, document = views(query=True), views()
    # Of all tokens but the first: 5, 3, 5, 1, -4; the largest is 5, or -4 for the last.
    best = (5 * 5 + 3 * 5 + 5 * 5 + 1 * 5 + 4 * 4) / 5
    # The strongest repeats of 7, 8, 2 and 3: 3, 5, 1 and 0.
    terms = 3 * 3 + 5 * 5 + 1 * 1
    expected = 1.0 * 2 * 2 + 0.3 * terms + 0.5 * best
    np.testing.assert_allclose(score_all(query, document), [[expected]], rtol=1e-5)
    found = score_groups(query, document)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-5)
