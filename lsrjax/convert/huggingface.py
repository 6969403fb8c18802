"""Hugging Face checkpoints in: config, weights and tokenizer of BERT and XLM-R.

Nothing is taken on trust: code beside a model is never run, pickled weights are refused
unless they are asked for, and names, shapes and types of all tensors are compared with
config.json before any of them is read.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from flax import nnx

from lsrjax.convert import hub, tensors
from lsrjax.convert.names import (
    flatten_tree,
    import_names,
    import_tree,
    to_hf_name,
    to_hf_shape,
)
from lsrjax.convert.presets import PRESETS
from lsrjax.convert.tensors import CheckpointError, Stored, content, read_json
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import Classifier
from lsrjax.models.encoder import Encoder, EncoderConfig
from lsrjax.models.layers import MLMTransform
from lsrjax.tokenizer import files as tokenizer_files
from lsrjax.tokenizer.files import holds_tokenizer

# File names without a folder, so that copies for other runtimes in subfolders of a
# repository stay where they are.
CONFIG_FILES = ("config.json",)
WEIGHT_FILES = (tensors.WEIGHTS, tensors.INDEX, "model-*-of-*.safetensors")
_PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLED_FILES += ("pytorch_model-*-of-*.bin",)
TOKENIZER_FILES = tokenizer_files.FILES


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a load puts up with; nothing by default.

    Attributes:
      pickle: read `pytorch_model.bin` where there are no safetensors (needs torch).
      missing: regex of whole names of tensors that may be missing; they start fresh.
      left_over: regex of whole names of tensors that are left out.
    """

    pickle: bool = False
    missing: str = ""
    left_over: str = ""

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


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A pretrained model in our terms.

    Attributes:
      config: of the encoder.
      params: float32 numpy arrays, {'encoder': tree of `Encoder`} and, when the
        checkpoint has a masked-LM head, 'head': {'mlm': {'transform': tree of
        `MLMTransform`, 'decoder': [V, D], 'bias': [V]}}; 'decoder' is absent when it
        is tied to the word table. A cross-encoder has 'classifier': tree of
        `Classifier`.
      raw_config: the content of config.json.
      besides: tensors of another head, by name, that were asked for and found.
    """

    config: EncoderConfig
    params: dict[str, Any]
    raw_config: dict[str, Any]
    besides: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def load_checkpoint(
    path_or_id: str, allowed: Allowed = NOTHING, *, besides: Iterable[str] = ()
) -> Checkpoint:
    """Loads an encoder, with its masked-LM head or classifier if there is one.

    Args:
      path_or_id: folder with config.json and safetensors (one file, or shards with
        their index), or the id of a repository on the Hugging Face hub. What starts
        with '.', '/' or '~', or exists, is a folder and never looked up on the hub.
      allowed: what is put up with.
      besides: names of tensors that belong to another head.

    Raises:
      CheckpointError: something is missing, unreadable, or does not fit the config.
    """
    folder = hub.fetch(path_or_id, CONFIG_FILES + WEIGHT_FILES)
    raw, config = _read_config(folder)
    stored = open_weights(path_or_id, folder, raw, allowed)
    others = {name: stored.pop(name) for name in besides if name in stored}
    layout = _layout(raw, config)
    untied = raw.get("tie_word_embeddings") is False
    try:
        names = import_names(
            stored, layout, missing=allowed.missing, left_over=allowed.left_over
        )
        found = {path: stored[name] for path, name in names.items()}
        absent = _check_against_config(
            found, config, layout, allowed.missing, needs_decoder=untied
        )
    except ValueError as error:
        raise CheckpointError(f"Weights in {folder}: {error}") from error
    params = import_tree(
        {path: one.read().astype(np.float32) for path, one in found.items()}
        | fresh(absent, config),
        layout,
    )
    others = {name: one.read().astype(np.float32) for name, one in others.items()}
    return Checkpoint(config=config, params=params, raw_config=raw, besides=others)


def _layout(raw: Mapping[str, Any], config: EncoderConfig) -> str:
    """The names that the tensors have, by the model class in config.json."""
    kinds = [str(name) for name in raw.get("architectures") or ()]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return config.family
    if config.family == "distilbert":
        raise CheckpointError(
            f"config.json names {', '.join(kinds)}; cross-encoders are implemented for"
            " bert and xlm-roberta. Choose one of these."
        )
    return f"{config.family}-classifier"


def fresh(shapes: Mapping[str, tuple[int, ...]], config: EncoderConfig) -> dict:
    """First values, in the other program's layout, of parameters that are missing."""
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
    """The content of config.json.

    Args:
      path_or_id: as in `load_checkpoint`.

    Raises:
      CheckpointError: it is missing or unreadable.
    """
    return _read_raw_config(hub.fetch(path_or_id, CONFIG_FILES))


def read_config(path_or_id: str) -> EncoderConfig:
    """Reads the encoder's config alone, without downloading or reading weights.

    Args:
      path_or_id: as in `load_checkpoint`.

    Raises:
      CheckpointError: config.json is missing, unreadable or of another model.
    """
    return _read_config(hub.fetch(path_or_id, CONFIG_FILES))[1]


def read_architecture(path_or_id: str) -> tuple[EncoderConfig, bool]:
    """The encoder's config and whether a masked-LM head belongs to it.

    Reads config.json alone; the hub is not asked for a checkpoint in `PRESETS`.

    Args:
      path_or_id: as in `load_checkpoint`.

    Raises:
      CheckpointError: config.json is missing, unreadable or of another model.
    """
    if path_or_id in PRESETS:
        return PRESETS[path_or_id]
    raw, config = _read_config(hub.fetch(path_or_id, CONFIG_FILES))
    names = raw.get("architectures") or []
    return config, any(name.endswith("ForMaskedLM") for name in names)


def tokenizer_folder(path_or_id: str) -> Path:
    """The local folder with a checkpoint's tokenizer; downloads it if needed.

    Args:
      path_or_id: as in `load_checkpoint`.

    Raises:
      CheckpointError: the folder or repository, or the tokenizer in it, is missing.
    """
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
        raise CheckpointError(
            f"{folder} has no config.json{content(folder)}. Give the folder that "
            "transformers' save_pretrained wrote."
        )
    return read_json(path)


def _read_config(folder: Path) -> tuple[dict[str, Any], EncoderConfig]:
    raw = _read_raw_config(folder)
    try:
        return raw, EncoderConfig.from_hf(raw)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def open_weights(
    path_or_id: str, folder: Path, raw: Mapping[str, Any], allowed: Allowed
) -> dict[str, Stored]:
    """All tensors, not yet read, of safetensors or else, if allowed, of pickles.

    Args:
      path_or_id: what was asked for, for messages.
      folder: where the files are.
      raw: the content of config.json.
      allowed: what is put up with.

    Raises:
      CheckpointError: there are none, or not all, or they are unreadable.
    """
    stored = tensors.open_safetensors(folder)
    if stored is None and allowed.pickle:
        folder = hub.fetch(path_or_id, CONFIG_FILES + _PICKLED_FILES)
        stored = tensors.open_pickles(folder)
    if stored is None:
        raise CheckpointError(_no_weights(path_or_id, folder, raw))
    return stored


def _no_weights(path_or_id: str, folder: Path, raw: Mapping[str, Any]) -> str:
    """Message for a checkpoint without safetensors."""
    where, names = f"{folder} has", sorted(path.name for path in folder.iterdir())
    if not hub.is_local(path_or_id):
        where = f"Repository {path_or_id!r} on the Hugging Face hub has"
        try:
            names = huggingface_hub.list_repo_files(path_or_id)
        # Only makes the message poorer; why varies with the hub client's release.
        except Exception as error:
            where = (
                f"The downloaded part of repository {path_or_id!r} ({folder}; the list"
                f" of its files cannot be read: {type(error).__name__}: {error}) has"
            )
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


def _check_against_config(
    found: Mapping[str, Stored],
    config: EncoderConfig,
    layout: str,
    may_miss: str,
    *,
    needs_decoder: bool,
) -> dict[str, tuple[int, ...]]:
    """Compares tensors, none of them read, with what the config asks for.

    Returns:
      Path -> shape, in the other program, of those that are missing and may be.

    Raises:
      ValueError: lists what has not the shape that the config asks for.
    """
    layers = {path.split("/")[2] for path in found if path.startswith("encoder/layers")}
    # One layer too many shows that some are missing; a config may name any number.
    layers = min(config.num_layers, len(layers) + 1)
    bounded = dataclasses.replace(config, num_layers=layers)
    shapes = _expected_shapes(bounded, {path.split("/")[0] for path in found})
    if "head/mlm/decoder" not in found and not needs_decoder:
        shapes.pop("head/mlm/decoder", None)
    problems, absent = [], {}
    for path in sorted(shapes.keys() | found.keys()):
        name = to_hf_name(path, layout)
        want = to_hf_shape(path, shapes[path]) if path in shapes else None
        if path not in found:
            if re.fullmatch(may_miss, name):
                absent[path] = want
            else:
                problems.append(f"{name}: missing, {list(want)} expected")
            continue
        have = found[path].shape
        if want is None:
            problems.append(f"{name}: {list(have)} left over")
        elif have != want:
            problems.append(f"{name}: {list(have)}, {list(want)} expected")
        elif found[path].dtype not in tensors.FLOATING:
            problems.append(f"{name}: {found[path].dtype}, floating point expected")
    if problems:
        more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ValueError(
            f"{len(problems)} tensors do not fit config.json:"
            + "".join(f"\n  {problem}" for problem in problems[:40])
            + more
            + "\nThe two are of different models; take both from the same checkpoint."
        )
    return absent


def _expected_shapes(
    config: EncoderConfig, parts: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Path -> shape of our parameters, from the modules that will hold them."""

    def shapes(build, above: str) -> dict[str, tuple[int, ...]]:
        state = nnx.state(nnx.eval_shape(build), nnx.Param)
        leaves = flatten_tree(nnx.to_pure_dict(state), above)
        return {path: leaf.shape for path, leaf in leaves.items()}

    size, eps = config.hidden_size, config.layer_norm_eps
    expected = shapes(lambda: Encoder(config, rngs=nnx.Rngs(0)), "encoder/")
    if "classifier" in parts:
        expected |= shapes(lambda: Classifier(size, rngs=nnx.Rngs(0)), "classifier/")
    if "head" in parts:
        expected |= shapes(
            lambda: MLMTransform(size, eps, rngs=nnx.Rngs(0)), "head/mlm/transform/"
        )
        expected["head/mlm/decoder"] = (config.vocab_size, size)
        expected["head/mlm/bias"] = (config.vocab_size,)
    return expected
