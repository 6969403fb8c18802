"""DeBERTa v2 and v3 against PyTorch transformers."""

import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from programs import parity
from transformers.models.deberta_v2 import modeling_deberta_v2

from lsrjax.convert.names import export_state, import_state
from lsrjax.models.backbones.attention import log_buckets
from lsrjax.models.backbones.table import read_config
from lsrjax.models.cross_encoder import CrossEncoder, CrossEncoderSpec

SIZES = {
    "vocab_size": 151,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
}
V3 = {
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
# What published checkpoints vary, and what their code can do.
VARIANTS = {
    "v3": V3,
    "v2-xlarge": V3 | {"conv_kernel_size": 3, "conv_act": "gelu"},
    "own kernels": {"position_buckets": 5, "type_vocab_size": 2, "conv_kernel_size": 5},
    "every distance": {"max_relative_positions": 7, "pos_att_type": ["c2p"]},
    "keys alone": V3 | {"max_relative_positions": 8, "pos_att_type": ["p2c"]},
}
CASES = pytest.mark.parametrize(
    "variant",
    [
        v if v == "v2-xlarge" else pytest.param(v, marks=pytest.mark.slow)
        for v in VARIANTS
    ],
)


def reference(variant, kind=transformers.DebertaV2Model, **changes):
    config = transformers.DebertaV2Config(**SIZES | VARIANTS[variant] | changes)
    return parity.reference(kind, config)


@CASES
def test_states_and_gradients_equal_transformers(variant):
    model = reference(variant)
    encoder = parity.encoder_of(model)
    for left in (False, True):
        # Farther than the buckets reach; one text without neighbours.
        parity.check_states(model, encoder, *parity.texts(23, [23, 9, 1], left=left))
    remat = "layer" if variant in ("v2-xlarge", "v3") else "none"
    ids, mask = parity.texts(13, [13, 7, 2])
    parity.check_gradients(model, encoder, ids, mask, remat)
    parity.check_it_goes_out_as_it_came(model)
    parity.check_padding(encoder, 0)


@pytest.mark.parametrize("legacy", [True, False])
def test_logits_of_both_heads_equal_transformers(legacy):
    model = reference("v3", transformers.DebertaV2ForMaskedLM, legacy=legacy)
    params = parity.check_logits(model, *parity.texts(11, [11, 6]))
    assert "decoder" not in params["head"]["mlm"]
    if legacy:
        decoder = "cls.predictions.decoder"
        parity.check_it_goes_out_as_it_came(
            model, (f"{decoder}.weight", f"{decoder}.bias")
        )
        return
    # It goes out under BERT's names, with which the class gives the same logits.
    config = transformers.DebertaV2Config(**read_config(model.config.to_dict()).to_hf())
    again = transformers.DebertaV2ForMaskedLM(config).eval()
    state = export_state(params, "deberta-v2")
    lacking, extra = again.load_state_dict(
        {name: torch.tensor(value) for name, value in state.items()}, strict=False
    )
    assert all(name.startswith("cls.predictions.decoder") for name in lacking)
    assert not extra
    text = parity.tensors(*parity.texts(11, [11, 6]))
    again.tie_weights()
    with torch.no_grad():
        assert torch.equal(again(*text).logits, model(*text).logits)


def test_microsofts_files_have_the_later_head_and_one_for_replaced_tokens():
    model = reference("v3", transformers.DebertaV2ForMaskedLM, legacy=False)
    state = parity.state_of(model)
    more = {"mask_predictions.dense.weight": np.zeros((3, 3))}
    found = import_state(state | more, "deberta-v2")["head"]["mlm"]
    dense = state["lm_predictions.lm_head.dense.weight"]
    np.testing.assert_array_equal(found["transform"]["dense"]["kernel"], dense.T)


@pytest.mark.parametrize(
    ("length", "size", "far"), [(600, 256, 512), (600, 32, 512), (40, 5, 17), (9, 2, 4)]
)
def test_buckets_are_those_of_transformers(length, size, far):
    distances = torch.arange(length)[:, None] - torch.arange(length)[None]
    wanted = modeling_deberta_v2.make_log_bucket_position(distances, size, far)
    found = log_buckets(length, size, far)
    np.testing.assert_array_equal(found, wanted.to(torch.long).numpy())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_comes_back(variant):
    raw = transformers.DebertaV2Config(**SIZES | VARIANTS[variant]).to_dict()
    config = read_config(raw)
    assert read_config(config.to_hf()) == config
    again = transformers.DebertaV2Config(**config.to_hf()).to_dict()
    assert {k: v for k, v in again.items() if k in raw} == raw | {
        "architectures": again["architectures"],
        "dtype": again["dtype"],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative_attention": False}, "relative_attention is False, but only True"),
        ({"pos_att_type": "p2p|c2p"}, "pos_att_type is 'p2p|c2p'"),
        ({"pos_att_type": None}, "pos_att_type is None"),
        ({"norm_rel_ebd": "layer_norm|scaled"}, "norm_rel_ebd is 'layer_norm.scaled'"),
        ({"conv_groups": 2}, "conv_groups is 2, but only 1"),
        ({"conv_kernel_size": 4}, "conv_kernel_size 4"),
        ({"conv_act": "relu"}, "conv_act is 'relu'; only tanh and gelu"),
        ({"embedding_size": 12}, "embedding_size is 12, but only 24"),
        ({"attention_head_size": 5}, "attention_head_size is 5, but only 6"),
        ({"position_buckets": 1}, "position_buckets is 1"),
        ({"position_buckets": 6, "max_relative_positions": 4}, "below 4"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        read_config({"model_type": "deberta-v2"} | SIZES | change)


@pytest.mark.parametrize("variant", ["v3", "own kernels"])
def test_rerankers_score_as_in_transformers(variant):
    kind = transformers.DebertaV2ForSequenceClassification
    model = reference(variant, kind, num_labels=1)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    spec = CrossEncoderSpec(read_config(model.config.to_dict()))
    ours = CrossEncoder(spec, rngs=nnx.Rngs(0))
    nnx.update(ours, import_state(state, "deberta-v2-classifier"))
    ids, mask = parity.texts(11, [11, 7])
    # Of the second text; v3 has no types, and its tokenizer gives them all the same.
    types = (np.arange(11)[None] > [[3], [2]]).astype(int)
    with torch.no_grad():
        wanted = model(
            torch.tensor(ids),
            torch.tensor(mask.astype(int)),
            token_type_ids=torch.tensor(types),
        ).logits
    found = nnx.jit(ours)(ids, mask, types)
    np.testing.assert_allclose(found, wanted[:, 0], atol=1e-5, rtol=0)
    assert abs(found[0] - found[1]) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooler_hidden_act": "tanh"}, "pooler_hidden_act is 'tanh', but only 'gelu'"),
        ({"pooler_hidden_size": 9}, "pooler_hidden_size is 9, but only"),
    ],
)
def test_another_classifier_is_refused(changes, message):
    config = transformers.DebertaV2Config(**SIZES | V3).to_dict() | changes
    with pytest.raises(ValueError, match=message):
        read_config(config)
