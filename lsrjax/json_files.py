"""Writes JSON files atomically, and reads this package's own with advice on errors."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from lsrjax.errors import InputError


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes JSON; a reader never sees a part of it."""
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file; a reader never sees a part of it, even after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        # On a full disk, the partial file would take the little space left.
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(
    path: pathlib.Path, advice: str, parse: Callable[[dict], Any] = dict
) -> Any:
    """The object in one of our own files, or what `parse` makes of it.

    `parse` may raise the usual errors for a wrong key, type or value. Any error becomes
    an `InputError` that ends with the advice.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}, not an object")
        return parse(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}). {advice}") from error
