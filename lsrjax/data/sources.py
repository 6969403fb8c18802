"""Sources of training examples: random access to one of two kinds of example.

To add one, write a `Source` here and add a line to `SOURCES`.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lsrjax import paths
from lsrjax.data import plain_texts, text_pairs
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY, Group, Items, Text
from lsrjax.data.reading import formats, plain
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.corpus import Corpus, parse, state
from lsrjax.data.reading.corpus import paths as paths_of
from lsrjax.data.reading.corpus import problem as places_problem
from lsrjax.data.reading.files import found_files, read_datasets, read_files, subsets
from lsrjax.data.reading.judgements import read_qrels
from lsrjax.data.reading.rows import Rows, TfdsRows
from lsrjax.data.reading.texts import DataSet
from lsrjax.errors import InputError
from lsrjax.options import Chosen, Options, no_effect, option, resolve


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
            draw=None,  # they belong to this query and this positive
        )

    def place(self, index: int) -> dict:
        """Where a group is, for messages."""
        if hasattr(self._source, "place"):
            return self._source.place(index)
        return {"file": self.description, "row": index}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a stage asks of a source.

    Attributes:
      kind: of examples: "pair" or "group".
      format: of the rows.
      corpus: places of texts by id, as `data.corpus`.
      held_out: data for evaluation, read without the teacher's scores; it need not
        have the ids that the training data looks up in the corpus. A broken judgement
        or a broken text that it refers to is an error.
      where: the config's group that names the source, for errors.
    """

    kind: str
    format: Chosen
    corpus: Any = ""
    held_out: bool = False
    where: str = "config.data"

    def split(self, given: str) -> str:
        """The split; if none is given, that of training data or of dev data."""
        return given or ("dev" if self.held_out else "train")

    def rows(self, tables) -> Rows:
        """Tables, with their names, as examples."""
        # Dev data looks up ids in the training data's corpus.
        data = "config.data" if self.held_out else self.where
        queries = getattr(self.format.options, "queries", "")
        return Rows(
            tables,
            self.kind,
            format=self.format,
            corpus=_indexed(self.corpus, f"{data}.corpus"),
            queries=_indexed(queries, f"{self.where}.format.queries"),
            scores=not self.held_out,
            field=self.where,
        )


class Source:
    """An entry of `SOURCES`; all its members are static.

    Attributes:
      Options: a dataclass of its options.
      rows: it reads rows, which have a format.
      breakable: what it reads may contain bad records.
      languages: of its texts, if it reads no rows.
      lacks: of "scores" and "negatives", those that its examples lack.
      needs: options that have to be set.
    """

    Options: type[Options] = Options
    rows = True
    breakable = True
    languages: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @staticmethod
    def open(options: Any, asked: Asked) -> Any:
        """A sequence of `Pair` or `Group` with a one-line `description`.

        A source of rows gives `asked.rows(tables)`.
        """
        raise NotImplementedError

    @staticmethod
    def paths(options: Any, asked: Asked) -> Iterator[str]:
        """The local files that it reads."""
        return iter(())

    @staticmethod
    def hub_names(options: Any) -> list[str]:
        """The data sets that may be on the Hugging Face hub."""
        return []

    @staticmethod
    def in_language(options: Any) -> bool:
        """Whether examples are each in a language that the options state."""
        return False


def chosen(node: Any, where: str = "config.data") -> Chosen:
    """The source that `data.source` or `dev.source` names, with its options."""
    return resolve(DEV_SOURCES, node, f"{where}.source")


def asked_of(data, kind: str = "", *, corpus: Any = "", where: str) -> Asked:
    """What `config.dev`, or `config.data` or one of its sets, asks of its source."""
    return Asked(
        kind,
        formats.chosen(data.format, where),
        corpus or data.get("corpus", ""),
        where == "config.dev",
        where,
    )


def open_source(
    data,
    kind: str,
    *,
    mined: bool = False,
    corpus: Any = "",
    where: str = "config.data",
):
    """The source that a stage's `data` or `dev` names.

    Args:
      mined: negatives are mined from `data.corpus`, not read from the rows.
      corpus: of dev data, that of the training data.
      where: "config.dev" for data for evaluation, see `Asked.held_out`.

    Raises:
      InputError: data that is missing or broken, or of no known format.
    """
    asked = asked_of(data, kind, corpus=corpus, where=where)
    source = chosen(data.source, where)
    made = source.entry.open(source.options, asked)
    if not isinstance(made, Rows):
        return made
    if asked.held_out and made.by_id:
        for error in made.bad_texts:
            raise error
    used = mined or asked.held_out or "corpus" in made.format.entry.needs
    if asked.corpus and not used:
        raise InputError(
            f"{where}.corpus = {asked.corpus!r} would have no effect: the data is of"
            f" the format {made.format.name}, which does not look texts up in it."
            f" Remove it, or set {where}.format."
        )
    return made


def languages(data, field: str = "corpus") -> list[str]:
    """The languages of `data`'s documents, or of its queries; `*` if unstated.

    Args:
      data: a stage's `data` or one of its sets.
      field: "corpus", for documents, or "queries".
    """
    source = chosen(data.source).entry
    if not source.rows:
        return list(source.languages)
    options = formats.chosen(data.format).options
    places = data.corpus if field == "corpus" else getattr(options, "queries", "")
    return [language for language, _ in parse(places)]


def _indexed(places: Any, field: str) -> Corpus | None:
    if not parse(places):
        return None
    return _index_of(json.dumps(places), state(places, field))


# Training and dev data, and the stages of a run, often share a corpus.
@functools.lru_cache(maxsize=4)
def _index_of(places: str, state: tuple) -> Corpus:
    return Corpus(json.loads(places), "config.data.corpus", strict=False)


class Files(Source):
    """Files of rows, or a BEIR folder."""

    needs = ("files",)

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        """The files."""

        files: str | tuple[str, ...] = option(
            "",
            "a path, folder or glob pattern, or several, of Parquet, JSONL (maybe"
            " packed: .gz, .zst, .bz2), CSV or TSV; or a BEIR folder",
        )

    @staticmethod
    def open(options, asked):
        """Reads the rows of the files."""
        if beir := _beir_files(options, asked):
            return _open_beir(*beir, asked)
        lists = asked.format.entry.lists
        where = f"{asked.where}.source.files"
        return asked.rows(read_files(options.files, lists, where))

    @staticmethod
    def paths(options, asked):
        """The files themselves."""
        found = _beir_files(options, asked)
        yield from found or found_files(options.files, f"{asked.where}.source.files")


def _beir_files(options: Files.Options, asked: Asked) -> list[str]:
    """Corpus, queries and judgements of a BEIR folder; empty for other files."""
    if not isinstance(options.files, str):
        return []
    folder = paths.local(options.files, f"{asked.where}.source.files")
    split = asked.split(getattr(asked.format.options, "split", ""))
    names = ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
    found = [plain.or_packed(os.path.join(folder, name)) for name in names]
    return found if asked.format.name == "beir" or os.path.isfile(found[0]) else []


def _open_beir(corpus: str, queries: str, qrels: str, asked: Asked) -> Rows:
    import pyarrow as pa

    for path in (corpus, queries, qrels):
        if not os.path.isfile(path):
            beside = pathlib.Path(qrels).parent.glob("*.tsv*")
            found = {p.name.split(".")[0] for p in beside}
            raise InputError(
                f"{path} is missing: a BEIR folder has corpus.jsonl, queries.jsonl and"
                f" qrels/SPLIT.tsv. SPLIT is an option, {asked.where}.format ="
                ' entry("beir", split=…); here it may be'
                f" {' or '.join(sorted(found)) or 'nothing'}."
            )
    bad: list[BadRecord] = []
    judged = read_qrels(pathlib.Path(qrels), bad)
    if not asked.held_out:
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
    where = f"{asked.where}.source.files"
    named = asked.format.name == "beir"
    return Rows(
        [(qrels, table)],
        asked.kind,
        format=asked.format if named else formats.chosen("beir", asked.where),
        corpus=_indexed(corpus, where),
        queries=_indexed(queries, where),
        bad_judgements=bad,
        field=asked.where,
    )


def _split(doc: str = "empty: train, and dev in config.dev", **checks: Any) -> Any:
    return option("", doc, **checks)


class Datasets(Source):
    """Data sets of the package `datasets`: folders, clones or hub ids."""

    needs = ("dataset",)

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        """The data sets and their split."""

        dataset: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] = option(
            "",
            "folders of save_to_disk, clones of hub data sets or hub ids, one or"
            ' several, with subsets as {"c/d": ["en-de", "en-fr"]}',
        )
        split: str = _split()

    @staticmethod
    def open(options, asked):
        """Reads the rows of the data sets."""
        return asked.rows(read_datasets(options.dataset, asked.split(options.split)))

    @staticmethod
    def paths(options, asked):
        """The files in local folders."""
        for name, _ in subsets(options.dataset):
            yield from _in_folder(name, f"{asked.where}.source.dataset")

    @staticmethod
    def hub_names(options):
        """All of them, of which some may be folders."""
        return [name for name, _ in subsets(options.dataset)]


class Tfds(Source):
    """A data set of TFDS."""

    needs = ("dataset",)

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        """The data set and its split."""

        dataset: str = option("", "name/config, or the folder of a data set")
        split: str = _split()

    @staticmethod
    def open(options, asked):
        """Reads the rows of the data set."""
        where = f"{asked.where}.source.dataset"
        name, split = paths.local(options.dataset, where), asked.split(options.split)
        data = _tfds(name, split, where)
        return asked.rows([(f"{name}:{split}", TfdsRows(data))])

    @staticmethod
    def paths(options, asked):
        """The files in a local folder."""
        yield from _in_folder(options.dataset, f"{asked.where}.source.dataset")


def _in_folder(name: str, field: str) -> Iterator[str]:
    root = pathlib.Path(paths.local(name, field))
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        # A clone's .git is not part of its data.
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield str(path)


def _tfds(name: str, split: str, field: str) -> Any:
    try:
        # TFDS itself fails only when it reads or writes.
        import array_record  # noqa: F401
        import importlib_resources  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as e:
        raise InputError(
            f"{field.removesuffix('.dataset')} = 'tfds' needs the package {e.name}: pip"
            " install 'lsrjax[tfds]'. TensorFlow is not needed."
        ) from e
    try:
        if pathlib.Path(name).is_dir():
            return tfds.builder_from_directory(name).as_data_source(split)
        if name.startswith("lsrjax_debian"):
            from lsrjax.data.debian_texts import tfds as tfds_debian  # noqa: F401  (registers it)
        return tfds.data_source(name, split=split)
    except Exception as e:  # the library raises many unrelated types
        raise InputError(
            f"The TFDS data set {name!r} (split {split!r}) could not be read:"
            f" {type(e).__name__}: {e}. {field} is name/config, or a folder of a data"
            " set written as array_record; TFDS_DATA_DIR says where TFDS keeps data."
        ) from e


def _wordings(value: tuple) -> str | None:
    if not value or not all(field in ("title", "text") for field in value):
        return "choose from ('title', 'text')"
    return None


class Debian(Source):
    """The embedded data set."""

    rows = breakable = False
    languages = embedded.LANGUAGES
    lacks = ("scores", "negatives")

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        """The split, and what to align."""

        split: str = _split(choices=("", *embedded.SPLITS))
        fields: tuple[str, ...] = option(
            ("title", "text"), "of pairs: which wordings to align", problem=_wordings
        )

    @staticmethod
    def open(options, asked):
        """Loads a split."""
        if asked.kind != "pair" and options.fields != Debian.Options().fields:
            because = "only embedded pairs have fields to choose"
            said = no_effect("source.fields", options.fields, because)
            raise InputError(f"{asked.where}.{said}")
        split = asked.split(options.split)
        return embedded.examples(asked.kind, split, options.fields)


class Texts(Source):
    """Plain texts, of each of which the query and the positive are parts."""

    rows = False
    lacks = ("scores", "negatives")
    needs = ("files",)

    @dataclasses.dataclass(frozen=True)
    class Options(Options):
        """The texts, and how a query and a positive are made of one."""

        files: str | list[Any] | dict[str, Any] = option(
            "",
            "of texts with ids and maybe titles, as data.corpus: places, or a dict of"
            ' them by language; or "embedded", the descriptions in 13 languages that'
            " ship with the package",
            problem=places_problem,
        )
        pairs: Any = option(
            "crops", "query and positive of a text", table=text_pairs.PAIRS
        )
        longest: int = option(
            256,
            "words that a pair is made of: of a longer text, a stretch of as many is"
            " drawn first; 0: the whole text",
            low=0,
        )
        split: str = _split(
            'of "embedded"; empty: train, and dev in config.dev',
            choices=("", *embedded.SPLITS),
        )

        def problem(self) -> str | None:
            """Refuses a split of files."""
            if not self.split or self.files == plain_texts.EMBEDDED:
                return None
            return no_effect("split", self.split, "only embedded texts have splits")

    @staticmethod
    def open(options, asked):
        """Opens the texts; only the index of their ids is in memory."""
        if asked.kind == "pair":
            raise InputError(
                f"{asked.where}.source is 'texts', which are in one language each, but"
                " the loss reads pairs of translations. Use another source."
            )
        split = asked.split(options.split)
        where = f"{asked.where}.source.files"
        make = text_pairs.Maker(options.pairs, options.longest)
        return plain_texts.open_texts(options.files, split, make, where)

    @staticmethod
    def paths(options, asked):
        """The files themselves."""
        if options.files != plain_texts.EMBEDDED:
            where = f"{asked.where}.source.files"
            yield from map(str, paths_of(options.files, where))

    @staticmethod
    def hub_names(options):
        """The data sets, of which some may be folders."""
        places = (place for _, place in parse(options.files))
        return [one.dataset for one in places if isinstance(one, DataSet)]

    @staticmethod
    def in_language(options):
        """Of embedded texts, and of those that are given by language."""
        by_language = any(language != ANY for language, _ in parse(options.files))
        return options.files == plain_texts.EMBEDDED or by_language


SOURCES: dict[str, type[Source]] = {
    "files": Files,
    "datasets": Datasets,
    "tfds": Tfds,
    "debian": Debian,
    "texts": Texts,
}
# Without a source there is no dev data.
DEV_SOURCES = {"": Source, **SOURCES}
