"""Condenser's second prediction equals that of transformers' layers put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from programs import checkpoints, tiny

from lsrjax.convert.open_model import open_portable
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.models import adapters, low_rank, retriever
from lsrjax.models.masking import PREDICTED, Masking
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.models.texts import Texts

MASKING = Masking(0.3, 0.6, 0.2, mask_id=4)


def batch():
    rng = np.random.default_rng(2)
    rows = [[0, *rng.integers(5, 400, n).tolist(), 2] for n in (9, 4, 1)]
    ids = np.array([row + [1] * (11 - len(row)) for row in rows], np.int32)
    mask = np.arange(11) < np.array([len(row) for row in rows])[:, None]
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = (fold(jax.random.key(5), jnp.arange(len(rows))),)
    return {"ids": jnp.asarray(ids), "mask": jnp.asarray(mask)}, keys


def error_of(spec, params, part, keys):
    graphdef, _ = retriever.split(spec)
    views = retriever.apply(
        graphdef, params, [part], masking=MASKING, masking_keys=keys
    )
    return views.pop(PREDICTED), views


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A masked language model, and another whose layers are the Condenser's."""
    folder = tmp_path_factory.mktemp("bert")
    first, second = (
        checkpoints.write(folder / str(count), "bert", num_layers=count)
        for count in (4, 2)
    )
    model, other = open_portable(str(first)), open_portable(str(second))
    plain = model.spec.replaced(special_ids=(0, 1, 2))
    spec = plain.replaced(condenser=2)
    layers = {"encoder": {"layers": other.params["encoder"]["layers"]}}
    params = model.params | {"head": model.params["head"] | {"condenser": layers}}
    return plain, spec, params, first, second


def test_its_error_is_that_of_transformers(models):
    plain, spec, params, first, second = models
    part, keys = batch()
    both, views = error_of(spec, params, part, keys)
    alone, same = error_of(plain, retriever.trained(spec, params)[1], part, keys)
    jax.tree.map(np.testing.assert_array_equal, views, same)
    np.testing.assert_array_equal(both.count_B, alone.count_B)

    shown, found = MASKING(Texts.of([part]), keys, (0, 1, 2), spec.encoder.vocab_size)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(first).eval()
    layers = transformers.AutoModel.from_pretrained(second).eval().encoder
    mask = torch.tensor(np.asarray(part["mask"])).long()
    with torch.no_grad():
        states = theirs.bert(
            input_ids=torch.tensor(np.asarray(shown.ids[0])).long(),
            attention_mask=mask,
            output_hidden_states=True,
        ).hidden_states
        mixed = states[plain.encoder.num_layers // 2].clone()
        mixed[:, 0] = states[-1][:, 0]
        hidden = (1.0 - mask[:, None, None]) * torch.finfo(torch.float32).min
        condensed = layers(mixed, attention_mask=hidden).last_hidden_state
        log = theirs.cls(condensed).log_softmax(-1).numpy()
    for row, kept in enumerate(np.asarray(found.tokens.mask[0])):
        places = np.asarray(found.places[0])[row][kept]
        tokens = np.asarray(found.tokens.ids[0])[row][kept]
        error = float(both.error_B[row] - alone.error_B[row])
        assert error == pytest.approx(-log[row, places, tokens].sum(), rel=1e-4)


def test_late_states_but_the_first_tokens_do_not_reach_it(models):
    _, spec, params, *_ = models
    part, _ = batch()
    graphdef, _ = retriever.split(spec)
    model = nnx.merge(graphdef, params)
    late_TD, known = model.encoder.states(Texts.of([part]), early=2)

    def total(late_TD):
        found = model.head.condenser(late_TD, known.kept[0], known)
        return jnp.where(part["mask"].reshape(-1, 1), found**3, 0).sum()

    gradient = np.asarray(jax.grad(total)(late_TD)).reshape(3, 11, -1)
    assert abs(gradient[:, 0]).min(axis=0).max() > 0 and not gradient[:, 1:].any()


def test_a_trained_model_has_none(models):
    plain, spec, params, *_ = models
    made, kept = retriever.trained(spec, params)
    assert made == plain and "condenser" not in kept["head"]
    assert retriever.trained(plain, kept) == (plain, kept)


@pytest.mark.parametrize(("family", "layers"), [("modernbert", 2), ("bert", 1)])
def test_an_encoder_that_cannot_have_one(family, layers):
    encoder = tiny.encoder(family, vocab_size=31, num_layers=layers)
    with pytest.raises(InputError, match=rf"this one is {family} of {layers}\. Use 0"):
        retriever.split(RetrieverSpec.of("splade", encoder, condenser=2))


def test_beside_adapters_it_is_trained_whole_and_dropped():
    encoder = tiny.encoder("bert", vocab_size=31, num_layers=2)
    spec = RetrieverSpec.of("splade", encoder, condenser=1)
    found = adapters.of({"lora": {"rank": 2}})
    params = adapters.added(found, spec, retriever.init_params(spec, 0), 0)
    still = trees.named(adapters.frozen(found, params))
    own = {name: kept for name, kept in still.items() if "head/condenser/" in name}
    assert own and not any(own.values())
    _, kept = retriever.trained(spec, params)
    assert {name for name in trees.named(kept) if low_rank.is_factor(name)}
    assert not any("condenser" in name for name in trees.named(low_rank.factors(kept)))
