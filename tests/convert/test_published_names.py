"""Checkpoints of GTE's, Jina's and Nomic's own code, and as transformers writes them.

Their config.json and tensors have other names than transformers' modules.
"""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from lsrjax.convert.read.huggingface import Allowed, load_checkpoint
from lsrjax.convert.read.modules import UnknownModuleError, class_name
from lsrjax.convert.read.tensors import CheckpointError
from lsrjax.models.backbones.table import BACKBONES
from lsrjax.models.cross_encoder import CrossEncoder, CrossEncoderSpec

SIZES = {
    "vocab_size": 61,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 17,
    "max_position_embeddings": 19,
    "pad_token_id": 1,
}
FAMILIES = {
    "gte": "Gte",
    "jina_embeddings_v3": "JinaEmbeddingsV3",
    "nomic_bert": "NomicBert",
}


def saved(folder, family, kind="ForMaskedLM", **changes):
    """A model of random weights in a folder that transformers writes."""
    torch.manual_seed(5)
    name = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SIZES | changes)
    model = getattr(transformers, name + kind)(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            center = 1.0 if path.lower().endswith("norm.weight") else 0.0
            parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def changed(folder, tensors, **config):
    """Writes a folder again, with other tensors and keys of its config."""
    save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | config))


def assert_same(found, wanted):
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


@pytest.mark.parametrize(
    ("family", "ours", "theirs", "config"),
    [
        ("gte", "gte.", "new.", {"model_type": "new"}),
        ("nomic_bert", "nomic_bert.", "bert.", {"activation_function": "swiglu"}),
    ],
)
def test_the_prefix_of_their_own_code_is_read(family, ours, theirs, config, tmp_path):
    saved(tmp_path, family)
    wanted = load_checkpoint(str(tmp_path))
    state = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith(ours) for name in state)
    more = (
        {"classifier.weight": np.ones((1, 12), np.float32)} if family == "gte" else {}
    )
    renamed = {name.replace(ours, theirs): x for name, x in state.items()}
    changed(tmp_path, renamed | more, **config)
    found = load_checkpoint(str(tmp_path))
    assert found.config == wanted.config
    assert_same(found.params, wanted.params)


def test_a_head_of_nomics_code_has_biases_of_zero(tmp_path):
    saved(tmp_path, "nomic_bert")
    state = load_file(tmp_path / "model.safetensors")
    bare = {
        name: x
        for name, x in state.items()
        if not name.startswith("cls.") or name.endswith(("weight", "norm.bias"))
    }
    assert len(state) - len(bare) == 2
    changed(tmp_path, bare, qkv_proj_bias=False)
    mlm = load_checkpoint(str(tmp_path)).params["head"]["mlm"]
    assert not mlm["bias"].any() and not mlm["transform"]["dense"]["bias"].any()
    assert mlm["transform"]["norm"]["bias"].any()
    # Of the others, each has to be there.
    del bare["cls.predictions.transform.layer_norm.bias"]
    changed(tmp_path, bare)
    with pytest.raises(CheckpointError, match=r"missing \(1\):\n.*layer_norm.bias"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_rerankers_score_as_in_transformers(family, tmp_path):
    model = saved(tmp_path, family, "ForSequenceClassification", num_labels=1)
    found = load_checkpoint(str(tmp_path))
    ours = CrossEncoder(CrossEncoderSpec(found.config), rngs=nnx.Rngs(0))
    nnx.update(ours, found.params)
    ids = np.random.default_rng(0).integers(2, 61, (3, 11))
    mask = np.arange(11)[None] < np.array([11, 7, 4])[:, None]
    types = None
    if family == "nomic_bert":
        types = (np.arange(11)[None] > [[3], [2], [1]]).astype(int)
    with torch.no_grad():
        wanted = model(
            torch.tensor(ids),
            torch.tensor(mask.astype(int)),
            token_type_ids=None if types is None else torch.tensor(types),
        ).logits
    np.testing.assert_allclose(
        nnx.jit(ours)(ids, mask, types), wanted[:, 0], atol=1e-5, rtol=0
    )
    if family == "gte":
        state = load_file(tmp_path / "model.safetensors")
        renamed = {name.replace("gte.", "new."): x for name, x in state.items()}
        changed(tmp_path, renamed, model_type="new")
        assert_same(load_checkpoint(str(tmp_path)).params, found.params)


TASKS = ["retrieval.query", "separation", "text-matching"]


def with_adapters(folder):
    """Jina v3 as published: an adapter for each task beside each weight.

    Returns:
      The model in transformers, and what a weight has more for each task, by name.
    """
    model = saved(folder, "jina_embeddings_v3", "Model")
    rng = np.random.default_rng(4)
    state, added = {}, {}
    for name, x in load_file(folder / "model.safetensors").items():
        layer, _, kind = name.rpartition(".")
        if kind == "bias" or layer.endswith(("norm1", "norm2", "emb_ln")):
            state[f"roberta.{name}"] = x
            continue
        table = layer.endswith("embeddings")
        shapes = [(3, 5, x.shape[1]), (3, x.shape[0], 5)]
        a, b = (
            rng.normal(size=shape).astype(np.float32)
            for shape in (shapes[::-1] if table else shapes)
        )
        added[name] = (a @ b if table else b @ a) * (2.0 / 5)
        original = f"roberta.{layer}.parametrizations.weight"
        state[f"{original}.original"] = x
        state[f"{original}.0.lora_A"], state[f"{original}.0.lora_B"] = a, b
    changed(
        folder,
        state,
        model_type="xlm-roberta",
        auto_map={"AutoConfig": "a/b--configuration_xlm_roberta.XLMRobertaFlashConfig"},
        position_embedding_type="rotary",
        rotary_emb_base=20_000.0,
        rope_parameters=None,
        lora_adaptations=TASKS,
        lora_alpha=2,
        lora_rank=5,
    )
    return model, added


def test_the_adapter_of_a_task_is_merged(tmp_path):
    model, added = with_adapters(tmp_path)
    ids = np.random.default_rng(0).integers(2, 61, (2, 9))
    base = load_checkpoint(str(tmp_path), Allowed(adapter="none"))
    for task in (None, 1):
        name = "none" if task is None else TASKS[task]
        found = load_checkpoint(str(tmp_path), Allowed(adapter=name))
        ours = BACKBONES[found.config.family].encoder(found.config, rngs=nnx.Rngs(0))
        nnx.update(ours, found.params["encoder"])
        if task is not None:
            again = tmp_path / "again"
            # The same tensors in a folder that transformers loads.
            model.save_pretrained(again)
            state = load_file(again / "model.safetensors")
            plain = {
                k: x + added[k][task] if k in added else x for k, x in state.items()
            }
            changed(again, plain)
            model = type(model).from_pretrained(again).eval()
        with torch.no_grad():
            wanted = model(torch.tensor(ids)).last_hidden_state
        states = nnx.jit(ours)(ids, np.ones(ids.shape, bool))
        np.testing.assert_allclose(states, wanted, atol=1e-5, rtol=0)
    words = [one.params["encoder"]["embeddings"]["word"] for one in (base, found)]
    assert np.abs(words[0]["embedding"] - words[1]["embedding"]).max() > 0.1


def test_adapters_are_not_passed_over(tmp_path):
    with_adapters(tmp_path)
    with pytest.raises(UnknownModuleError, match="custom_st.Transformer"):
        class_name("custom_st.Transformer", tmp_path)
    assert (
        class_name("custom_st.Transformer", tmp_path, adapter="none") == "Transformer"
    )
    with pytest.raises(CheckpointError, match=r"retrieval.query, .*--adapter TASK"):
        load_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"--adapter sts is none of them"):
        load_checkpoint(str(tmp_path), Allowed(adapter="sts"))
    state = load_file(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_rank '5'"):
        changed(tmp_path, state, lora_rank="5")
        load_checkpoint(str(tmp_path), Allowed(adapter=TASKS[0]))
    changed(tmp_path, state, lora_rank=5, lora_adaptations=TASKS[:2])
    with pytest.raises(CheckpointError, match=r"for 2 tasks, which do not fit"):
        load_checkpoint(str(tmp_path), Allowed(adapter=TASKS[0]))
    name = next(name for name in state if name.endswith("lora_A"))
    del state[name]
    changed(tmp_path, state, lora_adaptations=TASKS)
    with pytest.raises(CheckpointError, match=r"has no adapter beside it"):
        load_checkpoint(str(tmp_path), Allowed(adapter=TASKS[0]))
    saved(tmp_path / "plain", "gte", "Model")
    with pytest.raises(CheckpointError, match=r"holds no adapters for tasks"):
        load_checkpoint(str(tmp_path / "plain"), Allowed(adapter=TASKS[0]))
