"""Texts to sparse matrices: order, batches and padding change nothing."""

import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import tiny
from scipy import sparse

from lsrjax.data.tokenization import TextTokenizer, pad
from lsrjax.models import retriever
from lsrjax.ops import positive_pool
from lsrjax.retrieval import encode_texts
from lsrjax.retrieval.encode_texts import TextEncoder, joined

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TEXTS = ["a", "the quick brown fox jumps", "über", "", "fox fox", "日本語 の 文"] * 3


@pytest.fixture(scope="module")
def spec():
    tokenizer = TextTokenizer(GOLDEN / "xlmr")
    encoder = tiny.encoder(
        "xlm-roberta",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        max_positions=34,
        pad_token_id=tokenizer.pad_id,
    )
    return retriever.RetrieverSpec.of(
        "milco", encoder, lexecho=True, pivot_vocab_size=53, pivot_hidden_size=12
    )


@pytest.fixture(scope="module")
def params(spec):
    params = retriever.init_params(spec, 0)
    params["head"]["echo"]["bias"] = jnp.asarray(0.5)
    return params


@functools.cache
def encoder_of(spec, batch_size):
    return TextEncoder(spec, TextTokenizer(GOLDEN / "xlmr"), batch_size=batch_size)


def encode(spec, params, texts, batch_size=4):
    return encoder_of(spec, batch_size).encode(params, texts, max_length=16)


def test_rows_come_in_the_order_of_the_texts(spec, params):
    views = encode(spec, params, TEXTS)
    for place in (0, 1, 5, 17):
        alone = encode(spec, params, [TEXTS[place]])
        for name, matrix in views.items():
            np.testing.assert_allclose(
                matrix[place].toarray(), alone[name].toarray(), atol=1e-6
            )


def test_batch_size_and_lengths_change_nothing(spec, params, monkeypatch):
    monkeypatch.setattr(encode_texts, "BUCKETS", (8, 16))
    views = encode(spec, params, TEXTS)
    monkeypatch.setattr(encode_texts, "BUCKETS", ())
    for at_once in (encode_texts._CPU_TOKENS, 40, 1):
        monkeypatch.setattr(encode_texts, "_CPU_TOKENS", at_once)
        other = encode(spec, params, TEXTS, batch_size=7)
        for name in views:
            np.testing.assert_allclose(
                views[name].toarray(), other[name].toarray(), atol=1e-6
            )


@pytest.mark.parametrize("seed", range(5))
def test_lengths_are_the_cheapest_that_hold_their_batches(monkeypatch, seed):
    monkeypatch.setattr(encode_texts, "BUCKETS", (4, 6, 8, 12))
    rng = np.random.default_rng(seed)
    longest = sorted(rng.integers(1, 11, 6).tolist())

    def cost(lengths):
        return 3 * sum(lengths) + 20 * len(set(lengths))

    choices = [[b for b in (4, 6, 8, 10) if b >= tokens] for tokens in longest]
    cheapest = min(cost(lengths) for lengths in itertools.product(*choices))
    found = encode_texts.padded_lengths(longest, 10, 3, 20)
    assert found == sorted(found)
    assert all(
        a >= b and a in (4, 6, 8, 10) for a, b in zip(found, longest, strict=True)
    )
    assert cost(found) == cheapest


def test_a_few_short_texts_share_the_shape_of_the_others():
    few = functools.partial(encode_texts.padded_lengths, worth=8192)
    assert few([5, 40], 64, 8) == [48, 48]
    assert few([5, 500], 512, 64) == [16, 512]
    assert few([60], 64, 8) == [64]
    assert few([], 64, 8) == []
    # What a compiled program costs, decides.
    assert encode_texts.padded_lengths([5, 500], 512, 64, 2**17) == [512, 512]


def test_dense_rows_are_compressed_as_scipy_compresses_them():
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((5, 40)) < 0.1, rng.random((5, 40)), 0)
    dense[1], dense[4, -1], dense[2, 3] = 0, 1, np.nan
    dense = dense.astype(np.float32)[:, :39]  # of padded terms, so not in one piece
    found, wanted = encode_texts._compressed_rows(dense), sparse.csr_matrix(dense)
    for part in ("data", "indices", "indptr"):
        have, want = getattr(found, part), getattr(wanted, part)
        np.testing.assert_array_equal(have, want)
        assert have.dtype == want.dtype
    assert found.shape == wanted.shape


@pytest.mark.parametrize("sent", [1, 48, 2048])
def test_terms_taken_out_on_the_device_are_those_of_whole_rows(spec, params, sent):
    # With one, all rows have more; with 48, some do.
    wanted = encode(spec, params, TEXTS)
    encoder = TextEncoder(spec, TextTokenizer(GOLDEN / "xlmr"), batch_size=4)
    encoder._sent_terms = sent
    found = encoder.encode(params, TEXTS, max_length=16)
    counts = np.diff(wanted["pivot"].indptr)
    assert 1 < counts.min() <= 48 < counts.max() < 2048
    for name, matrix in wanted.items():
        for part in ("data", "indices", "indptr"):
            have, want = getattr(found[name], part), getattr(matrix, part)
            np.testing.assert_array_equal(have, want)
            assert have.dtype == want.dtype
        assert found[name].shape == matrix.shape


@pytest.mark.parametrize("pool_mask", ["exclude", "multiply"])
@pytest.mark.parametrize("head", ["milco", "splade"])
def test_screened_terms_are_those_that_a_loss_sees(spec, monkeypatch, head, pool_mask):
    monkeypatch.setattr(positive_pool, "has_bfloat16_unit", lambda: True)
    monkeypatch.setattr(positive_pool, "_FEW_TOKENS", 0)
    if head == "splade":
        spec = retriever.RetrieverSpec.of(
            head, spec.encoder, pool_mask=pool_mask, tied=False
        )
    else:
        spec = spec.replaced(pool_mask=pool_mask, lexecho=True)
    params = retriever.init_params(spec, 1)
    tokenizer = TextTokenizer(GOLDEN / "xlmr")
    text = pad(tokenizer.ids(TEXTS, 16), tokenizer.pad_id, 16, (16,))
    graphdef, _ = retriever.split(spec)
    (name, *_) = spec.views

    def of_a_loss():
        return retriever.apply(graphdef, params, text, role="document")[name]

    params["head"]["mlm"]["bias"] -= np.quantile(of_a_loss().raw_BV, 0.9)
    wanted = np.asarray(of_a_loss().weights_BV)
    assert 0.01 < (wanted > 0).mean() < 0.15
    found = TextEncoder(spec, tokenizer, batch_size=4).encode(params, TEXTS, 16)
    np.testing.assert_allclose(found[name].toarray(), wanted, rtol=0, atol=1e-6)


def test_repeated_tokens_sum_in_the_source_view(spec, params):
    tokenizer = TextTokenizer(GOLDEN / "xlmr")
    (ids,) = tokenizer.ids(["fox fox"], 16)
    repeated = max(set(ids), key=ids.count)
    assert ids.count(repeated) > 1
    text = {"ids": np.array([ids]), "mask": np.ones((1, len(ids)), np.int32)}
    graphdef, _ = retriever.split(spec)
    bag = retriever.apply(graphdef, params, text)["source"]
    expected = float(
        sum(w for i, w in zip(ids, bag.weights_BK[0], strict=True) if i == repeated)
    )
    found = encode(spec, params, ["fox fox"])["source"][0, repeated]
    assert expected > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_poll_raises_ends_the_encoding(spec, params):
    polled = []

    def poll():
        polled.append(1)
        if len(polled) == 3:
            raise KeyboardInterrupt

    tokenizer = TextTokenizer(GOLDEN / "xlmr")
    encoder = TextEncoder(spec, tokenizer, batch_size=2, poll=poll)
    encoder.encode(params, TEXTS[:4], 16)
    assert len(polled) == 2  # ahead of each batch
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(params, TEXTS, 16)


def test_each_role_is_encoded_by_its_own_tower(spec, params):
    other = jax.tree.map(lambda x: 1.1 * x, params)
    separate = dataclasses.replace(spec, towers="separate")
    both = retriever.with_query_tower(params, other)
    for role, own in (("document", params), ("query", other)):
        found, wanted = (
            encoder_of(made, 4).encode(values, TEXTS, 16, role)
            for made, values in ((separate, both), (spec, own))
        )
        for name, matrix in wanted.items():
            np.testing.assert_allclose(
                found[name].toarray(), matrix.toarray(), atol=1e-6
            )
    assert abs(found["source"] - encode(spec, params, TEXTS)["source"]).max() > 0.01


def test_queries_of_words_are_encoded_without_an_encoder(spec):
    tokenizer = TextTokenizer(GOLDEN / "xlmr")
    words = retriever.RetrieverSpec.of(
        "splade",
        spec.encoder,
        tied=True,
        queries="words",
        special_ids=tokenizer.special_ids,
    )
    params = retriever.init_params(words, 0)
    params["encoder"] = jax.tree.map(lambda x: x * np.nan, params["encoder"])
    found = encoder_of(words, 4).encode(params, TEXTS, 16, "query")["terms"]
    for row, ids in zip(found, tokenizer.ids(TEXTS, 16), strict=True):
        assert sorted(row.indices) == sorted(set(ids) - set(tokenizer.special_ids))
        assert set(row.data) <= {1.0}


def test_views_stand_side_by_side_pivot_first(spec, params):
    views = encode(spec, params, TEXTS)
    both = joined(views)
    assert both.shape == (len(TEXTS), 53 + spec.encoder.vocab_size)
    np.testing.assert_array_equal(both[:, :53].toarray(), views["pivot"].toarray())


def test_no_texts_give_no_rows(spec, params):
    views = encode(spec, params, [])
    assert views["pivot"].shape == (0, 53)


def test_the_largest_weights_are_those_of_all_views_whatever_their_sign():
    views = {
        "pivot": sparse.csr_matrix(np.float32([[1, -3, 0], [0, 0, 0.5]])),
        "source": sparse.csr_matrix(np.float32([[2, 0.5], [0, 0]])),
    }
    found = encode_texts._largest(views, 2)
    assert found["pivot"].toarray().tolist() == [[0, -3, 0], [0, 0, 0.5]]
    assert found["source"].toarray().tolist() == [[2, 0], [0, 0]]
    assert found["pivot"].nnz == 2 and found["source"].nnz == 1
