"""Vectors of several views of the same texts, whose scores add up, such as BGE-M3's."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from lsrjax import json_files, paths
from lsrjax.errors import InputError
from lsrjax.retrieval.search import Several
from lsrjax.retrieval.vector_formats.parts import MANIFEST
from lsrjax.retrieval.vector_formats.reading import open_vectors
from lsrjax.retrieval.vector_formats.vectors import Vectors

SEVERAL = "several"


class SeveralVectors(Vectors):
    """The vectors of several views of the same texts.

    `kind` is "several", and a block's matrix `Several`, in the order of the views.
    """

    def __init__(self, name: str, views: Mapping[str, Vectors]):
        """Raises InputError if the views have different numbers of texts."""
        first = next(iter(views.values()))
        self.name, self.views = name, dict(views)
        self.kind, self.terms = SEVERAL, None
        self.columns = sum(one.columns for one in views.values())
        self.made_of: dict[str, Any] = {**first.made_of, "views": [*views]}
        self._rows = len(first)
        for view, one in views.items():
            if len(one) != len(first):
                raise InputError(
                    f"{name}: the view {view} has {len(one):,} texts, and others"
                    f" {len(first):,}. Encode again."
                )

    def blocks(self, rows: int = 8192) -> Iterator[tuple[list[str], Any]]:
        """As of `Vectors`."""
        each = [one.blocks(rows) for one in self.views.values()]
        for blocks in zip(*each, strict=True):
            ids = blocks[0][0]
            if any(own != ids for own, _ in blocks):
                raise InputError(
                    f"{self.name}: the views are of different texts (from {ids[0]!r}"
                    " on). Encode again."
                )
            yield ids, Several([matrix for _, matrix in blocks])


def open_views(path: str | pathlib.Path, field: str = "--vectors") -> Vectors:
    """Like `open_vectors`; a folder of several views is `SeveralVectors`."""
    folder = pathlib.Path(paths.local(path, field))
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return open_vectors(path, field)
    views = json_files.read_json(manifest, "Encode again.").get("views")
    if not isinstance(views, list) or not views:
        return open_vectors(path, field)
    for view in views:
        if not isinstance(view, str) or pathlib.PurePath(view).name != view:
            raise InputError(f"{manifest}: {view!r} names no view. Encode again.")
    return SeveralVectors(
        str(folder), {view: open_vectors(folder / view, field) for view in views}
    )
