"""Hugging Face checkpoints in: config, weights and tokenizer of BERT and XLM-R.

Weights are read from safetensors only, with numpy: torch is not needed, and pickled
weights (`pytorch_model.bin`), whose loading can run any code, are refused.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import jax.numpy as jnp

# Imported for its effect: numpy's safetensors reader knows bfloat16 through it.
import ml_dtypes  # noqa: F401
import numpy as np
from flax import nnx
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from lsrjax.convert.names import flatten_tree, import_state, to_hf_name, to_hf_shape
from lsrjax.convert.presets import PRESETS
from lsrjax.errors import InputError
from lsrjax.models.encoder import Encoder, EncoderConfig
from lsrjax.models.layers import MLMTransform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Any one of these is enough to build a tokenizer from.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "vocab.json")

# File names without a folder, so that copies for other runtimes in subfolders of a
# repository stay where they are.
_CONFIG_FILES = ("config.json",)
_WEIGHT_FILES = (_WEIGHTS, _INDEX, "model-*-of-*.safetensors")
_TOKENIZER_FILES = (
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)


class CheckpointError(InputError):
    """A checkpoint cannot be found, read or used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A pretrained model in our terms.

    Attributes:
      config: of the encoder.
      params: float32 numpy arrays, {'encoder': tree of `Encoder`} and, when the
        checkpoint has a masked-LM head, 'head': {'mlm': {'transform': tree of
        `MLMTransform`, 'decoder': [V, D], 'bias': [V]}}; 'decoder' is absent when it
        is tied to the word table.
      raw_config: the content of config.json.
      besides: tensors of another head, by name, that were asked for and found.
    """

    config: EncoderConfig
    params: dict[str, Any]
    raw_config: dict[str, Any]
    besides: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def load_checkpoint(path_or_id: str, *, besides: Iterable[str] = ()) -> Checkpoint:
    """Loads an encoder, with its masked-LM head if there is one.

    Args:
      path_or_id: folder with config.json and safetensors (one file, or shards with
        their index), or the id of a repository on the Hugging Face hub. What starts
        with '.', '/' or '~', or exists, is a folder and never looked up on the hub.
      besides: names of tensors that belong to another head.

    Raises:
      CheckpointError: something is missing, unreadable, or does not fit the config.
    """
    folder = _fetch(path_or_id, _CONFIG_FILES + _WEIGHT_FILES)
    raw, config = _read_config(folder)
    state = _read_state(path_or_id, folder, raw)
    state = {name: _as_float32(value) for name, value in state.items()}
    found = {name: state.pop(name) for name in besides if name in state}
    try:
        params = import_state(state, config.family)
        untied = raw.get("tie_word_embeddings") is False
        decoder = to_hf_name("head/mlm/decoder", config.family)
        _check_against_config(
            params, config, needs_decoder=untied and decoder not in state
        )
    except ValueError as error:
        raise CheckpointError(f"Weights in {folder}: {error}") from error
    return Checkpoint(config=config, params=params, raw_config=raw, besides=found)


def read_config(path_or_id: str) -> EncoderConfig:
    """Reads the encoder's config alone, without downloading or reading weights.

    Args:
      path_or_id: as in `load_checkpoint`.

    Raises:
      CheckpointError: config.json is missing, unreadable or of another model.
    """
    return _read_config(_fetch(path_or_id, _CONFIG_FILES))[1]


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
    raw, config = _read_config(_fetch(path_or_id, _CONFIG_FILES))
    names = raw.get("architectures") or []
    return config, any(name.endswith("ForMaskedLM") for name in names)


def load_tokenizer(path_or_id: str) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of a checkpoint.

    Args:
      path_or_id: as in `load_checkpoint`.

    Raises:
      CheckpointError: the tokenizer's files are missing or unreadable.
    """
    folder = _fetch(path_or_id, _CONFIG_FILES + _TOKENIZER_FILES)
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise CheckpointError(
            f"{folder} holds no tokenizer: none of {', '.join(_VOCABULARIES)} is there"
            f"{_content(folder)}. Save the tokenizer beside the model."
        )
    # Takes seconds, and only those who tokenize need it.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    # The tokenizers library raises plain Exceptions.
    except Exception as error:
        raise CheckpointError(
            f"The tokenizer in {folder} could not be read: {error}. Save it again with "
            "transformers' save_pretrained."
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"The tokenizer in {folder} is a {type(tokenizer).__name__}, which runs in "
            "Python. Save it as tokenizer.json with transformers' save_pretrained."
        )
    return tokenizer


def tokenizer_folder(path_or_id: str) -> Path:
    """The local folder with a checkpoint's `tokenizer.json`; downloads it if needed.

    Args:
      path_or_id: as in `load_checkpoint`.

    Raises:
      CheckpointError: the folder or repository, or the file in it, is missing.
    """
    folder = _fetch(path_or_id, ("tokenizer.json", "tokenizer_config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} holds no tokenizer.json{_content(folder)}. Save a fast tokenizer"
            " there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
        )
    return folder


def fetch(path_or_id: str, patterns: Iterable[str]) -> Path:
    """The local folder of a checkpoint; of one on the hub, files that match.

    Args:
      path_or_id: as in `load_checkpoint`.
      patterns: names of files, with wildcards.

    Raises:
      CheckpointError: there is no such folder or repository.
    """
    return _fetch(path_or_id, patterns)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      CheckpointError: it holds something else.
    """
    return _read_json(path)


def read_list(path: Path) -> list[Any]:
    """The JSON list in a file.

    Raises:
      CheckpointError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}. Download or save it again."
        ) from error
    if not isinstance(content, list):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}, not a list. Download or"
            " save it again."
        )
    return content


def tensor_names(path: Path) -> tuple[str, ...]:
    """Names of the tensors in a safetensors file; none if it is not there."""
    return tuple(_read_safetensors(path)) if path.is_file() else ()


def read_weights(path: Path, shapes: Mapping[str, tuple | None]) -> dict[str, Any]:
    """The tensors of a safetensors file, of these names and shapes and no others.

    Args:
      path: the file.
      shapes: by name; None: any.

    Raises:
      CheckpointError: the file is missing or unreadable, or tensors are missing, left
        over or of another shape; lists them.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing{_content(path.parent)}.")
    state = _read_safetensors(path)
    problems = []
    for name in sorted(shapes.keys() | state.keys()):
        want = shapes.get(name)
        if name not in state:
            problems.append(f"{name}: missing, {list(want or [])} expected")
        elif name not in shapes:
            problems.append(f"{name}: {list(state[name].shape)} left over")
        elif want is not None and state[name].shape != tuple(want):
            have = list(state[name].shape)
            problems.append(f"{name}: {have}, {list(want)} expected")
    if problems:
        raise CheckpointError(
            f"{path}: {len(problems)} tensors do not fit the configs beside it:"
            + "".join(f"\n  {problem}" for problem in problems)
            + "\nTake all files from the same checkpoint."
        )
    return {name: _as_float32(value) for name, value in state.items()}


def _is_local(path_or_id: str) -> bool:
    if path_or_id.startswith((".", "/", "~")) or Path(path_or_id).exists():
        return True
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path_or_id) is None


def _fetch(path_or_id: str, patterns: Iterable[str]) -> Path:
    """Folder of a checkpoint; downloads the files that match if it is on the hub."""
    if _is_local(path_or_id):
        folder = Path(path_or_id).expanduser()
        if not folder.is_dir():
            found = "is a file, not a folder" if folder.exists() else "does not exist"
            raise CheckpointError(
                f"Checkpoint {path_or_id!r} (absolute: {folder.absolute()}) {found}. "
                "Give the folder that holds config.json, or the id of a repository on "
                "the Hugging Face hub, such as 'FacebookAI/xlm-roberta-base'."
            )
        return folder
    instead = "or point the field to a local folder with the downloaded files."
    try:
        return Path(
            huggingface_hub.snapshot_download(path_or_id, allow_patterns=list(patterns))
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"Repository {path_or_id!r} on the Hugging Face hub is gated: accept its "
            f"terms at https://huggingface.co/{path_or_id} and log in with `hf auth "
            f"login`, {instead}"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder {path_or_id!r} here, and no repository of this id on "
            "the Hugging Face hub that you may read. Correct the id, log in with `hf "
            f"auth login` if the repository is private, {instead}"
        ) from error
    # The hub's client lets errors of its HTTP library through, and which library that
    # is differs between releases.
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(
            f"There is no folder {path_or_id!r} here, and the repository of this id "
            f"could not be reached on the Hugging Face hub ({found}). Check the "
            f"network and HF_HUB_OFFLINE, {instead}"
        ) from error


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f" (found: {', '.join(names[:20])})" if names else " (the folder is empty)"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}. Download or save it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(content).__name__}, not an object. Download or "
            "save it again."
        )
    return content


def _read_config(folder: Path) -> tuple[dict[str, Any], EncoderConfig]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no config.json{_content(folder)}. Give the folder that "
            "transformers' save_pretrained wrote."
        )
    raw = _read_json(path)
    try:
        return raw, EncoderConfig.from_hf(raw)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_state(
    path_or_id: str, folder: Path, raw: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """All tensors of model.safetensors, or else of the shards in the index."""
    if (folder / _WEIGHTS).is_file():
        return _read_safetensors(folder / _WEIGHTS)
    if not (folder / _INDEX).is_file():
        raise CheckpointError(_no_weights(path_or_id, folder, raw))
    index = _read_json(folder / _INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            f"{folder / _INDEX} has no object 'weight_map' (found: "
            f"{', '.join(index)}). Download or save it again."
        )
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder / _INDEX} names {', '.join(absent)}, which "
            f"{'is' if len(absent) == 1 else 'are'} not there{_content(folder)}. "
            "Download the missing files."
        )
    state = {}
    for shard in shards:
        state |= _read_safetensors(folder / shard)
    lost = [f"{name} ({weight_map[name]})" for name in weight_map if name not in state]
    if lost:
        raise CheckpointError(
            f"{folder / _INDEX} names tensors that its files do not hold: "
            f"{', '.join(lost[:20])}. The index and the files are of different "
            "checkpoints; download or save them together."
        )
    return state


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: "
            f"{error}. It was cut off or is a placeholder of Git LFS; download or save "
            "it again."
        ) from error


def _no_weights(path_or_id: str, folder: Path, raw: Mapping[str, Any]) -> str:
    """Message for a checkpoint without safetensors."""
    where, names = f"{folder} has", sorted(path.name for path in folder.iterdir())
    if not _is_local(path_or_id):
        where = f"Repository {path_or_id!r} on the Hugging Face hub has"
        try:
            names = huggingface_hub.list_repo_files(path_or_id)
        except Exception:
            # Only makes the message poorer; why varies with the hub client's release.
            where = f"The downloaded part of repository {path_or_id!r} ({folder}) has"
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if not pickles:
        return (
            f"{where} neither {_WEIGHTS} nor {_INDEX} (found: {', '.join(names[:20])})."
            " Give a checkpoint that transformers' save_pretrained wrote."
        )
    masked_lm = any("MaskedLM" in str(name) for name in raw.get("architectures") or ())
    auto_class = "AutoModelForMaskedLM" if masked_lm else "AutoModel"
    return (
        f"{where} no safetensors, only {', '.join(pickles[:5])}. These are pickles, "
        "which can run any code when loaded, and are refused. If you trust them, "
        "convert them once, in an environment with torch: from transformers import "
        f"{auto_class}, AutoTokenizer; "
        f"{auto_class}.from_pretrained({path_or_id!r}).save_pretrained('converted'); "
        f"AutoTokenizer.from_pretrained({path_or_id!r}).save_pretrained('converted'). "
        "Then point the field to the folder 'converted'."
    )


def _as_float32(value: np.ndarray) -> np.ndarray:
    # Other kinds stay, to be refused by name if a parameter has one.
    return (
        value.astype(np.float32) if jnp.issubdtype(value.dtype, np.floating) else value
    )


def _check_against_config(
    params: Mapping[str, Any], config: EncoderConfig, *, needs_decoder: bool
) -> None:
    """Raises a ValueError that lists what has not the shape the config asks for."""
    shapes = _expected_shapes(config, masked_lm="head" in params)
    found = flatten_tree(params)
    if "head/mlm/decoder" not in found and not needs_decoder:
        shapes.pop("head/mlm/decoder", None)
    problems = []
    for path in sorted(shapes.keys() | found.keys()):
        name = to_hf_name(path, config.family)
        want = list(to_hf_shape(path, shapes[path])) if path in shapes else None
        if path not in found:
            problems.append(f"{name}: missing, {want} expected")
            continue
        have = list(to_hf_shape(path, found[path].shape))
        if want is None:
            problems.append(f"{name}: {have} left over")
        elif have != want:
            problems.append(f"{name}: {have}, {want} expected")
        elif found[path].dtype != np.float32:
            problems.append(f"{name}: {found[path].dtype}, floating point expected")
    if problems:
        more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ValueError(
            f"{len(problems)} tensors do not fit config.json:"
            + "".join(f"\n  {problem}" for problem in problems[:40])
            + more
            + "\nThe two are of different models; take both from the same checkpoint."
        )


def _expected_shapes(
    config: EncoderConfig, *, masked_lm: bool
) -> dict[str, tuple[int, ...]]:
    """Path -> shape of our parameters, from the modules that will hold them."""

    def shapes(build, above: str) -> dict[str, tuple[int, ...]]:
        state = nnx.state(nnx.eval_shape(build), nnx.Param)
        leaves = flatten_tree(nnx.to_pure_dict(state), above)
        return {path: leaf.shape for path, leaf in leaves.items()}

    size, eps = config.hidden_size, config.layer_norm_eps
    expected = shapes(lambda: Encoder(config, rngs=nnx.Rngs(0)), "encoder/")
    if masked_lm:
        expected |= shapes(
            lambda: MLMTransform(size, eps, rngs=nnx.Rngs(0)), "head/mlm/transform/"
        )
        expected["head/mlm/decoder"] = (config.vocab_size, size)
        expected["head/mlm/bias"] = (config.vocab_size,)
    return expected
