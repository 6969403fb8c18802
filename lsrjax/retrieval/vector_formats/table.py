"""The formats that vectors are written in.

A format is a line of the table: an `Arrays`, or a `Lines` with a function of a text.
"""

import pathlib
from typing import TypeAlias

from lsrjax.errors import InputError
from lsrjax.retrieval.vector_formats import lines, npz, parquet
from lsrjax.retrieval.vector_formats.arrays import Arrays
from lsrjax.retrieval.vector_formats.lines import Lines
from lsrjax.retrieval.vector_formats.vectors import DENSE, KINDS, SPARSE

Format: TypeAlias = Arrays | Lines

# SEISMIC compares the first 100 characters, and numpy drops a NUL at the end.
_SHORT = r"(?s:.{101})|\x00"
# Anserini joins names with blanks, splits them as Java does (also after 255 UTF-16
# units), and trims what Java does.
_WORDS = rf"[\s\x00-\x20]|^$|{_SHORT}"
# Anserini's documents are texts in which a term is repeated as often as it weighs.
_REPEATED = 2**24

FORMATS: dict[str, Format] = {
    "npz": Arrays("scipy.sparse.load_npz, numpy, lsrjax", npz.assemble, ".npz"),
    "jsonl": Lines("lsrjax, anything that reads JSON", lines.jsonl, KINDS),
    "parquet": Arrays("pyarrow, pandas, lsrjax", parquet.assemble, ".parquet"),
    "anserini": Lines(
        "Anserini, Pyserini (JsonVectorCollection)",
        lines.anserini,
        quantize=100,
        positive=True,
        unfit=_WORDS,
        most_weight=_REPEATED,
    ),
    "anserini-topics": Lines(
        "Anserini (queries of SearchCollection, TsvString)",
        lines.anserini_topics,
        quantize=100,
        positive=True,
        unfit=_WORDS,
        most_terms=1024,  # Lucene's clauses; more, and a query finds nothing
        most_weight=_REPEATED,
        plain=True,
        suffix=".tsv",
    ),
    "seismic": Lines(
        "SeismicIndex.build of pyseismic-lsr", lines.seismic, unfit=_SHORT
    ),
    "opensearch": Lines(
        "OpenSearch's _bulk (rank_features, knn_vector)",
        lines.bulk,
        (SPARSE, DENSE),
        positive=True,
        unfit=r"\.",
        suffix=".ndjson",
    ),
    "elasticsearch": Lines(
        "Elasticsearch's _bulk (sparse_vector, dense_vector)",
        lines.bulk,
        (SPARSE, DENSE),
        positive=True,
        unfit=r"\.",
        suffix=".ndjson",
    ),
    "qdrant": Lines("Qdrant (points of upsert)", lines.qdrant, KINDS),
    "milvus": Lines(
        "Milvus (rows of insert, bulk import)",
        lines.milvus,
        (SPARSE, DENSE),
        positive=True,
        floats=True,
    ),
}


def format_of(name: str, out: pathlib.Path) -> tuple[str, Format]:
    """The format of `--format`, or without one that of the file's suffix.

    Raises:
      InputError: an unknown format, or a file whose suffix is another's.
    """
    if name and name not in FORMATS:
        raise InputError(f"--format is {name!r}; known: {', '.join(FORMATS)}.")
    if name:
        found = FORMATS[name]
        if out.suffix not in ("", found.suffix):
            raise InputError(
                f"--out {out}: a file of --format {name} ends with {found.suffix}; a"
                " name without an ending is a folder of parts."
            )
        return name, found
    for known in ("npz", "jsonl", "parquet"):
        if out.suffix in ("", FORMATS[known].suffix):
            return known, FORMATS[known]
    raise InputError(
        f"--out {out}: unknown type; name a .npz or a .jsonl file, a .parquet, a"
        f" folder, or say the --format: {', '.join(FORMATS)}."
    )
