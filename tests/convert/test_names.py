"""State dicts go in and out under the same names; what does not fit is listed."""

import re

import numpy as np
import pytest
import transformers
from flax import nnx

from lsrjax.convert.names import (
    by_layer,
    export_state,
    import_state,
    stacked,
    to_hf_name,
    to_hf_shape,
)
from lsrjax.distributed import trees
from lsrjax.models.backbones.table import BACKBONES, backbone, read_config
from lsrjax.models.retriever import RetrieverSpec, split

SIZES = {
    "vocab_size": 41,
    "hidden_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 19,
    "max_position_embeddings": 13,
}
DISTILBERT = {"dim": 14, "n_layers": 2, "n_heads": 2, "hidden_dim": 19}
MILCO = "milco-xlm-roberta"
BIASES = dict.fromkeys(
    ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True
)


def config_of(layout, masked_lm=False, **changes):
    sizes = SIZES
    if layout == "distilbert":
        sizes = {k: SIZES[k] for k in ("vocab_size", "max_position_embeddings")}
        sizes |= DISTILBERT
    if layout == "modernbert":  # its special tokens lie beyond this vocabulary
        changes = (
            dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
            | {"cls_token_id": 0, "sep_token_id": 0}
            | changes
        )
        sizes = SIZES | {"hidden_size": 12}
    return CLASSES[layout, masked_lm][0](**(sizes | changes))


CLASSES = {
    ("bert", False): (transformers.BertConfig, transformers.BertModel),
    ("bert", True): (transformers.BertConfig, transformers.BertForMaskedLM),
    ("distilbert", False): (
        transformers.DistilBertConfig,
        transformers.DistilBertModel,
    ),
    ("distilbert", True): (
        transformers.DistilBertConfig,
        transformers.DistilBertForMaskedLM,
    ),
    ("modernbert", False): (
        transformers.ModernBertConfig,
        transformers.ModernBertModel,
    ),
    ("modernbert", True): (
        transformers.ModernBertConfig,
        transformers.ModernBertForMaskedLM,
    ),
    ("bert-classifier", None): (
        transformers.BertConfig,
        transformers.BertForSequenceClassification,
    ),
    ("xlm-roberta-classifier", None): (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaForSequenceClassification,
    ),
    ("xlm-roberta", False): (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaModel,
    ),
    ("xlm-roberta", True): (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaForMaskedLM,
    ),
}


# A second name of the masked-LM bias, if there is one, and that of the decoder, which
# checkpoints leave out where it is the word table.
TIED = {
    "bert": ("cls.predictions.decoder.bias", "cls.predictions.decoder.weight"),
    "distilbert": (None, "vocab_projector.weight"),
    "xlm-roberta": ("lm_head.decoder.bias", "lm_head.decoder.weight"),
    "modernbert": (None, "decoder.weight"),
}


def hf_state(layout, masked_lm, tied=True, **changes):
    """State dict of a random transformers model, every shared tensor once."""
    _, model_class = CLASSES[layout, masked_lm]
    model = model_class(
        config_of(layout, masked_lm, tie_word_embeddings=tied, **changes)
    )
    bias_copy, decoder = TIED.get(layout, (None, None))
    shared = set()
    if tied and masked_lm:
        shared = {bias_copy, decoder}
    unused = r"position_ids|token_type_ids"
    if not layout.endswith("classifier"):
        unused += "|pooler"
    rng = np.random.default_rng(1)
    state = {
        name: rng.normal(size=value.shape).astype(np.float32)
        for name, value in model.state_dict().items()
        if not re.search(unused, name) and name not in shared
    }
    if bias_copy in state:
        state[bias_copy.replace("decoder.", "")] = state[bias_copy]
    return state


def milco_state(echo=True):
    """The reference's state dict less what it never uses."""
    rng = np.random.default_rng(2)
    state = {f"m_model.{k}": v for k, v in hf_state("xlm-roberta", False).items()}
    shapes = {
        "projector.weight": (10, 14),
        "projector.bias": (10,),
        "mlm_head.predictions.transform.dense.weight": (10, 10),
        "mlm_head.predictions.transform.dense.bias": (10,),
        "mlm_head.predictions.transform.LayerNorm.weight": (10,),
        "mlm_head.predictions.transform.LayerNorm.bias": (10,),
        "mlm_head.predictions.decoder.weight": (23, 10),
        "mlm_head.predictions.bias": (23,),
    }
    if echo:
        shapes |= {"echo.weight": (1, 14), "echo.bias": (1,), "scale": (1,)}
    return state | {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


STATES = {
    "bert": ("bert", hf_state("bert", False)),
    "bert masked LM": ("bert", hf_state("bert", True)),
    "bert untied": ("bert", hf_state("bert", True, tied=False)),
    "xlm-roberta": ("xlm-roberta", hf_state("xlm-roberta", False)),
    "xlm-roberta masked LM": ("xlm-roberta", hf_state("xlm-roberta", True)),
    "xlm-roberta untied": ("xlm-roberta", hf_state("xlm-roberta", True, tied=False)),
    "distilbert": ("distilbert", hf_state("distilbert", False)),
    "distilbert masked LM": ("distilbert", hf_state("distilbert", True)),
    "distilbert untied": ("distilbert", hf_state("distilbert", True, tied=False)),
    "modernbert": ("modernbert", hf_state("modernbert", False)),
    "modernbert with biases": (
        "modernbert",
        hf_state("modernbert", False, num_hidden_layers=4, **BIASES),
    ),
    "modernbert of one layer": (
        "modernbert",
        hf_state("modernbert", True, num_hidden_layers=1),
    ),
    "modernbert masked LM": ("modernbert", hf_state("modernbert", True)),
    "modernbert untied": (
        "modernbert",
        hf_state("modernbert", True, tied=False, **BIASES),
    ),
    "bert classifier": ("bert-classifier", hf_state("bert-classifier", None)),
    "xlm-roberta classifier": (
        "xlm-roberta-classifier",
        hf_state("xlm-roberta-classifier", None),
    ),
    "milco": (MILCO, milco_state()),
    "milco without echo": (MILCO, milco_state(echo=False)),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("case", STATES)
def test_import_and_export_give_the_same_tensors(case):
    layout, state = STATES[case]
    params = import_state(state, layout)
    exported = export_state(params, layout)
    assert_same(exported, state)
    assert all(value.flags.c_contiguous for value in exported.values())
    params["encoder"] = by_layer(params["encoder"], layout)
    for path, value in trees.named(params).items():
        prefix = None if len(params) > 1 else ""
        name = to_hf_name(path, layout, prefix)
        assert to_hf_shape(path, value.shape) == state[name].shape


@pytest.mark.parametrize(
    "layout", [name for name in BACKBONES if (name, True) in CLASSES]
)
def test_imported_tree_is_the_one_of_the_encoder(layout):
    config = read_config(config_of(layout).to_dict())
    encoder = backbone(layout).encoder
    model = nnx.eval_shape(lambda: encoder(config, rngs=nnx.Rngs(0)))
    expected = trees.named(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    found = trees.named(import_state(hf_state(layout, False), layout)["encoder"])
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in expected.items()
    }


def test_milco_tree():
    state = milco_state()
    params = import_state(state, MILCO)
    head = params["head"]
    np.testing.assert_array_equal(
        head["connector"]["kernel"], state["projector.weight"].T
    )
    np.testing.assert_array_equal(head["echo"]["kernel"], state["echo.weight"][0])
    assert head["echo"]["bias"].shape == head["echo"]["scale"].shape == ()
    assert head["mlm"]["decoder"].shape == (23, 10)
    assert set(head["mlm"]) == {"transform", "decoder", "bias"}
    assert list(by_layer(params["encoder"], MILCO)["layers"]) == [0, 1]


@pytest.mark.parametrize("echo", [True, False])
def test_milco_tree_is_the_one_of_the_retriever(echo):
    config = CLASSES["xlm-roberta", False][0](**SIZES)
    spec = RetrieverSpec.of(
        head="milco",
        encoder=read_config(config.to_dict()),
        lexecho=echo,
        pivot_vocab_size=23,
        pivot_hidden_size=10,
    )
    expected = trees.named(split(spec)[1])
    found = trees.named(import_state(milco_state(echo), MILCO))
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in expected.items()
    }


@pytest.mark.parametrize("layout", ["bert", "distilbert", "xlm-roberta"])
def test_layers_come_apart_and_together_again(layout):
    state = hf_state(layout, False)
    encoder = import_state(state, layout)["encoder"]
    layers = by_layer(encoder, layout)
    assert list(layers["layers"]) == [0, 1]
    inner = layers["layers"][1]
    assert set(inner["attention"]) == {"query", "key", "value", "out"}
    for i, layer in layers["layers"].items():
        for name in ("query", "key", "value"):
            path = f"encoder/layers/{i}/attention/{name}"
            for kind, value in layer["attention"][name].items():
                theirs = state[to_hf_name(f"{path}/{kind}", layout, "")]
                np.testing.assert_array_equal(value, theirs.T, err_msg=path)
        theirs = state[to_hf_name(f"encoder/layers/{i}/up/kernel", layout, "")]
        np.testing.assert_array_equal(layer["up"]["kernel"], theirs.T)
    again = stacked(layers, layout)
    assert_same(trees.named(again), trees.named(encoder))
    assert again["layers"]["attention"]["qkv"]["kernel"].shape == (2, 14, 3, 14)
    # What went in stays as it was, and what has no layers comes out as it is.
    assert "qkv" in encoder["layers"]["attention"]
    tables = {"embeddings": encoder["embeddings"]}
    assert by_layer(tables, layout) == stacked(tables, layout) == tables


@pytest.mark.parametrize("layout", ["bert", "distilbert", "xlm-roberta"])
def test_prefixed_encoder_alone(layout):
    prefix = layout.removeprefix("xlm-") + "."
    state = hf_state(layout, False)
    prefixed = {prefix + name: value for name, value in state.items()}
    assert_same(export_state(import_state(prefixed, layout), layout), state)


@pytest.mark.parametrize(
    ("layout", "extra"),
    [
        ("bert", ["pooler.dense.weight", "embeddings.position_ids"]),
        ("bert", ["bert.pooler.dense.bias", "cls.seq_relationship.weight"]),
        ("xlm-roberta", ["roberta.embeddings.position_ids", "pooler.dense.bias"]),
        (MILCO, ["m_model.pooler.dense.weight", "en_lsr.bert.anything.weight"]),
    ],
)
def test_unused_tensors_are_dropped(layout, extra):
    state = milco_state() if layout == MILCO else hf_state(layout, False)
    more = state | {name: np.zeros(3) for name in extra}
    assert_same(export_state(import_state(more, layout), layout), state)


@pytest.mark.parametrize(
    ("case", "copy"),
    [
        ("bert masked LM", "cls.predictions.decoder.bias"),
        ("xlm-roberta masked LM", "lm_head.decoder.bias"),
        ("milco", "mlm_head.predictions.decoder.bias"),
    ],
)
def test_the_bias_of_the_decoder_is_preferred(case, copy):
    layout, state = STATES[case]
    bias = state[copy.replace("decoder.", "")]
    both = state | {copy: bias + 1}
    only = {k: v for k, v in both.items() if k != copy.replace("decoder.", "")}
    for given in (both, only):
        mlm = import_state(given, layout)["head"]["mlm"]
        np.testing.assert_array_equal(mlm["bias"], bias + 1)


def test_decoder_with_the_values_of_the_word_table_is_tied():
    state = hf_state("bert", True)
    word = state["bert.embeddings.word_embeddings.weight"]
    name = "cls.predictions.decoder.weight"
    tied = import_state(state | {name: word.copy()}, "bert")
    untied = import_state(state | {name: word + 1}, "bert")
    assert "decoder" not in tied["head"]["mlm"]
    assert "decoder" in untied["head"]["mlm"]


def test_tensorflow_names_of_layer_norm():
    state = hf_state("bert", True)
    old = {
        k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
        for k, v in state.items()
    }
    assert old.keys() != state.keys()
    assert_same(export_state(import_state(old, "bert"), "bert"), state)


@pytest.mark.parametrize("case", STATES)
def test_missing_and_unknown_tensors_are_listed(case):
    layout, state = STATES[case]
    optional = {name for names in TIED.values() for name in names}
    # Without the word table nothing tells the layout, which is another error.
    tables = ("word_embeddings.weight", "tok_embeddings.weight")
    optional |= {name for name in state if name.endswith(tables)}
    if layout == "modernbert":
        # The config says which biases there are; `check_against_config` asks it.
        optional |= {n for n in state if n.endswith("bias") and n != "decoder.bias"}
    for name in state.keys() - optional:
        lacking = {k: v for k, v in state.items() if k != name}
        lacking.pop(TIED.get(layout, ("mlm_head.predictions.decoder.bias",))[0], None)
        lacking["extra.weight"] = np.zeros((3, 5))
        with pytest.raises(ValueError) as error:
            import_state(lacking, layout)
        assert "left over (1):\n  extra.weight [3, 5]" in str(error.value)
        assert f"missing (1):\n  {name}\n" in str(error.value)


def test_other_models_are_refused_with_what_was_found():
    state = {f"model.{k}": v for k, v in hf_state("bert", False).items()}
    match = r"no 'bert\.emb.*' or 'emb(.|\n)*found \(\d+\):(.|\n)*model\.embeddings"
    with pytest.raises(ValueError, match=match):
        import_state(state, "bert")
    state = milco_state() | {"echo.weight": np.zeros((2, 14))}
    with pytest.raises(ValueError, match=r"echo\.weight \[2, 14\] should have 1 row"):
        import_state(state, MILCO)


def test_export_lists_what_is_missing_or_unknown():
    params = import_state(milco_state(), MILCO)
    del params["head"]["echo"]["scale"]
    params["encoder"]["layers"]["gate"] = {"kernel": np.zeros((2, 3, 5))}
    with pytest.raises(ValueError) as error:
        export_state(params, MILCO)
    assert "missing (1):\n  head/echo/scale" in str(error.value)
    left = [f"  encoder/layers/{i}/gate/kernel [3, 5]" for i in (0, 1)]
    assert "\n".join(["left over (2):", *left]) in str(error.value)


def test_unknown_layout_and_path():
    with pytest.raises(ValueError, match=r"'gpt'.*'bert', .*'xlm-roberta'"):
        import_state({}, "gpt")
    with pytest.raises(ValueError, match=r"'encoder/gate'.*encoder/embeddings/word"):
        to_hf_name("encoder/gate", "bert")
    assert to_hf_name("encoder/layers/3/up/kernel", MILCO) == (
        "m_model.encoder.layer.3.intermediate.dense.weight"
    )
