"""Sources of training examples: random access to one of two kinds of example.

A source is a sequence of `Pair` or of `Group`, with a one-line `description`. To add
one, write it here and add a line to `SOURCES`.
"""

import dataclasses
import functools
import os
import pathlib

import numpy as np

from lsrjax import paths
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import Group, Items, Text
from lsrjax.data.reading import plain
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.corpus import Corpus, state
from lsrjax.data.reading.files import read_datasets, read_files
from lsrjax.data.reading.formats import FORMATS
from lsrjax.data.reading.judgements import read_qrels
from lsrjax.data.reading.rows import Rows, TfdsRows
from lsrjax.data.reading.rows_to_examples import Lookup
from lsrjax.data.reading.teacher_ensembles import Ensemble, parse_weights
from lsrjax.errors import InputError


class WithNegatives:
    """Adds negatives from a corpus, and a teacher's scores, to a source of groups."""

    def __init__(
        self,
        source,
        corpus: Items[Text],
        negatives: np.ndarray,
        scores: np.ndarray | None,
    ):
        """Adds `corpus[negatives[i]]` to group i.

        Args:
          source: groups; only the first positive of each is kept.
          negatives: [len(source), K] positions in the corpus; -1 = none.
          scores: [len(source), 1 + K] of the positive and the negatives, or None.
        """
        self.description = source.description
        self._source = source
        self._corpus = corpus
        self._negatives = negatives
        self._scores = scores

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Group:
        group = self._source[index]
        known = self._negatives[index] >= 0
        return dataclasses.replace(
            group,
            positives=group.positives[:1],
            negatives=[self._corpus[i] for i in self._negatives[index][known]],
            scores=None
            if self._scores is None
            else self._scores[index][np.append(True, known)],
        )

    def place(self, index: int) -> dict:
        """Where a group is, for messages."""
        if hasattr(self._source, "place"):
            return self._source.place(index)
        return {"file": self.description, "row": index}


def open_source(
    config, kind: str, *, held_out: bool = False, mined: bool = False, where: str = ""
):
    """The source that a stage's `data` names.

    Args:
      held_out: data for evaluation, read without the teacher's scores; it need not
        have the ids that the training data looks up in `config.corpus`. A broken
        judgement or a broken text that it refers to is an error.
      mined: negatives are mined from `config.corpus`, not read from the rows.

    Raises:
      InputError: data that is missing or broken, or of no known format.
    """
    where = where or ("config.dev" if held_out else "config.data")
    source = SOURCES[config.source](config, kind, held_out, where)
    if not isinstance(source, Rows):
        return source
    if held_out and source.by_id:
        for error in source.bad_texts:
            raise error
    for field in ("corpus", "queries") if not held_out else ():
        used = field in FORMATS[source.format].needs or (field == "corpus" and mined)
        if config[field] and not used:
            raise InputError(
                f"{where}.{field} = {config[field]!r} would have no effect: the"
                f" data is of the format {source.format}, which does not look texts"
                f" up in it. Remove it, or set {where}.format."
            )
    return source


def _rows(tables, config, kind, held_out: bool, where: str) -> Rows:
    return Rows(
        tables,
        kind,
        config.columns,
        format=config.format,
        lookup=Lookup(
            corpus=_corpus(config, "corpus", where),
            queries=_corpus(config, "queries", where),
            ensemble=_ensemble(config),
            min_label=config.min_label,
        ),
        scores=not held_out,
        field=where,
    )


def _corpus(config, field: str, where: str) -> Corpus | None:
    # Dev data looks up ids in the training data's corpus.
    field_of = "config.data" if where == "config.dev" else where
    return _indexed(config[field], f"{field_of}.{field}") if config[field] else None


def _indexed(files: str, field: str) -> Corpus:
    return _index_of(files, state(files, field))


# Training and dev data, and the stages of a run, often share a corpus.
@functools.lru_cache(maxsize=4)
def _index_of(files: str, state: tuple) -> Corpus:
    return Corpus(files, "config.data.corpus", strict=False)


def _ensemble(config) -> Ensemble:
    weights = parse_weights(config.score_weights)
    return Ensemble(config.score_normalization, weights)


def beir_folder(config, where: str) -> str | None:
    """The BEIR folder that `data` or `dev` names; None if it names other files."""
    folder = paths.local(config.files, f"{where}.files")
    found = os.path.isfile(beir_files(folder, config.split)[0])
    return folder if config.format == "beir" or found else None


def beir_files(folder: str, split: str) -> list[str]:
    """Corpus, queries and judgements of a BEIR folder, possibly compressed."""
    names = ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
    return [plain.or_packed(os.path.join(folder, name)) for name in names]


def _open_files(config, kind, held_out, where):
    if (folder := beir_folder(config, where)) is not None:
        return _open_beir(pathlib.Path(folder), config, kind, held_out, where)
    # Lines of ids are allowed only together with the texts.
    lists = config.format == "colbert" or bool(config.queries and config.corpus)
    tables = read_files(config.files, lists, f"{where}.files")
    return _rows(tables, config, kind, held_out, where)


def _open_beir(folder: pathlib.Path, config, kind, held_out, where) -> Rows:
    import pyarrow as pa

    corpus, queries, qrels = beir_files(str(folder), config.split)
    for path in (corpus, queries, qrels):
        if not os.path.isfile(path):
            found = {p.name.split(".")[0] for p in (folder / "qrels").glob("*.tsv*")}
            raise InputError(
                f"{path} is missing: a BEIR folder has corpus.jsonl, queries.jsonl and"
                f" qrels/SPLIT.tsv. SPLIT is {where}.split (with {where}.format"
                f" = 'beir'); here it may be {' or '.join(sorted(found)) or 'nothing'}."
            )
    bad: list[BadRecord] = []
    judged = read_qrels(pathlib.Path(qrels), bad)
    if not held_out:
        # A query without a relevant document teaches nothing.
        judged = {q: of for q, of in judged.items() if max(of.values()) > 0}
    table = pa.table(
        {
            "qid": pa.array(judged, pa.string()),
            "documents": pa.array(map(list, judged.values()), pa.list_(pa.string())),
            "grades": pa.array(
                [list(of.values()) for of in judged.values()], pa.list_(pa.float64())
            ),
        }
    )
    lookup = Lookup(
        corpus=_indexed(corpus, f"{where}.files"),
        queries=_indexed(queries, f"{where}.files"),
    )
    tables = [(qrels, table)]
    return Rows(
        tables,
        kind,
        config.columns,
        format="beir",
        lookup=lookup,
        bad_judgements=bad,
        field=where,
    )


def _open_dataset(config, kind, held_out, where):
    tables = read_datasets(config.dataset, config.split)
    return _rows(tables, config, kind, held_out, where)


def _open_tfds(config, kind, held_out, where):
    name, split = paths.local(config.dataset, f"{where}.dataset"), config.split
    try:
        # TFDS itself fails only when it reads or writes.
        import array_record  # noqa: F401
        import importlib_resources  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise InputError(
            f"config.data.source = 'tfds' needs the package {e.name}: pip install"
            " 'lsrjax[tfds]'. TensorFlow is not needed."
        ) from e
    try:
        if pathlib.Path(name).is_dir():
            data = tfds.builder_from_directory(name).as_data_source(split)
        else:
            if name.startswith("lsrjax_debian"):
                from lsrjax.data.debian_texts import tfds as tfds_debian  # noqa: F401  (registers it)
            data = tfds.data_source(name, split=split)
    except Exception as e:  # the library raises many unrelated types
        raise InputError(
            f"The TFDS data set {name!r} (split {split!r}) could not be read:"
            f" {type(e).__name__}: {e}. config.data.dataset is name/config, or a folder"
            " of a data set written as array_record; TFDS_DATA_DIR says where TFDS"
            " keeps data."
        ) from e
    return _rows([(f"{name}:{split}", TfdsRows(data))], config, kind, held_out, where)


def _open_debian(config, kind, held_out, where):
    return embedded.examples(kind, config.split, config.fields)


SOURCES = {
    "files": _open_files,
    "datasets": _open_dataset,
    "tfds": _open_tfds,
    "debian": _open_debian,
}
