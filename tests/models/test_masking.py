"""Which tokens are masked, and how well a model predicts them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from programs import checkpoints, tiny

from lsrjax.convert.open_model import open_portable
from lsrjax.models import retriever
from lsrjax.models.masking import PREDICTED, Masking, taken_out
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.texts import Texts

SPECIAL, MASK, SIZE = (0, 1, 2), 3, 1000
LENGTHS = [40, 3, 2, 17, 0]  # with a special token at either end


def texts_of(lengths=LENGTHS, width=44, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(lengths), width), np.int32)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = rng.integers(10, SIZE, length)
        if length:
            row[0], row[length - 1] = 1, 2
    mask = np.arange(width) < np.array(lengths)[:, None]
    return Texts((jnp.asarray(ids),), (jnp.asarray(mask),))


def keys_of(count, seed=5):
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return (fold(jax.random.key(seed), jnp.arange(count)),)


def masked(masking, texts, keys=None):
    keys = keys_of(len(texts.ids[0])) if keys is None else keys
    return masking(texts, keys, SPECIAL, SIZE)


def test_so_many_words_of_each_text_are_masked_and_nothing_else_changes():
    texts = texts_of()
    shown, found = masked(Masking(0.15, 1.0, 0.0, MASK), texts)
    counts = found.tokens.mask[0].sum(axis=1).tolist()
    # A share of 38, 1, 0, 15 and 0 words, and one at least.
    assert counts == [6, 1, 0, 2, 0]
    changed = np.asarray(shown.ids[0] != texts.ids[0])
    assert changed.sum(axis=1).tolist() == counts
    assert (np.asarray(shown.ids[0])[changed] == MASK).all()
    assert not np.isin(np.asarray(texts.ids[0])[changed], SPECIAL).any()
    for row, kept in enumerate(np.asarray(found.tokens.mask[0])):
        places = np.asarray(found.places[0])[row][kept]
        np.testing.assert_array_equal(np.sort(places), np.flatnonzero(changed[row]))
        own = np.asarray(texts.ids[0])[row, places]
        np.testing.assert_array_equal(found.tokens.ids[0][row][kept], own)


def test_the_shares_of_what_stands_there_are_those_asked_for():
    texts = texts_of([500] * 40, 500)
    masking = Masking(0.3, 0.8, 0.1, MASK)
    shown, found = masked(masking, texts)
    ids, kept = np.asarray(found.tokens.ids[0]), np.asarray(found.tokens.mask[0])
    there = np.take_along_axis(np.asarray(shown.ids[0]), found.places[0], axis=1)
    there, ids = there[kept], ids[kept]
    assert len(ids) == 40 * 149
    assert abs((there == MASK).mean() - 0.8) < 0.02
    assert abs((there == ids).mean() - 0.1) < 0.02
    random = there[(there != MASK) & (there != ids)]
    assert random.min() < 50 and random.max() > SIZE - 50
    # Every place is as likely as any other.
    places = np.asarray(found.places[0])[kept]
    assert abs(places.mean() - 249.5) < 8 and len({*places}) > 490


def test_a_draw_depends_on_the_text_s_key_and_on_no_padding():
    masking = Masking(0.15, 0.8, 0.1, MASK)
    narrow, wide = (masked(masking, texts_of(width=w)) for w in (40, 44))
    np.testing.assert_array_equal(narrow[0].ids[0], wide[0].ids[0][:, :40])
    # In another place of the batch, with its own key.
    keys = keys_of(5)
    turned = Texts(tuple(x[::-1] for x in texts_of().ids), (texts_of().mask[0][::-1],))
    again, _ = masked(masking, turned, (keys[0][::-1],))
    np.testing.assert_array_equal(again.ids[0][::-1], wide[0].ids[0])
    other, _ = masked(masking, texts_of(), keys_of(5, seed=6))
    assert (np.asarray(other.ids[0]) != np.asarray(wide[0].ids[0])).any()


def predicted(spec, params, rows, masking, width=12):
    """What is masked of padded rows, and how well that is predicted."""
    ids = np.full((len(rows), width), spec.encoder.pad_token_id, np.int32)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = own
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    part = {"ids": jnp.asarray(ids), "mask": jnp.asarray(mask)}
    keys = keys_of(len(rows))
    graphdef, _ = retriever.split(spec)
    views = retriever.apply(
        graphdef, params, [part], masking=masking, masking_keys=keys
    )
    views, found = taken_out({"document": views})
    assert PREDICTED not in views["document"]
    size, special = spec.encoder.vocab_size, spec.special_ids
    return *masking(Texts.of([part]), keys, special, size), mask, found["document"]


@pytest.mark.parametrize(
    "family",
    [
        "bert",
        pytest.param("xlm-roberta", marks=pytest.mark.slow),
        pytest.param("modernbert", marks=pytest.mark.slow),
    ],
)
def test_the_error_is_that_of_transformers(family, tmp_path):
    """The labels' cross entropy of its masked language model."""
    folder = checkpoints.write(tmp_path / family, family)
    model = open_portable(str(folder))
    spec = model.spec.replaced(special_ids=(0, 1, 2))
    rng = np.random.default_rng(2)
    rows = [[0, *rng.integers(5, 400, n).tolist(), 2] for n in (9, 4, 1)]
    masking = Masking(0.3, 0.6, 0.2, mask_id=4)
    shown, found, mask, error = predicted(spec, model.params, rows, masking)
    labels = np.full(mask.shape, -100)
    for row, kept in enumerate(np.asarray(found.tokens.mask[0])):
        places = np.asarray(found.places[0])[row][kept]
        labels[row, places] = np.asarray(found.tokens.ids[0])[row][kept]
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        loss = theirs(
            input_ids=torch.tensor(np.asarray(shown.ids[0])).long(),
            attention_mask=torch.tensor(mask).long(),
            labels=torch.tensor(labels),
        ).loss
    assert error.count_B.tolist() == [3, 1, 1] == (labels >= 0).sum(axis=1).tolist()
    mean = float(error.error_B.sum() / error.count_B.sum())
    assert mean == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [("norbert4", {"logits": "capped"}), ("norbert4", {"logits": "shifted"})],
)
def test_shifted_logits_predict_the_next_token(family, options):
    encoder = tiny.encoder(family, vocab_size=31, max_positions=16)
    spec = RetrieverSpec.of("splade", encoder, special_ids=(0, 1), **options)
    params = checkpoints.random_params(spec)
    row = [1, *range(5, 14), 1]
    shown, found, _, error = predicted(spec, params, [row], Masking(0.4, 0.9, 0.1, 2))
    # The next token's logits at each place, written out.
    graphdef, _ = retriever.split(spec)
    model = nnx.merge(graphdef, params)
    hidden_TD = model.encoder.encode(shown)
    mlm = model.head.mlm
    words_VD = model.encoder.embeddings.word.embedding[...]
    h_TD, decoder_VD, bias_V = mlm.factors(hidden_TD, words_VD)
    logits_LV = np.asarray(h_TD @ decoder_VD.T + bias_V)
    if options["logits"] == "capped":
        logits_LV = 30 / (1 + np.exp(-logits_LV / 7.5))
    log_LV = jax.nn.log_softmax(logits_LV, axis=1)
    kept = np.asarray(found.tokens.mask[0][0])
    places = np.asarray(found.places[0])[0][kept]
    expected = -sum(log_LV[place - 1, row[place]] for place in places)
    assert float(error.error_B[0]) == pytest.approx(float(expected), rel=1e-5)
    assert kept.sum() == error.count_B[0] == 4
