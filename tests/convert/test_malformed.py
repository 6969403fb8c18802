"""Folders that are not what they say end with an error, and without output."""

import json
import pathlib
import pickle
import re
import shutil
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lsrjax.checkpoint.saved_model import load_model
from lsrjax.cli import convert
from lsrjax.convert import open_model
from lsrjax.convert.read.huggingface import Allowed, load_checkpoint
from lsrjax.errors import InputError
from lsrjax.tokenizer import reading

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bert"
WORDS = "bert.embeddings.word_embeddings.weight"
NORM = "bert.embeddings.LayerNorm.weight"
DECODER = "cls.predictions.decoder.weight"


@pytest.fixture
def folder(tmp_path):
    """A copy of a masked LM, to be damaged."""
    return pathlib.Path(shutil.copytree(GOLDEN, tmp_path / "model"))


def rewrite_state(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def rewrite_json(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header(folder, entries, data=b"", length=None):
    """Writes a safetensors file with any header."""
    text = json.dumps(entries).encode()
    length = len(text) if length is None else length
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + text + data)


def entry(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def remove(name):
    return lambda folder: (folder / name).unlink()


def wrong_shape(folder):
    rewrite_state(folder, lambda s: s.update({NORM: np.ones(3, np.float32)}))


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def placeholder(folder):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (folder / "model.safetensors").write_text(text)


def fewer_embeddings(folder):
    size = json.loads((folder / "config.json").read_text())["vocab_size"] - 7
    rewrite_json(folder, "config.json", vocab_size=size)

    def cut(state):
        for name, value in state.items():
            if len(value) == size + 7:
                state[name] = value[:size]

    rewrite_state(folder, cut)


def pickled(folder, state=None):
    state = state or load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save(state, folder / "pytorch_model.bin")


def left_over(folder):
    rewrite_state(folder, lambda s: s.update(extra=np.zeros((2, 3), np.float32)))


def missing(folder):
    rewrite_state(folder, lambda s: s.pop(NORM))


def huge(folder):
    header(folder, {WORDS: entry([2 * 10**6, 10**6], 0, 8 * 10**12)})


def overlapping(folder):
    entries = {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}
    header(folder, entries, bytes(12))


def endless(folder):
    header(folder, {}, length=2**62)


def outside(folder):
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    index = {"weight_map": {WORDS: "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


MALFORMED = {
    "no config": (remove("config.json"), r"no config\.json"),
    "no weights": (remove("model.safetensors"), r"neither model\.safetensors nor"),
    "no tokenizer": (remove("tokenizer.json"), r"no tokenizer\.json"),
    "wrong shape": (wrong_shape, rf"{NORM}: \[3\], \[\d+\] expected"),
    "truncated": (truncated, r"\(\d+ bytes\) is not a whole safetensors file"),
    "placeholder": (placeholder, r"placeholder of Git LFS.*git lfs pull"),
    "architecture": (
        lambda f: rewrite_json(f, "config.json", model_type="gpt2"),
        r"model_type is 'gpt2', but only bert, ",
    ),
    "vocabulary": (fewer_embeddings, r"has \d+ tokens, but.*has embeddings for \d+"),
    "pickle": (pickled, r"only pytorch_model\.bin.*are refused.*--allow_pickle"),
    "left over": (left_over, r"left over \(1\):\n  extra \[2, 3\]"),
    "missing": (missing, rf"missing \(1\):\n  {NORM}"),
    "huge": (huge, r"is not a whole safetensors file"),
    "overlapping": (overlapping, r"is not a whole safetensors file"),
    "endless header": (endless, r"is not a whole safetensors file"),
    "shard elsewhere": (outside, r"names '\.\./other\.safetensors', which is no file"),
    "layers": (
        lambda f: rewrite_json(f, "config.json", num_hidden_layers=10**12),
        r"tensors do not fit config\.json",
    ),
    "not a number": (
        lambda f: rewrite_json(f, "config.json", layer_norm_eps=float("nan")),
        r"config\.json is not JSON: NaN is not a finite number",
    ),
    "too large for a number": (
        lambda f: (f / "config.json").write_text('{"layer_norm_eps": 1e999}'),
        r"1e999 is not a finite number",
    ),
    "dropout": (
        lambda f: rewrite_json(f, "config.json", hidden_dropout_prob=1.5),
        r"hidden_dropout_prob is 1\.5, which has to be a number from 0 to below 1",
    ),
    "padding": (
        lambda f: rewrite_json(f, "config.json", pad_token_id="0"),
        r"pad_token_id is '0', which has to be a whole number from 0 on",
    ),
    "type": (
        lambda f: rewrite_json(f, "config.json", model_type=["bert"]),
        r"model_type is \['bert'\], but only bert, ",
    ),
    "no number": (
        lambda f: rewrite_json(f, "config.json", vocab_size="many"),
        r"vocab_size is 'many', which has to be a whole number",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_folders_end_with_an_error_and_no_output(
    case, folder, tmp_path, capsys
):
    damage, message = MALFORMED[case]
    damage(folder)
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out"
    arguments = ["--from", str(folder), "--to", "onnx", "--out", str(out)]
    with pytest.raises(SystemExit) as exit:
        convert.main(arguments)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err), printed.err
    assert sorted(tmp_path.iterdir()) == before


def test_what_other_programs_write_is_read(folder):
    expected = load_checkpoint(str(folder))
    # A byte order mark; null where there is no value, as if the key were not there.
    nothing = dict.fromkeys(("pad_token_id", "position_embedding_type"))
    rewrite_json(folder, "config.json", architectures=None, **nothing)
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = load_checkpoint(str(folder))
    assert found.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickles_are_read_or_refused(zipped, folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(value) for name, value in state.items()}
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    rng = np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(whole)
        # What says where the tensors are is in front, or at the end.
        data[rng.choice([1, -1]) * rng.integers(2500)] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            load_checkpoint(str(folder), Allowed(pickle=True))
        except InputError:
            refused += 1
    assert refused > 10


def test_shapes_are_compared_before_anything_is_read(folder):
    """A file as long as it says, most of which is a hole, with one tensor too large."""
    size = 2**40
    text = json.dumps({WORDS: entry([2**19, 2**19], 0, size)}).encode()
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    with pytest.raises(InputError, match=r"missing \(\d+\)"):
        load_checkpoint(str(folder))
    match = rf"{WORDS}: \[524288, 524288\], \[\d+, \d+\] expected"
    with pytest.raises(InputError, match=match):
        load_checkpoint(str(folder), Allowed(missing=".*"))


def test_what_is_allowed_by_name(folder, tmp_path):
    whole = load_checkpoint(str(folder)).params
    missing(folder)
    left_over(folder)
    out = tmp_path / "out"
    arguments = ["--from", str(folder), "--to", "lsrjax", "--out", str(out)]
    with pytest.raises(SystemExit):
        convert.main([*arguments, "--allow_left_over", "extra"])
    with pytest.raises(SystemExit):
        convert.main([*arguments, "--allow_left_over", "ext", "--allow_missing", ".*"])
    allowed = ["--allow_left_over", "ex.*", "--allow_missing", r".*\.LayerNorm\.weight"]
    convert.main(arguments + allowed)
    found = load_model(out).params["encoder"]
    np.testing.assert_array_equal(found["embeddings"]["norm"]["scale"], 1.0)
    np.testing.assert_array_equal(
        found["embeddings"]["word"]["embedding"],
        whole["encoder"]["embeddings"]["word"]["embedding"],
    )
    with pytest.raises(InputError, match=r"--allow_missing '\(' is no regular"):
        Allowed(missing="(")
    with pytest.raises(InputError, match="leave --allow_pickle"):
        open_model.open_portable(str(out), Allowed(pickle=True))


@pytest.mark.parametrize("sharded", [False, True])
def test_pickles_on_request_give_the_same_parameters(sharded, folder, tmp_path):
    expected = load_checkpoint(str(folder)).params
    state = load_file(folder / "model.safetensors")
    if sharded:
        (folder / "model.safetensors").unlink()
        names = sorted(state)
        files = {n: f"pytorch_model-{i % 2 + 1}-of-2.bin" for i, n in enumerate(names)}
        for file in set(files.values()):
            tensors = {n: torch.from_numpy(state[n]) for n in names if files[n] == file}
            torch.save(tensors, folder / file)
        index = json.dumps({"weight_map": files})
        (folder / "pytorch_model.bin.index.json").write_text(index)
    else:
        pickled(folder, state)
    found = load_checkpoint(str(folder), Allowed(pickle=True)).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class Runs:
    """Makes a file when it is unpickled by a reader that runs what it reads."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_never_run(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    torch.save({WORDS: Runs(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"does not load as a file of tensors"):
        load_checkpoint(str(folder), Allowed(pickle=True))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(marker)))
    with pytest.raises(InputError, match=r"does not load as a file of tensors"):
        load_checkpoint(str(folder), Allowed(pickle=True))
    assert not marker.exists()
    torch.save({WORDS: "a text"}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds bert\.emb.* instead of tensors"):
        load_checkpoint(str(folder), Allowed(pickle=True))


def test_code_beside_a_model_never_runs(folder, tmp_path):
    marker = tmp_path / "ran"
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    for name in ("modeling_own.py", "tokenization_own.py", "configuration_own.py"):
        (folder / name).write_text(code)
    own = {"AutoConfig": "configuration_own.C", "AutoModel": "modeling_own.M"}
    rewrite_json(folder, "config.json", auto_map=own)
    tokenizer = {"AutoTokenizer": [None, "tokenization_own.T"]}
    rewrite_json(folder, "tokenizer_config.json", auto_map=tokenizer)
    load_checkpoint(str(folder))
    with pytest.raises(InputError, match=r"auto_map names .*tokenization_own\.T"):
        reading.read(folder)
    rewrite_json(folder, "config.json", model_type="own")
    with pytest.raises(InputError, match="model_type is 'own'"):
        load_checkpoint(str(folder))
    assert not marker.exists()


def test_conversion_needs_no_torch(tmp_path):
    code = f"""
import sys
from lsrjax.cli import convert as export
for target in ("lsrjax", "onnx"):
    export.main(["--from", {str(GOLDEN)!r}, "--to", target, "--out",
                 {str(tmp_path)!r} + "/" + target])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "onnx/model.onnx").is_file()
