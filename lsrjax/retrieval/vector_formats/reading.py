"""Opens vectors that were written: a file, or a folder of parts."""

import pathlib

from lsrjax import paths
from lsrjax.errors import InputError
from lsrjax.retrieval.vector_formats import parts
from lsrjax.retrieval.vector_formats.jsonl import JsonlVectors
from lsrjax.retrieval.vector_formats.npz import NpzVectors
from lsrjax.retrieval.vector_formats.parquet import ParquetVectors
from lsrjax.retrieval.vector_formats.vectors import Vectors

_KINDS = {".npz": NpzVectors, ".jsonl": JsonlVectors, ".parquet": ParquetVectors}


def open_vectors(path: str | pathlib.Path, field: str = "--vectors") -> Vectors:
    """The vectors of an .npz, a .jsonl, a .parquet, or a folder of parts.

    Args:
      path: as the user named it.
      field: the flag that named it, for messages.

    Raises:
      InputError: there are none, or they are damaged.
    """
    path = pathlib.Path(paths.local(path, field))
    if path.is_dir():
        return parts.open_folder(path, open_vectors)
    if not path.is_file():
        raise InputError(
            f"{field}: there is no {path} (from {pathlib.Path.cwd()}). Encode texts"
            " first: lsrjax encode --help."
        )
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise InputError(
            f"{field}: {path} is none of {', '.join(_KINDS)}, nor a folder of parts;"
            " other formats are for other programs. Encode again with such an --out."
        )
    return kind(path)
