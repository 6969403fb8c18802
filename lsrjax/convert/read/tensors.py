"""Tensors in files, with names and shapes known before any is read.

A file's header is checked against its length when it is opened, and shapes can be
compared with a model's before memory is allocated.
"""

import dataclasses
import json
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# Imported for its side effect: numpy's safetensors reader needs it for bfloat16.
import ml_dtypes  # noqa: F401
import numpy as np
from safetensors import SafetensorError, safe_open

from lsrjax import finite
from lsrjax.distributed import trees
from lsrjax.errors import InputError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Types that a parameter may have.
FLOATING = ("float16", "bfloat16", "float32", "float64")
# Of safetensors; others keep their names, and are refused by them.
_TYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}
_LFS = b"version https://git-lfs"


class CheckpointError(InputError):
    """A checkpoint cannot be found, read or used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
      dtype: in numpy's spelling.
      read: returns its values unchanged.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def floats(self) -> np.ndarray:
        """Its values as float32; an `InputError` if one is not finite."""
        return finite.floats(self.read(), self.name, self.path)


def open_safetensors(folder: Path) -> dict[str, Stored] | None:
    """The tensors of model.safetensors, or else of its shards; None without either."""
    if (folder / WEIGHTS).is_file():
        return _safetensors(folder / WEIGHTS)
    return _shards(folder / INDEX, _safetensors)


def open_pickles(folder: Path) -> dict[str, Stored] | None:
    """As `open_safetensors`, for pytorch_model.bin; reads only tensors, no code."""
    path = folder / "pytorch_model.bin"
    if path.is_file():
        return _pickled(path)
    return _shards(path.with_name(f"{path.name}.index.json"), _pickled)


def open_file(path: Path) -> dict[str, Stored]:
    """The tensors of one file; of a pickle, only tensors are read, no code."""
    return (_pickled if path.suffix in PICKLES else _safetensors)(path)


def content(folder: Path) -> str:
    """The content of a folder, for messages."""
    if not folder.is_dir():
        return f" (there is no folder {folder})"
    names = sorted(path.name for path in folder.iterdir())
    return f" (found: {', '.join(names[:20])})" if names else " (the folder is empty)"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; anything else is a `CheckpointError`."""
    return _read_json(path, dict, "an object")


def read_list(path: Path) -> list[Any]:
    """The JSON list in a file; anything else is a `CheckpointError`."""
    return _read_json(path, list, "a list")


def _read_json(path: Path, kind: type, name: str) -> Any:
    def number(text: str) -> float:
        if math.isfinite(value := float(text)):
            return value
        raise ValueError(f"{text} is not a finite number")

    try:
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text, parse_constant=number, parse_float=number)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing. Download or save the whole folder again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}. Download or save it again."
        ) from error
    if not isinstance(found, kind):
        raise CheckpointError(
            f"{path} holds a JSON {type(found).__name__}, not {name}. Download or save"
            " it again."
        )
    return found


def check_types(
    path: Path, config: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]
) -> None:
    """Refuses values of the wrong type in the content of a file.

    `kinds` has the type or types by key; a bool is not a number, null is as absent.
    """
    for key, kind in kinds.items():
        value = config.get(key)
        kinds_of_key = kind if isinstance(kind, tuple) else (kind,)
        if value is not None and type(value) not in kinds_of_key:
            wanted = " or ".join(_NAMES[one] for one in kinds_of_key)
            raise CheckpointError(
                f"{path}: {key} is {value!r}, which has to be {wanted}. Download or"
                " save it again."
            )


def strings(path: Path, key: str, values: Any) -> list[str]:
    """A key's value, which must be a list of strings; null is an empty list."""
    values = [] if values is None else values
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise CheckpointError(
            f"{path}: {key} is {values!r}, which has to be a list of strings. Download"
            " or save it again."
        )
    return values


_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def tensor_names(path: Path) -> tuple[str, ...]:
    """Names of the tensors in a safetensors file; none if it does not exist."""
    return tuple(open_file(path)) if path.is_file() else ()


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Stands for a tensor that is not read; takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def misfits(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Describes shapes that are missing, left over, or differ from the wanted ones."""

    def line(name: str) -> str:
        if name not in found:
            return f"{name}: missing, {list(wanted[name])} expected"
        if name not in wanted:
            return f"{name}: {list(found[name])} left over"
        return f"{name}: {list(found[name])}, {list(wanted[name])} expected"

    return [line(name) for name in trees.unequal(found, wanted)]


def read_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, values: bool = True
) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, which must have exactly these shapes.

    Without `values`, `zeros` replace the tensors.

    Raises:
      CheckpointError: the file is missing or unreadable, or tensors are missing, left
        over or of another shape; lists them.
    """
    if not values:
        return {name: zeros(shape) for name, shape in shapes.items()}
    if not path.is_file():
        raise CheckpointError(f"{path} is missing{content(path.parent)}.")
    state = open_file(path)
    if problems := misfits({name: one.shape for name, one in state.items()}, shapes):
        raise CheckpointError(
            f"{path}: {len(problems)} tensors do not fit the configs beside it:"
            + "".join(f"\n  {problem}" for problem in problems)
            + "\nTake all files from the same checkpoint."
        )
    return {name: _floats(one) for name, one in state.items()}


def _floats(stored: Stored) -> np.ndarray:
    """Floating point of any width as float32; other types unchanged."""
    return stored.floats() if stored.dtype in FLOATING else stored.read()


def _shards(path: Path, opened: Callable[[Path], dict[str, Stored]]):
    """The tensors of the files in an index; None without an index."""
    if not path.is_file():
        return None
    index, folder = read_json(path), path.parent
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            f"{path} has no object 'weight_map' (found: "
            f"{', '.join(index)}). Download or save it again."
        )
    shards = _file_names(weight_map.values(), path)
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{path} names {', '.join(absent)}, which "
            f"{'is' if len(absent) == 1 else 'are'} not there{content(folder)}. "
            "Download the missing files."
        )
    stored: dict[str, Stored] = {}
    for shard in shards:
        stored |= opened(folder / shard)
    lost = [f"{name} ({weight_map[name]})" for name in weight_map if name not in stored]
    if lost:
        raise CheckpointError(
            f"{path} names tensors that its files do not hold: "
            f"{', '.join(lost[:20])}. The index and the files are of different "
            "checkpoints; download or save them together."
        )
    return stored


def _file_names(values: Iterable[Any], path: Path) -> list[str]:
    """The distinct names; refuses those that lead out of the folder."""
    for value in values:
        if not isinstance(value, str) or pathlib.PurePath(value).name != value:
            raise CheckpointError(
                f"{path} names {value!r}, which is no file beside it. Download or save"
                " it again."
            )
    return sorted(set(values))


def _safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file of safetensors."""
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CheckpointError(_placeholder(path))
    try:
        # Refuses a header that does not describe the whole file: lengths beyond its
        # end, tensors that overlap or leave gaps.
        opened = safe_open(path, framework="numpy")
        names = list(opened.keys())
        slices = {name: opened.get_slice(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: "
            f"{error}. It was cut off; download or save it again."
        ) from error

    def stored(name: str) -> Stored:
        dtype = slices[name].get_dtype()
        shape = tuple(slices[name].get_shape())
        dtype = _TYPES.get(dtype, dtype)
        return Stored(name, path, shape, dtype, lambda: opened.get_tensor(name))

    return {name: stored(name) for name in names}


def _placeholder(path: Path) -> str:
    return (
        f"{path} ({path.stat().st_size} bytes) is no weights but a placeholder of Git"
        " LFS. Run `git lfs pull` there, or download the file."
    )


def _pickled(path: Path) -> dict[str, Stored]:
    with open(path, "rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise CheckpointError(_placeholder(path))
    try:
        import torch
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a pickle, which only torch reads: pip install torch, or have it"
            " saved as safetensors."
        ) from error
    try:
        # In torch's usual format, tensors are read on use.
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # On bytes that torch did not write, it may raise anything.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) does not load as a file of tensors"
            f" and nothing else: {reason} It was cut off, or holds code, which is never"
            " run."
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    others = (
        [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
        if isinstance(found, dict)
        else [type(found).__name__]
    )
    if others:
        raise CheckpointError(
            f"{path} holds {', '.join(map(str, others[:10]))} instead of tensors by"
            " name. Save the model's state_dict() there."
        )

    def stored(name: str, value) -> Stored:
        def read() -> np.ndarray:
            # numpy cannot hold torch's bfloat16.
            wide = value.dtype in (torch.bfloat16, torch.float16)
            return (value.detach().float() if wide else value.detach()).numpy()

        dtype = str(value.dtype).partition(".")[2]
        return Stored(name, path, tuple(value.shape), dtype, read)

    return {name: stored(name, value) for name, value in found.items()}
