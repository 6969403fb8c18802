"""Filters a config for a model card: names, without anyone's folders."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# Fields of a config that name files, or a model by its folder or hub id.
_FILES = ("files", "corpus", "queries")
_REFERENCES = ("model", "encoder", "head", "tokenizer", "dataset")
# After a language, `datasets:`, both or neither.
_PATH = re.compile(r"(?P<before>(?:[A-Za-z][\w-]*:(?!//))*)(?P<path>.*)", re.DOTALL)
_STARTS = ("/", "~", "./", "../", "file:")


def tree(value: Any, field: str = "") -> Any:
    """A config, or a part of it under the key `field`, made fit to publish."""
    if field == "trackers" and isinstance(value, Mapping):
        return [*value]  # their options may name a server, with a password
    if isinstance(value, Mapping):
        # Files by language, and subsets by data set.
        by_name = field in (*_FILES, "dataset") and "dataset" not in value
        return {
            reference(key) if by_name and field == "dataset" else key: tree(
                one, field if by_name else key
            )
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [tree(one, field) for one in value]
    if not isinstance(value, str):
        return value
    if field in _FILES:
        return files(value)
    return reference(value) if field in _REFERENCES else _any(value)


def files(text: str) -> str:
    """The files of a field, without their folders."""
    return ",".join(_names(text))


def reference(text: str) -> str:
    """A model or data set: its hub id, or the name of its folder."""
    parts = [part.strip() for part in text.split(",")]
    if text.startswith(("stage:", "embedded:")) or all(map(is_hub_id, parts)):
        return text
    return files(text)


def is_hub_id(text: str) -> bool:
    """Whether it looks like a hub id and is not a folder here."""
    return HUB_ID.fullmatch(text) is not None and not pathlib.Path(text).exists()


def _any(text: str) -> str:
    """Shortens a value that looks like files, and paths within other text."""
    if _split(text)[1].startswith(_STARTS):
        return files(text)
    return re.sub(r"(^|[\s,:])~?/(?:[^/,:\s]+/)+", r"\1…/", text)


def _split(text: str) -> tuple[str, str]:
    found = _PATH.match(text)
    assert found  # it fits any text
    return found["before"], found["path"]


def _names(text: str) -> list[str]:
    """The last part of each of the comma-separated paths."""
    names = []
    for part in text.split(","):
        before, path = _split(part.strip())
        hub = before.endswith("datasets:") and is_hub_id(path)
        if hub or not re.search(r"[/\\]", path):
            names.append(before + path)
            continue
        name = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
        names.append(f"{before}…/{name}")
    if not re.search(r"[/\\]", text):
        return names
    # A folder may contain a comma; the part before it is then not a file.
    *others, last = names
    return [*(name if "." in name or ":" in name else "…" for name in others), last]
