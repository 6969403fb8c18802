"""Adapters in PEFT: the same hidden states as ours, out and in."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from programs import tiny
from safetensors.numpy import load_file, save_file

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import open_model
from lsrjax.convert.read import huggingface
from lsrjax.convert.read import peft as reader
from lsrjax.convert.read.huggingface import Allowed
from lsrjax.convert.write import peft as writer
from lsrjax.errors import InputError
from lsrjax.models import adapters, low_rank, retriever
from lsrjax.models.retriever import RetrieverSpec

IDS = np.array([[3, 4, 5, 2, 9], [5, 6, 1, 7, 8]], np.int32)
CLASSES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3Model),
    "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    "modernbert": (transformers.ModernBertConfig, transformers.ModernBertModel),
}
REST = ("qwen3", "xlm-roberta")  # of which layers have query, key and value apart
SIZES = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 17,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
MORE = {
    "qwen3": {"num_key_value_heads": 1, "head_dim": 4},
    "xlm-roberta": {"type_vocab_size": 1},
    "modernbert": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}


def adapted(family, folder, paths=r"kernel$|word/embedding", also=""):
    """A base model in a folder, and a retriever that was adapted beside it."""
    torch.manual_seed(0)
    config, model_class = CLASSES[family]
    base = model_class(config(**SIZES, **MORE[family])).eval()
    base.save_pretrained(folder)
    found = huggingface.load_checkpoint(str(folder))
    spec = RetrieverSpec.of("dense", found.config)
    options = {"rank": 2, "alpha": 3.0, "paths": paths, "also": also}
    chosen = adapters.of({"lora": options})
    params = adapters.added(chosen, spec, {"encoder": found.params["encoder"]}, 0)
    rng = np.random.default_rng(3)
    params = jax.tree.map(np.array, params)
    for parts in low_rank.factors(params).values():
        for part in "ab":
            parts[part][...] = rng.normal(0, 0.4, parts[part].shape)
    config = {"init": {"encoder": {"model": str(folder)}}, "adapt": {"lora": options}}
    return SavedModel(
        spec,
        low_rank.merged(params),
        None,
        None,
        "trained",
        config=config,
        factors=low_rank.factors(params),
    )


def our_states(model):
    module = retriever.Retriever(model.spec, rngs=retriever.nnx.Rngs(0))
    graphdef, _ = retriever.nnx.split(module.encoder)
    encoder = retriever.nnx.merge(graphdef, model.params["encoder"])
    return np.asarray(encoder(IDS, np.ones_like(IDS)))


@pytest.mark.parametrize(
    "family", ["modernbert", *(pytest.param(f, marks=pytest.mark.slow) for f in REST)]
)
def test_peft_has_the_same_hidden_states(family, tmp_path):
    import peft  # takes seconds

    model = adapted(family, tmp_path / "base")
    (tmp_path / "out").mkdir()
    writer.write_peft(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / writer.CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    base = CLASSES[family][1].from_pretrained(tmp_path / "base").eval()
    ids = torch.tensor(IDS)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        first = base(**text).last_hidden_state.numpy()
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
        theirs = loaded(**text).last_hidden_state.numpy()
    ours = our_states(model)
    assert np.abs(theirs - first).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # And in again, bit for bit but for the order of sums.
    found = huggingface.load_checkpoint(
        str(tmp_path / "base"), Allowed(peft=reader.find(str(tmp_path / "out")))
    )
    for a, b in zip(
        jax.tree.leaves(found.params["encoder"]),
        jax.tree.leaves(model.params["encoder"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base model, an adapter that PEFT wrote, and its hidden states."""
    import peft  # takes seconds

    folder = tmp_path_factory.mktemp("peft")
    adapted("xlm-roberta", folder / "base")
    base = transformers.XLMRobertaModel.from_pretrained(folder / "base")
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["query", "output.dense", "word_embeddings"],
        # Regular expressions, of which the first that matches counts.
        alpha_pattern={r".*\.output\.dense": 7, "output.dense": 2},
        use_rslora=True,
        init_lora_weights=False,
    )
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(folder / "adapter")
    ids = torch.tensor(IDS)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return folder, states.last_hidden_state.numpy()


def opened(folder):
    adapter = reader.find(str(folder))
    return huggingface.load_checkpoint(adapter.base, Allowed(peft=adapter))


def test_an_adapter_of_peft_is_merged_when_it_is_opened(trained):
    folder, wanted = trained
    found = opened(folder / "adapter")
    spec = RetrieverSpec.of("dense", found.config)
    model = SavedModel(spec, found.params, None, None, "found")
    np.testing.assert_allclose(our_states(model), wanted, atol=2e-5)
    assert reader.find(str(folder / "base")) is None


def missing(tensors):
    return {name: one for name, one in tensors.items() if "lora_A" not in name}


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        ({"use_dora": True}, dict, "that sets use_dora"),
        ({"bias": "all"}, dict, "that sets bias"),
        ({"peft_type": "IA3"}, dict, "an adapter of PEFT alone. Merge"),
        ({"base_model_name_or_path": None}, dict, "names no base_model"),
        (
            {"init_lora_weights": "pissa"},
            dict,
            "that sets init_lora_weights to 'pissa'",
        ),
        ({"alpha_pattern": {"(": 2}}, dict, "is no regular expression"),
        ({"lora_alpha": None}, dict, "lora_alpha is null"),
        ({"r": "8"}, dict, "r is '8', which has to be"),
        ({}, missing, "do not fit"),
        ({}, lambda one: {f"x.{name}": t for name, t in one.items()}, "no factor of"),
        (
            {},
            lambda one: {name.replace("layer.", "l."): t for name, t in one.items()},
            "has none",
        ),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    trained, config, change, said, tmp_path
):
    folder = shutil.copytree(trained[0] / "adapter", tmp_path / "adapter")
    values = json.loads((folder / reader.CONFIG).read_text())
    (folder / reader.CONFIG).write_text(json.dumps(values | config))
    tensors = change(load_file(folder / reader.WEIGHTS))
    save_file(tensors, folder / reader.WEIGHTS)
    with pytest.raises(InputError, match=said):
        opened(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init": {"encoder": {"model": "stage:one"}}}, "stage:one, which is no"),
        ({"init": {}}, "it starts from random weights"),
        ({"init": {"encoder": {"model": "x"}, "lexical": {}}}, "encoder, lexical"),
        ({"adapt": {"lora": {"also": "^head/"}}}, "'^head/' were trained whole"),
    ],
)
def test_what_no_adapter_holds_is_refused(change, said, tmp_path):
    config = {"init": {"encoder": {"model": "x"}}, "adapt": {"lora": {}}}
    spec = RetrieverSpec.of("dense", tiny.encoder())
    model = SavedModel(spec, {}, None, None, "trained", config=config | change)
    with pytest.raises(InputError, match="--to peft cannot hold trained") as error:
        writer.write_peft(model, tmp_path)
    assert said in str(error.value)


def test_an_adapter_beside_an_adapter_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained[0] / "adapter", tmp_path / "adapter")
    values = json.loads((folder / reader.CONFIG).read_text())
    values["base_model_name_or_path"] = str(folder)
    (folder / reader.CONFIG).write_text(json.dumps(values))
    with pytest.raises(InputError, match="is an adapter of PEFT itself"):
        open_model.open_model(str(folder), tmp_path)
