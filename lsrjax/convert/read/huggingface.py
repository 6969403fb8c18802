"""Reads Hugging Face checkpoints of encoders: config, weights and tokenizer.

Nothing is trusted: code in a model's folder is never run, pickled weights are refused
by default, and names, shapes and types of all tensors are compared with config.json
before any tensor is read.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np

from lsrjax.convert.names import import_names, import_tree
from lsrjax.convert.read import (
    expected_tensors,
    hub,
    task_adapters,
    tensors,
    wrappers,
)
from lsrjax.convert.read.peft import Adapter, adapted
from lsrjax.convert.read.tensors import CheckpointError, Stored, content, read_json
from lsrjax.errors import InputError
from lsrjax.models.backbones import table
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.tokenizer import files as tokenizer_files
from lsrjax.tokenizer.files import holds_tokenizer

_ADAPTER_CONFIG = "adapter_config.json"
# File names without a folder, to skip copies for other runtimes in subfolders of a
# repository.
CONFIG_FILES = ("config.json",)
WEIGHT_FILES = (tensors.WEIGHTS, tensors.INDEX, "model-*-of-*.safetensors")
_PICKLED_FILES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-*-of-*.bin",
)
TOKENIZER_FILES = tokenizer_files.FILES


@dataclasses.dataclass(frozen=True)
class Allowed:
    """Relaxations allowed when loading; none by default.

    Attributes:
      pickle: read `pytorch_model.bin` if there are no safetensors (needs torch).
      missing: regex of whole names of tensors that may be missing, to initialize.
      left_over: regex of whole names of tensors to leave out.
      values: read the weights. If not, zeros of the same shapes replace them, to plan
        with, and missing weights are not downloaded.
      adapter: the task whose adapter is merged, see `task_adapters`.
      peft: an adapter of PEFT that is merged.
    """

    pickle: bool = False
    missing: str = ""
    left_over: str = ""
    values: bool = True
    adapter: str = ""
    peft: Adapter | None = None

    def __post_init__(self):
        for field in ("missing", "left_over"):
            try:
                re.compile(getattr(self, field))
            except re.error as error:
                raise InputError(
                    f"--allow_{field} {getattr(self, field)!r} is no regular"
                    f" expression: {error}."
                ) from error


NOTHING = Allowed()
SHAPES = Allowed(values=False)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A pretrained model in our format.

    Attributes:
      config: of the encoder.
      params: float32 numpy arrays: {'encoder': tree of `Encoder`}; with a masked-LM
        head, 'head': {'mlm': {'transform': tree of `MLMTransform`, 'decoder': [V, D],
        'bias': [V]}}, without 'decoder' if it is tied to the word table; for a
        cross-encoder, 'classifier': tree of the family's classifier.
      extra: requested tensors of another head that were found, by name.
    """

    config: EncoderConfig
    params: dict[str, Any]
    raw_config: dict[str, Any]
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def load_checkpoint(
    path_or_id: str, allowed: Allowed = NOTHING, *, extra: Iterable[str] = ()
) -> Checkpoint:
    """Loads an encoder, with its masked-LM head or classifier if it has one.

    Args:
      path_or_id: folder with config.json and safetensors (one file, or shards with
        their index), or the id of a repository on the Hugging Face hub. A name that
        starts with '.', '/' or '~', or that exists, is always a folder.
      extra: names of tensors of another head to read too.

    Raises:
      CheckpointError: something is missing, unreadable, or does not fit the config.
    """
    folder = hub.fetch(path_or_id, CONFIG_FILES + WEIGHT_FILES * allowed.values)
    raw, config = _read_config(folder)
    if not allowed.values and not holds_weights(folder):
        return Checkpoint(config, expected_tensors.promised_by(raw, config), raw)
    stored = open_weights(path_or_id, folder, raw, allowed)
    others = {name: stored.pop(name) for name in extra if name in stored}
    layout = expected_tensors.layout_of(raw, config)
    untied = not expected_tensors.is_tied(raw, config)
    # A tied decoder can be all of a head.
    bare = not untied and not table.backbone(config.family).head_bias
    bare = bare and expected_tensors.has_language_model(raw, config)
    zeros = table.backbone(config.family).names.zeros
    may_miss = "|".join(filter(None, (allowed.missing, zeros)))
    try:
        names = import_names(
            stored, layout, missing=allowed.missing, left_over=allowed.left_over
        )
        found = {path: stored[name] for path, name in names.items()}
        absent = expected_tensors.check_against_config(
            found, config, layout, may_miss, needs_decoder=untied
        )
    except ValueError as error:
        raise CheckpointError(f"Weights in {folder}: {error}") from error
    if not allowed.values:
        parts = {path.split("/")[0] for path in found}
        parts |= {"head"} if bare else set()
        params = expected_tensors.promised(config, *parts, tied=not untied)
        unused = {name: tensors.zeros(one.shape) for name, one in others.items()}
        return Checkpoint(config, params, raw, unused)
    params = import_tree(
        {path: one.floats() for path, one in found.items()} | fresh(absent, config),
        layout,
    )
    if bare:
        params.setdefault("head", {"mlm": {}})
    unused = {name: one.floats() for name, one in others.items()}
    return Checkpoint(config, params, raw, unused)


def holds_weights(folder: Path) -> bool:
    """Whether there are safetensors, complete or not."""
    return any((folder / name).is_file() for name in (tensors.WEIGHTS, tensors.INDEX))


def fresh(shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig) -> dict:
    """Initial values of missing parameters, in the other program's layout."""
    rng = np.random.default_rng(0)
    values = {}
    for path, shape in shapes.items():
        if path.endswith("/bias"):
            values[path] = np.zeros(shape, np.float32)
        elif path.endswith("/scale"):
            values[path] = np.ones(shape, np.float32)
        else:
            drawn = rng.normal(0, config.initializer_range, shape)
            values[path] = drawn.astype(np.float32)
    return values


def read_raw_config(path_or_id: str) -> dict[str, Any]:
    """The content of config.json, of a folder or hub id."""
    return _read_raw_config(hub.fetch(path_or_id, CONFIG_FILES))


def read_config(path_or_id: str) -> EncoderConfig:
    """Reads only the encoder's config of a folder or hub id, and no weights."""
    return _read_config(hub.fetch(path_or_id, CONFIG_FILES))[1]


def tokenizer_folder(path_or_id: str) -> Path:
    """The local folder with a checkpoint's tokenizer; downloads it if needed."""
    folder = hub.fetch(path_or_id, CONFIG_FILES + TOKENIZER_FILES)
    if not holds_tokenizer(folder):
        raise CheckpointError(
            f"{folder} holds no tokenizer.json{content(folder)}. Save a fast tokenizer"
            " there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        )
    return folder


def _read_raw_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / _ADAPTER_CONFIG).is_file():
            raise CheckpointError(
                f"{folder} holds an adapter of PEFT alone. {wrappers.MERGE}"
            )
        raise CheckpointError(
            f"{folder} has no config.json{content(folder)}. Give the folder that "
            "transformers' save_pretrained wrote."
        )
    return read_json(path)


def _read_config(folder: Path) -> tuple[dict[str, Any], EncoderConfig]:
    raw = _read_raw_config(folder)
    try:
        return raw, table.read_config(raw)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def open_weights(
    path_or_id: str, folder: Path, raw: Mapping[str, Any], allowed: Allowed
) -> dict[str, Stored]:
    """All tensors, unread, of safetensors or else, if allowed, of pickles.

    Wrappers of other programs are removed from their names.

    Raises:
      CheckpointError: tensors are missing or unreadable, or an adapter is not merged
        into them.
    """
    stored: Mapping[str, Stored] | None = tensors.open_safetensors(folder)
    if stored is None and allowed.pickle:
        folder = hub.fetch(path_or_id, CONFIG_FILES + _PICKLED_FILES)
        stored = tensors.open_pickles(folder)
    if stored is None:
        raise CheckpointError(_no_weights(path_or_id, folder, raw))
    stored = task_adapters.merged(stored, raw, folder, allowed.adapter)
    stored = wrappers.taken_off(stored, folder)
    return adapted(stored, allowed.peft) if allowed.peft else stored


def _no_weights(path_or_id: str, folder: Path, raw: Mapping[str, Any]) -> str:
    """Message for a checkpoint without safetensors."""
    where, names = f"{folder} has", sorted(path.name for path in folder.iterdir())
    if not hub.is_local(path_or_id):
        where = f"Repository {path_or_id!r} on the Hugging Face hub has"
        try:
            names = huggingface_hub.list_repo_files(path_or_id)
        # Only shortens the message; what it raises differs by release.
        except Exception as error:
            where = (
                f"The downloaded part of repository {path_or_id!r} ({folder}; the list"
                f" of its files cannot be read: {type(error).__name__}: {error}) has"
            )
    if "adapter_model.safetensors" in names:
        return f"{where} the weights of an adapter of PEFT alone. {wrappers.MERGE}"
    pickles = [name for name in names if name.endswith(tensors.PICKLES)]
    if not pickles and "model.onnx" in names:
        return (
            f"{where} no safetensors, only model.onnx, which is for onnxruntime and not"
            " read here. Name the run or the folder that it was exported from."
        )
    if not pickles:
        return (
            f"{where} neither {tensors.WEIGHTS} nor {tensors.INDEX} (found: "
            f"{', '.join(names[:20])}). Give a checkpoint that transformers'"
            " save_pretrained wrote."
        )
    return (
        f"{where} no safetensors, only {', '.join(pickles[:5])}. These are pickles, "
        "which can run any code when loaded, and are refused. Convert them once, in an "
        "environment with torch, which then reads tensors and nothing else: python -m "
        f"lsrjax.convert --from {path_or_id} --to lsrjax --out converted --allow_pickle"
        ". Then point the field to the folder 'converted'."
    )
