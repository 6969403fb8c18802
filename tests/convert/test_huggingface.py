"""Checkpoints written by transformers come in whole, broken ones are explained."""

import json
import pathlib
import subprocess
import sys

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from lsrjax.convert.read.huggingface import (
    Allowed,
    load_checkpoint,
    read_config,
    tokenizer_folder,
)
from lsrjax.convert.read.tensors import CheckpointError
from lsrjax.models.backbones.bert import BertEncoder as Encoder
from lsrjax.models.layers import MLMTransform

MODELS = {
    "bert": (transformers.BertConfig, transformers.BertModel),
    "bert-mlm": (transformers.BertConfig, transformers.BertForMaskedLM),
    "distilbert": (transformers.DistilBertConfig, transformers.DistilBertModel),
    "distilbert-mlm": (
        transformers.DistilBertConfig,
        transformers.DistilBertForMaskedLM,
    ),
    "roberta-mlm": (transformers.RobertaConfig, transformers.RobertaForMaskedLM),
    "camembert-mlm": (transformers.CamembertConfig, transformers.CamembertForMaskedLM),
    "xlmr": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel),
    "xlmr-mlm": (transformers.XLMRobertaConfig, transformers.XLMRobertaForMaskedLM),
}


def make_model(kind, **changes):
    config_class, model_class = MODELS[kind]
    bert = kind.startswith("bert")
    sizes = {
        "vocab_size": 113,
        "hidden_size": 22,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 31,
        "max_position_embeddings": 17,
        "type_vocab_size": 2 if bert else 1,
        "pad_token_id": 0 if bert else 1,
    }
    if kind.startswith("distilbert"):
        sizes = {
            "vocab_size": 113,
            "dim": 22,
            "n_layers": 3,
            "n_heads": 2,
            "hidden_dim": 31,
            "max_position_embeddings": 17,
        }
    torch.manual_seed(11)
    model = model_class(config_class(**sizes, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = name.endswith(("LayerNorm.weight", "layer_norm.weight"))
            parameter.copy_(float(norm) + 0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture
def bert(tmp_path):
    folder = tmp_path / "bert"
    make_model("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch):
    """Replaces the hub: `hub['error']` is raised or `hub['folder']` is returned."""
    hub = {"calls": []}

    def snapshot_download(repo_id, *, revision, allow_patterns):
        assert revision is None
        hub["calls"].append((repo_id, allow_patterns))
        if "error" in hub:
            raise hub["error"]
        return str(hub["folder"])

    def list_repo_files(repo_id):
        if "files" not in hub:
            raise ConnectionError("no route")
        return hub["files"]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    return hub


def rewrite(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, {"format": "pt"})


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_params(model, params):
    nnx.update(model, jax.tree.map(jnp.asarray, params))
    return model


def check_same_numbers(checkpoint, reference, masked_lm):
    """Hidden states, and logits of the masked LM, equal those of transformers."""
    pad = reference.config.pad_token_id
    ids = np.random.default_rng(0).integers(2, 113, (3, 9))
    mask = np.arange(9)[None] < np.array([[9], [6], [1]])
    ids = np.where(mask, ids, pad)
    with torch.no_grad():
        output = reference(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask).long(),
            output_hidden_states=True,
        )
    config, params = checkpoint.config, checkpoint.params
    encoder = with_params(Encoder(config, rngs=nnx.Rngs(0)), params["encoder"])
    hidden = nnx.jit(encoder)(ids, mask)
    theirs = output.hidden_states[-1].numpy()
    np.testing.assert_allclose(hidden[mask], theirs[mask], atol=1e-5, rtol=0)
    assert set(params) == ({"encoder", "head"} if masked_lm else {"encoder"})
    if masked_lm:
        mlm = params["head"]["mlm"]
        transform = MLMTransform(22, config.layer_norm_eps, rngs=nnx.Rngs(0))
        transform = with_params(transform, mlm["transform"])
        transformed = transform(hidden.reshape(-1, 22)).reshape(hidden.shape)
        word = params["encoder"]["embeddings"]["word"]["embedding"]
        logits = transformed @ mlm.get("decoder", word).T + mlm["bias"]
        theirs = output.logits.numpy()
        np.testing.assert_allclose(logits[mask], theirs[mask], atol=3e-5, rtol=0)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_loaded_models_give_the_numbers_of_transformers(kind, tmp_path):
    reference = make_model(kind)
    reference.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.raw_config["vocab_size"] == 113
    assert read_config(str(tmp_path)) == checkpoint.config
    check_same_numbers(checkpoint, reference, masked_lm=kind.endswith("-mlm"))
    assert {leaf.dtype for leaf in jax.tree.leaves(checkpoint.params)} == {
        np.dtype("float32")
    }


@pytest.mark.parametrize("kind", ["bert-mlm", "distilbert-mlm", "xlmr-mlm"])
def test_untied_decoder_and_its_own_bias_are_kept(kind, tmp_path):
    reference = make_model(kind, tie_word_embeddings=False)
    reference.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(str(tmp_path))
    assert checkpoint.params["head"]["mlm"]["decoder"].shape == (113, 22)
    check_same_numbers(checkpoint, reference, masked_lm=True)


TIED = {
    "bert-mlm": ("bert.embeddings.word_embeddings.weight", "cls.predictions"),
    "distilbert-mlm": ("distilbert.embeddings.word_embeddings.weight", ""),
    "xlmr-mlm": ("roberta.embeddings.word_embeddings.weight", "lm_head"),
}


def decoder_only(state, word, decoder, bias):
    state[decoder] = state.pop(word)


def both_equal(state, word, decoder, bias):
    state[decoder] = state[word].copy()
    if bias:
        state[decoder.replace("weight", "bias")] = state[bias].copy()


def both_different(state, word, decoder, bias):
    state[decoder] = -state[word]
    if bias:
        state[decoder.replace("weight", "bias")] = state[bias] + 1


def other_bias_only(state, word, decoder, bias):
    if bias:
        state[decoder.replace("weight", "bias")] = state.pop(bias) + 1


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize(
    "change", [decoder_only, both_equal, both_different, other_bias_only]
)
def test_aliases_are_read_as_transformers_reads_them(kind, change, tmp_path):
    reference = make_model(kind)
    reference.save_pretrained(tmp_path)
    word, head = TIED[kind]
    decoder = f"{head}.decoder.weight" if head else "vocab_projector.weight"
    bias = f"{head}.bias" if head else None
    rewrite(tmp_path, lambda state: change(state, word, decoder, bias))
    reference = type(reference).from_pretrained(tmp_path).eval()
    params = load_checkpoint(str(tmp_path)).params
    mlm, words = params["head"]["mlm"], params["encoder"]["embeddings"]["word"]
    theirs = reference.get_output_embeddings()
    found = mlm.get("decoder", words["embedding"])
    np.testing.assert_array_equal(found, theirs.weight.detach())
    np.testing.assert_array_equal(mlm["bias"], theirs.bias.detach())
    theirs = reference.get_input_embeddings().weight.detach()
    np.testing.assert_array_equal(words["embedding"], theirs)
    assert ("decoder" in mlm) == (change is both_different)


def test_sharded_checkpoint_equals_the_single_file(tmp_path):
    reference = make_model("xlmr-mlm")
    reference.save_pretrained(tmp_path, max_shard_size="12KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    check_same_numbers(load_checkpoint(str(tmp_path)), reference, masked_lm=True)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_weights_become_float32(dtype, bert):
    whole = load_checkpoint(str(bert)).params
    rewrite(bert, lambda s: s.update({k: v.astype(dtype) for k, v in s.items()}))
    halved = load_checkpoint(str(bert)).params
    for exact, rough in zip(
        jax.tree.leaves(whole), jax.tree.leaves(halved), strict=True
    ):
        assert rough.dtype == np.float32
        np.testing.assert_array_equal(rough, exact.astype(dtype).astype(np.float32))


def test_hub_repository_is_downloaded_file_by_file(hub, bert):
    hub["folder"] = bert
    assert load_checkpoint("team/model").config == read_config("team/model")
    (_, weights), (_, config) = hub["calls"]
    assert config == ["config.json"]
    assert {"config.json", "model.safetensors"} < set(weights)


@pytest.mark.parametrize("start", ["./", "/", "~/", "a/b/"])
def test_missing_folder_is_never_looked_up_on_the_hub(start, hub):
    with pytest.raises(
        CheckpointError, match=r"absent-7.*does not exist.*config\.json"
    ):
        load_checkpoint(start + "absent-7")
    assert hub["calls"] == []


def test_existing_folder_is_never_looked_up_on_the_hub(hub, bert, monkeypatch):
    monkeypatch.chdir(bert.parent)
    assert load_checkpoint("bert").config.hidden_size == 22
    assert hub["calls"] == []


def test_file_in_place_of_a_folder(bert):
    with pytest.raises(CheckpointError, match=r"is a file, not a folder"):
        load_checkpoint(str(bert / "model.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no config\.json \(found: model\.safetensors\)"),
        ("{'a'", r"config\.json is not JSON"),
        ("[]", r"config\.json holds a JSON list"),
        ('{"model_type": "gpt2"}', r"config\.json: model_type is 'gpt2'"),
        ('{"model_type": "bert"}', r"config\.json: .*needs vocab_size"),
    ],
)
def test_unusable_config(content, message, bert):
    (bert / "config.json").unlink()
    if content is not None:
        (bert / "config.json").write_text(content)
    for read in (load_checkpoint, read_config):
        with pytest.raises(CheckpointError, match=message):
            read(str(bert))


def test_no_weights(bert):
    (bert / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_checkpoint(str(bert))


def test_pickled_weights_are_refused_with_the_way_to_convert_them(bert):
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    match = r"only pytorch_model\.bin.*refused.*lsrjax\.convert --from .*bert --to lsrj"
    with pytest.raises(CheckpointError, match=match + r".*--allow_pickle"):
        load_checkpoint(str(bert))


def test_hub_repository_with_pickled_weights_only(hub, bert):
    (bert / "model.safetensors").unlink()
    hub["folder"], hub["files"] = bert, ["config.json", "pytorch_model.bin"]
    match = r"'team/model' on the.*only pytorch_model\.bin.*--from team/model"
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint("team/model")
    del hub["files"]
    with pytest.raises(CheckpointError, match=r"downloaded part of.*'team/model'"):
        load_checkpoint("team/model")


def test_pickles_of_a_repository_are_downloaded_on_request(hub, bert):
    expected = load_checkpoint(str(bert)).params
    state = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save(state, bert / "pytorch_model.bin")
    hub["folder"] = bert
    found = load_checkpoint("team/model", Allowed(pickle=True)).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    (_, first), (_, second) = hub["calls"]
    assert "pytorch_model.bin" in second and not any("bin" in name for name in first)


def test_truncated_weights(bert):
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors \(\d+ bytes\) is no"
    ):
        load_checkpoint(str(bert))
    path.write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(CheckpointError, match=r"Git LFS"):
        load_checkpoint(str(bert))


def test_broken_shards(tmp_path):
    make_model("bert").save_pretrained(tmp_path, max_shard_size="12KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"]["embeddings.LayerNorm.bias"]

    content["weight_map"]["embeddings.lost"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"embeddings\.lost \({shard}\)"):
        load_checkpoint(str(tmp_path))
    (tmp_path / shard).unlink()
    with pytest.raises(CheckpointError, match=rf"names {shard}, which is not there"):
        load_checkpoint(str(tmp_path))
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"no object 'weight_map'"):
        load_checkpoint(str(tmp_path))


def test_shapes_that_do_not_fit_the_config_are_listed(bert):
    rewrite_config(bert, intermediate_size=37)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(bert))
    message = str(error.value)
    assert "9 tensors do not fit config.json" in message
    for i in range(3):
        layer = f"encoder.layer.{i}"
        assert f"{layer}.intermediate.dense.weight: [31, 22], [37, 22] exp" in message
        assert f"{layer}.intermediate.dense.bias: [31], [37] expected" in message
        assert f"{layer}.output.dense.weight: [22, 31], [22, 37] expected" in message


def test_numbers_of_layers_that_differ_are_listed(bert):
    rewrite_config(bert, num_hidden_layers=4)
    match = (
        r"16 tensors(.|\n)*layer\.3\.attention\.self\.query\.weight: missing, \[22, "
    )
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(str(bert))
    rewrite_config(bert, num_hidden_layers=2)
    match = r"16 tensors(.|\n)*layer\.2\.output\.LayerNorm\.bias: \[22\] left over"
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(str(bert))


def test_missing_and_left_over_tensors_are_listed(bert):
    def change(state):
        state["classifier.weight"] = np.zeros((3, 22), np.float32)
        del state["encoder.layer.1.output.dense.bias"]

    rewrite(bert, change)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(str(bert))
    message = str(error.value)
    assert "missing (1):\n  encoder.layer.1.output.dense.bias" in message
    assert "left over (1):\n  classifier.weight [3, 22]" in message
    assert str(bert) in message


def test_integer_weights_are_refused(bert):
    name = "encoder.layer.1.output.dense.bias"
    rewrite(bert, lambda s: s.update({name: s[name].astype(np.int8)}))
    with pytest.raises(CheckpointError, match=rf"{name}: int8, floating point"):
        load_checkpoint(str(bert))


def test_untied_config_without_a_decoder_is_refused(tmp_path):
    make_model("bert-mlm").save_pretrained(tmp_path)
    rewrite_config(tmp_path, tie_word_embeddings=False)
    match = r"cls\.predictions\.decoder\.weight: missing, \[113, 22\] expected"
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("read", [load_checkpoint, read_config, tokenizer_folder])
def test_offline_names_the_repository_and_the_way_out(read, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    match = r"(?s)'team/model'.*could not be reached.*local folder"
    with pytest.raises(CheckpointError, match=match) as error:
        read("team/model")
    assert f"no folder 'team/model' in {pathlib.Path.cwd()}" in str(error.value)
    assert "(HF_HUB_OFFLINE is set)" in str(error.value)


def hub_error(name):
    response = type("Response", (), {"headers": {}, "request": None})()
    return getattr(huggingface_hub.errors, name)("403 Forbidden", response=response)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (hub_error("GatedRepoError"), r"'team/model'.*gated.*hf auth login"),
        (hub_error("RepositoryNotFoundError"), r"no repository of this id"),
        (hub_error("HfHubHTTPError"), r"not be reached.*HfHubHTTPError: 403 Forb"),
        (LocalEntryNotFoundError("not cached"), r"not be reached.*not cached"),
        (TimeoutError("slow"), r"not be reached.*TimeoutError: slow"),
    ],
)
def test_errors_of_the_hub_are_explained(error, match, hub):
    hub["error"] = error
    with pytest.raises(CheckpointError, match=rf"(?s){match}.*local folder"):
        load_checkpoint("team/model")


def test_import_needs_neither_torch_nor_transformers():
    code = (
        "import sys; import lsrjax.convert.read.huggingface; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
