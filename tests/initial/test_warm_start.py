"""Initial weights: what they promise about a model's first outputs."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from programs import tiny
from scipy import sparse, stats

from lsrjax.convert.read import huggingface
from lsrjax.initial import warm_start
from lsrjax.initial.shared_tokens import shared_tokens
from lsrjax.models import retriever
from lsrjax.models.layers import gelu
from lsrjax.models.retriever import RetrieverSpec

BERT = pathlib.Path(__file__).parents[1] / "golden" / "bert"


def layer_norm(x_ND):
    x_ND = x_ND - x_ND.mean(axis=1, keepdims=True)
    return x_ND / x_ND.std(axis=1, keepdims=True)


def test_idf_is_that_of_bm25():
    idf = warm_start.inverse_document_frequency([[1, 1, 2], [1], [1, 3]], 5)
    n = np.array([0, 3, 1, 1, 0])
    np.testing.assert_allclose(idf, np.log(1 + (3 - n + 0.5) / (n + 0.5)), rtol=1e-6)


@pytest.mark.parametrize("D", [64, 128])
def test_lexical_start_makes_a_texts_own_words_its_terms(D):
    V, L = 307, 9
    spec = RetrieverSpec.of(
        head="splade",
        encoder=tiny.encoder(
            vocab_size=V, hidden_size=D, intermediate_size=D, max_positions=L
        ),
        tied=True,
    )
    rng = np.random.default_rng(1)
    idf_V = rng.uniform(1.0, 8.0, V).astype(np.float32)
    params = warm_start.lexical(retriever.init_params(spec, 0), idf_V, seed=0)
    ids_BL = np.stack([rng.choice(np.arange(1, V), L, replace=False) for _ in range(8)])
    mask_BL = np.arange(L) < np.arange(2, 10)[:, None]
    text = {"ids": ids_BL, "mask": mask_BL}
    graphdef, _ = retriever.split(spec)
    encode = jax.jit(lambda p: retriever.apply(graphdef, p, text))
    weights_BV = np.asarray(encode(params)["terms"].weights_BV)

    own_BV = np.zeros((8, V), bool)
    for row, ids, mask in zip(own_BV, ids_BL, mask_BL, strict=True):
        row[ids[mask]] = True
    np.testing.assert_array_equal(weights_BV > 0, own_BV)
    order = stats.spearmanr(weights_BV[own_BV], np.broadcast_to(idf_V, (8, V))[own_BV])
    assert order.statistic > 0.9


def test_identity_passes_through_gelu_and_layer_norm():
    D = 97
    params = {"a": {"b": {"kernel": np.zeros((D, D)), "bias": np.zeros(D)}}}
    changed = warm_start.identity(params, "a/b")["a"]["b"]
    assert not params["a"]["b"]["kernel"].any()  # the argument stays as it was
    x_ND = layer_norm(np.random.default_rng(0).uniform(-1, 1, size=(20, D)))
    assert np.abs(x_ND).max() > 1.5
    y_ND = np.asarray(gelu(x_ND @ changed["kernel"] + changed["bias"]))
    np.testing.assert_allclose(layer_norm(y_ND), x_ND, atol=0.15)
    assert np.corrcoef(y_ND.ravel(), x_ND.ravel())[0, 1] > 0.999


def test_a_value_of_another_shape_is_refused():
    params = {"dense": {"kernel": np.zeros((3, 3)), "bias": np.zeros(4)}}
    with pytest.raises(ValueError, match=r"bias is \(4,\), not \(3,\)"):
        warm_start.identity(params, "dense")


def test_shared_tokens_match_by_place_in_the_word_and_by_role():
    ours = ["<s>", "<pad>", "</s>", "<unk>", "▁Free", "ing", "▁", ",", "▁zzz", "a"]
    english = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "free", "##ing", "ing", ",", "##a"]
    found = shared_tokens(
        {token: i for i, token in enumerate(ours)},
        {token: i for i, token in enumerate([*english, "a"])},
        (len(ours), len(english) + 1),
    )
    expected = {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]"}
    expected |= {"▁Free": "free", "ing": "##ing", ",": ",", "a": "##a"}
    pairs = {(ours[i], english[j]) for i, j in zip(*found.nonzero(), strict=True)}
    assert pairs == set(expected.items())
    assert set(found.data) == {1.0}


def test_shared_tokens_of_other_kinds_of_vocabularies():
    """Byte-level BPE, whose letters are bytes, and a cased WordPiece."""
    ours = ["<bos>", "▁Free", "▁free", "ing", "▁café", ",", "▁", "é", "<eos>"]
    bpe = ["<s>", "ĠFree", "Ġfree", "ing", "ĠcafÃ©", ",", "Ġ", "Ã", "</s>"]
    word_pieces = ["[CLS]", "Free", "free", "##ing", "café", ",", "##ed", "[SEP]"]

    def matched(ours, theirs):
        found = shared_tokens(
            {token: i for i, token in enumerate(ours)},
            {token: i for i, token in enumerate(theirs)},
            (len(ours), len(theirs)),
        )
        pairs = zip(*found.nonzero(), strict=True)
        return {ours[i]: theirs[j] for i, j in pairs}

    same = dict(zip(ours, bpe, strict=True))
    assert matched(ours, bpe) == {k: v for k, v in same.items() if k not in "▁é"}
    back = matched(bpe, word_pieces)
    assert back == {
        **{"<s>": "[CLS]", "</s>": "[SEP]", "ĠFree": "Free", "Ġfree": "free"},
        **{"ing": "##ing", "ĠcafÃ©": "café", ",": ","},
    }
    assert matched(["▁FREE", "▁x"], word_pieces) == {"▁FREE": "free"}


def test_vocabularies_without_a_common_token_share_none():
    found = shared_tokens({"word": 0}, {"word": 0}, (1, 1))
    assert found.shape == (1, 1) and found.nnz == 0


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_from_pivot_is_the_english_model_where_tokens_map_one_to_one(family):
    english = huggingface.load_checkpoint(str(BERT))
    params = english.params
    if family == "distilbert":  # has no token types
        config = dataclasses.replace(english.config, family=family, type_vocab_size=0)
        english = dataclasses.replace(english, config=config)
        tables = dict(params["encoder"]["embeddings"])
        del tables["token_type"]
        params = {**params, "encoder": params["encoder"] | {"embeddings": tables}}
    words_VD = params["encoder"]["embeddings"]["word"]["embedding"]
    # Of one length, which the start gives to all embeddings.
    words_VD = words_VD / np.linalg.norm(words_VD, axis=1, keepdims=True)
    embeddings = params["encoder"]["embeddings"] | {"word": {"embedding": words_VD}}
    params = {**params, "encoder": params["encoder"] | {"embeddings": embeddings}}
    V, E = 311, english.config.vocab_size
    pivot_spec = RetrieverSpec.of("splade", english.config, tied=True)
    spec = RetrieverSpec.of(
        "milco",
        dataclasses.replace(
            english.config,
            family="xlm-roberta",
            vocab_size=V,
            max_positions=17,
            type_vocab_size=1,
            pad_token_id=1,
        ),
        pivot_vocab_size=E,
        pivot_hidden_size=english.config.hidden_size,
    )
    rng = np.random.default_rng(0)
    ours = rng.choice(np.arange(2, V), E, replace=False)  # id of each English token
    words = sparse.csr_matrix((np.ones(E), (ours, np.arange(E))), shape=(V, E))
    student = retriever.init_params(spec, 0)
    student["head"]["mlm"] = params["head"]["mlm"] | {"decoder": words_VD}
    student = warm_start.from_pivot(
        student, spec.encoder, params["encoder"], english.config, words
    )

    ids_BL = rng.integers(5, E, (6, 13))
    mask_BL = np.arange(13) < np.array([13, 2, 5, 9, 1, 12])[:, None]

    def raw(spec, params, ids_BL):
        graphdef, _ = retriever.split(spec)
        text = {"ids": ids_BL, "mask": mask_BL}
        encode = jax.jit(lambda p: retriever.apply(graphdef, p, text))
        (view,) = encode(params).values()
        return np.asarray(view.raw_BV)

    expected_BV = raw(pivot_spec, params, ids_BL)
    found_BV = raw(spec, student, np.where(mask_BL, ours[ids_BL], 1))
    for found, wanted in zip(found_BV, expected_BV, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.999
    assert np.abs(found_BV - expected_BV).mean() < 0.05 * expected_BV.std()


def test_from_pivot_is_the_english_modernbert_where_tokens_map_one_to_one():
    english = tiny.encoder(
        "modernbert", num_layers=4, hidden_size=64, vocab_size=97, local_attention=5
    )
    pivot_spec = RetrieverSpec.of("splade", english, tied=True)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32),
        retriever.init_params(pivot_spec, 0),
    )
    words = params["encoder"]["embeddings"]["word"]
    words["embedding"] /= np.linalg.norm(words["embedding"], axis=1, keepdims=True)
    # GELU passes what is well above zero.
    params["encoder"]["final_norm"]["scale"] *= 0.3
    spec = RetrieverSpec.of(
        "milco",
        dataclasses.replace(english, vocab_size=131, pad_token_id=1),
        pivot_vocab_size=97,
        pivot_hidden_size=64,
        pivot_layer_norm_eps=english.layer_norm_eps,
    )
    ours = rng.choice(np.arange(2, 131), 97, replace=False)
    same = sparse.csr_matrix((np.ones(97), (ours, np.arange(97))), shape=(131, 97))
    student = retriever.init_params(spec, 0)
    head = params["head"]["mlm"] | {"decoder": words["embedding"]}
    student = warm_start.overlaid(student, {"head": {"mlm": head}}, "english")
    student = warm_start.from_pivot(
        student, spec.encoder, params["encoder"], english, same
    )
    ids_BL = rng.integers(0, 97, (6, 13))
    mask_BL = np.arange(13) < np.array([13, 2, 5, 9, 1, 12])[:, None]

    def raw(spec, params, ids_BL):
        graphdef, _ = retriever.split(spec)
        (view,) = retriever.apply(
            graphdef, params, {"ids": ids_BL, "mask": mask_BL}
        ).values()
        return np.asarray(view.raw_BV)

    found_BV = raw(spec, student, ours[ids_BL])
    for found, wanted in zip(found_BV, raw(pivot_spec, params, ids_BL), strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.999


def test_an_echo_reads_idf_off_its_own_direction():
    V, D = 1999, 16
    rng = np.random.default_rng(0)
    idf_V = rng.uniform(0.5, 9.0, V)
    words_VD = rng.normal(size=(V, D)).astype(np.float32)
    params = {
        "encoder": {"embeddings": {"word": {"embedding": words_VD}}},
        "head": {"echo": {"kernel": np.zeros(D), "bias": np.zeros(())}},
    }

    def fitted(params):
        hidden_VD = layer_norm(params["encoder"]["embeddings"]["word"]["embedding"])
        fit = warm_start.echo_from_idf(params, np.asarray(hidden_VD), idf_V, scale=0.5)
        echo = fit["head"]["echo"]
        return np.asarray(hidden_VD @ echo["kernel"] + echo["bias"])

    wanted_V = 0.5 * np.sqrt(idf_V)
    plain_V = fitted(params)
    assert stats.spearmanr(plain_V, wanted_V).statistic < 0.3
    params = warm_start.with_idf_direction(params, idf_V)
    echo_V = fitted(params)
    assert stats.spearmanr(echo_V, wanted_V).statistic > 0.95
    np.testing.assert_allclose(echo_V.mean(), wanted_V.mean(), rtol=1e-4)

    change_VD = params["encoder"]["embeddings"]["word"]["embedding"] - words_VD
    sizes = np.linalg.svd(change_VD, compute_uv=False)
    assert sizes[1] < 1e-5 * sizes[0]  # nothing but the one direction has changed
