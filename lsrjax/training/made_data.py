"""Makes what a stage's data lacks (negatives, scores, topics), and caches it."""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.checkpoint import saved_model
from lsrjax.config.check_data import mines
from lsrjax.data import sources
from lsrjax.data.batching import languages, mixing
from lsrjax.data.batching.drawing import SHARED
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.batching.topics import cluster, query_text
from lsrjax.data.reading import unchanged_files
from lsrjax.data.reading.bad_records import BadRecords
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import processes
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import CrossEncoderSpec
from lsrjax.retrieval import teacher_scores
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.mine_negatives import Find, by_bm25, by_model
from lsrjax.retrieval.rank import Searcher
from lsrjax.training import model_origins
from lsrjax.training.batch_contents import Contents
from lsrjax.training.mined_again import MinedAgain, documents_frozen
from lsrjax.training.stage_data import documents, guarded
from lsrjax.training.trackers import Tracker

# The name of the array with the digest of a file's inputs.
_KEY = "made_from"


@dataclasses.dataclass(frozen=True)
class Made:
    """Makes what a stage's data lacks, and caches it in the stage's folder.

    Attributes:
      models: from `model_origins.of_stage`, in the first process.
      poll: called before a teacher encodes a batch.
    """

    contents: Contents
    folder: pathlib.Path
    models: dict | None
    tracker: Tracker
    poll: Callable[[], None]

    @property
    def config(self):
        """The stage's config."""
        return self.contents.config

    @property
    def prepares(self) -> bool:
        """Whether negatives or scores are made."""
        return mines(self.config) or self.config.prepare.scores == "teacher"

    def prepared(self, source, bad: BadRecords, teacher, beside=()) -> "Prepared":
        """A source of groups, for which negatives and a teacher's scores are made."""
        corpus, positives = teacher_scores.corpus_of(source, whole=mines(self.config))
        return Prepared(self, source, bad, teacher, beside, corpus, positives)

    def order(self, source, sets: Sequence, student):
        """The order of the examples in batches.

        `source` has those of the data sets, one after the other; the student's
        tokenizer is for topics.
        """
        config, entries = self.config, self.contents.entries
        sizes = [len(one) for one in sets]
        if languages.scheduled(config.data, sets):
            return self._order_of_languages(source, sizes)
        if not config.data.topics:
            return mixing.order_of(config.data, sizes, entries, config.seed)

        def make():
            self.tracker.note(f"Clustering {len(source):,} queries by topic")
            queries = [query_text(source[i]) for i in range(len(source))]
            tokenizer = TextTokenizer(student.tokenizer)
            ids = tokenizer.ids(queries, config.data.query_length)
            return {"topics": cluster(ids, config.data.topics, entries, config.seed)}

        fields = ("seed", "batch_size", "data")
        topics = self._kept("topics.npz", ("topics",), make, fields)["topics"]
        return mixing.order_of_topics(topics, entries, config.seed)

    def _order_of_languages(self, source, sizes: Sequence[int]):
        config = self.config

        def make():
            self.tracker.note(f"Reading the languages of {len(source):,} examples")
            return _arrays(languages.parts_of(source, sizes))

        arrays = self._kept("languages.npz", _PARTS, make, ("seed", "data"))
        parts = _parts(arrays)
        return languages.order_of(
            config.data,
            parts,
            self.contents.entries,
            config.seed,
            sources.chosen(config.dev.source).entry.languages,
        )

    def key(self, fields: Sequence[str]) -> str:
        """A digest of what arrays are made from; empty but in the first process."""
        return _made_from(self.config, fields, self.folder, self.models)

    def _kept(self, file: str, names: Sequence[str], make, fields: Sequence[str]):
        path = self.folder / file
        return _kept(path, names, make, self.key(fields), self.tracker)


# Parts of data sets by language: the set, the name and the size of each, and all of the
# examples' numbers.
_PARTS = ("sets", "names", "counts", "numbers")


def _arrays(by_set: Sequence[Sequence[languages.Part]]) -> dict[str, np.ndarray]:
    parts = [(k, part) for k, parts in enumerate(by_set) for part in parts]
    return {
        "sets": np.array([k for k, _ in parts], np.int64),
        "names": np.array([part.language for _, part in parts], str),
        "counts": np.array([len(part.numbers) for _, part in parts], np.int64),
        "numbers": np.concatenate([part.numbers for _, part in parts]),
    }


def _parts(arrays: Mapping[str, np.ndarray]) -> list[list[languages.Part]]:
    sets = arrays["sets"].tolist()
    by_set: list[list[languages.Part]] = [[] for _ in range(max(sets) + 1)]
    cut = np.split(arrays["numbers"], np.cumsum(arrays["counts"])[:-1])
    for k, name, numbers in zip(sets, arrays["names"].tolist(), cut, strict=True):
        by_set[k].append(languages.Part(name, numbers))
    return by_set


_FIELDS = ("prepare", "seed", "model.dtype", "data")
_QUESTION = ("teacher.prompt", "teacher.yes", "teacher.no")
_ENSEMBLE = ("teacher.beside", "teacher.score_normalization")
_ARRAYS = ("negatives", "scores")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Adds mined negatives and the teacher's scores to the examples of a source.

    Attributes:
      bad: counts the rows that end up with too few negatives.
      beside: the teacher's, from `stage_models.open_beside`.
      corpus, positives: from `teacher_scores.corpus_of`.
    """

    made: Made
    source: Any
    bad: BadRecords
    teacher: saved_model.SavedModel | None
    beside: Sequence[saved_model.SavedModel | teacher_scores.Lexical]
    corpus: Any
    positives: np.ndarray

    def first(self, miner: saved_model.SavedModel | None):
        """The source with what is made before the first step.

        `miner` is the model that finds negatives; None: BM25.
        """
        config, poll = self.made.config, self.made.poll
        mined, scored = mines(config), self._scored
        how = "BM25" if miner is None else config.prepare.negatives

        def prepare():
            self.made.tracker.note(
                f"Preparing {len(self.source):,} queries over {len(self.corpus):,}"
                " documents:"
                + (f" mining negatives with {how}" if mined else "")
                + (f"{',' if mined else ''} scoring with the teacher" if scored else "")
            )
            found = by_model(Searcher.of(miner, config, poll)) if miner else by_bm25
            return self._prepare(found)

        path, key = self.made.folder / "prepared.npz", self.made.key(self._fields)
        arrays = _kept(path, _ARRAYS, prepare, key, self.made.tracker)
        return self._with(arrays, "")

    def again(self, student, frozen) -> MinedAgain | None:
        """Mines with the student's parameters every `prepare.every` steps; 0: None.

        `frozen` is that of the stage's step: documents whose parameters are all frozen
        are encoded once.
        """
        config, note = self.made.config, self.made.tracker.note
        if not config.prepare.every:
            return None
        model = saved_model.SavedModel(
            student.spec, {}, student.tokenizer, student.pivot_tokenizer, "student"
        )
        stated = self.made.contents.states_languages
        idle = Searcher.of(model, config, self.made.poll, stated=stated)
        spoken = None
        if stated:
            spoken = teacher_scores.languages_of(self.source, self.corpus)
            idle.encoder.numbers(sorted(set(spoken.values())), "text")
        separate = student.spec.towers == "separate"
        kept: list | None = [] if documents_frozen(frozen, separate) else None
        key = self.made.key(self._fields)

        def make(params, path: pathlib.Path, of: str, number: int):
            def prepare():
                note(f"  Mining negatives with the model of step {path.stem}")
                searcher = dataclasses.replace(idle, params=params)
                return self._prepare(by_model(searcher, kept, spoken))

            own = f"{key} {of}" if key else ""
            arrays = _kept(path, _ARRAYS, prepare, own, self.made.tracker, number)
            return self._with(arrays, f"mined at step {path.stem}")

        def read(path: pathlib.Path):
            arrays, why = _read(path, _ARRAYS, lambda own: own.startswith(key))
            if arrays is None:
                raise InputError(
                    f"{path} {why}, and the negatives that the next steps train on were"
                    " in it. Put it back, or start the stage over from a checkpoint of"
                    f" step {path.stem} or before."
                )
            return self._with(arrays, f"mined at step {path.stem}")

        return MinedAgain(config.prepare.every, self.made.folder, make, read)

    @property
    def _fields(self) -> tuple[str, ...]:
        """The fields that what is made depends on."""
        own = self.made.config.teacher
        several = bool(own.beside) or own.score_normalization != "none"
        return _FIELDS + _QUESTION * bool(own.prompt) + _ENSEMBLE * several

    @property
    def _scored(self) -> bool:
        return self.made.config.prepare.scores == "teacher"

    def _prepare(self, find: Find) -> dict[str, np.ndarray]:
        config = self.made.config
        scorer = self._scorer() if self._scored else None
        return teacher_scores.prepare(
            self.source,
            self.corpus,
            self.positives,
            mined=config.prepare if mines(config) else None,
            teacher=scorer,
            seed=config.seed,
            find=find,
        )

    def _scorer(self) -> teacher_scores.Scorer | teacher_scores.Ensemble:
        config, poll = self.made.config, self.made.poll
        assert self.teacher is not None  # the config is checked
        first = _scorer(self.teacher, config, poll)
        own, normal = config.teacher.beside, config.teacher.score_normalization
        if not own and normal == "none":
            return first
        others = [
            one
            if isinstance(one, teacher_scores.Lexical)
            else _scorer(one, config, poll)
            for one in self.beside
        ]
        weights = [1.0, *own.values()]
        return teacher_scores.Ensemble([first, *others], weights, normal)

    def _with(self, arrays: Mapping[str, np.ndarray], name: str):
        """The source with negatives and scores; `name` is for its bad records."""
        config = self.made.config
        scores = arrays["scores"] if self._scored else None
        negatives = arrays["negatives"]
        prepared = sources.WithNegatives(self.source, self.corpus, negatives, scores)
        filtered = self._scored and choice_of(config.data).filters
        if not filtered and config.data.mixing not in SHARED:
            return prepared
        # These scores may filter out more negatives than a row can spare, and mined
        # negatives may lack a language.
        check = documents(config, max(mixing.group_sizes(config.data)), own=True)
        checked = guarded(config, self.bad, prepared, name, self._scored, check)
        checked.look_through()
        return checked


def _scorer(
    teacher: saved_model.SavedModel, config, poll: Callable[[], None]
) -> Searcher | PairScorer:
    if not isinstance(teacher.spec, CrossEncoderSpec):
        return Searcher.of(teacher, config, poll)
    return PairScorer(
        teacher.spec,
        teacher.params,
        TextTokenizer(teacher.tokenizer),
        config.data.query_length,
        config.data.document_length,
        dtype=config.model.dtype,
    )


# Fields of data that do not affect what is made.
_HOW = ("threads", "prefetch", "length_parts", "length_multiple", "bad_records")


def _made_from(config, fields: Sequence[str], folder: pathlib.Path, models) -> str:
    """A digest of fields, data and models; empty in all processes but the first."""
    if not processes.is_first():
        return ""
    values = json.loads(config.to_json())
    for name in _HOW:
        del values["data"][name]
    taken = {}
    for field in fields:
        group, _, name = field.partition(".")
        taken[field] = values[group][name] if name else values[group]
    known = unchanged_files.read(folder / unchanged_files.FILE)
    files = {name: of["digest"] for name, of in known.get("files", {}).items()}
    contents = {field: {**of, "name": ""} for field, of in (models or {}).items()}
    return model_origins.key(taken, files, known.get("versions", {}), contents)


def _kept(
    path: pathlib.Path,
    names: Sequence[str],
    make,
    key: str,
    tracker,
    number: int = 0,
) -> dict[str, np.ndarray]:
    """The arrays that `make` returns, read from a file if they were made before.

    Args:
      make: makes the arrays; all processes take part.
      key: digest of the inputs, in the first process; a file with another key is made
        again.
      number: of earlier calls with this path.
    """
    arrays = None
    if processes.is_first() and path.is_file():
        arrays, why = _read(path, names, lambda own: own == key)
        if why:
            tracker.note(f"  {path} {why}, and is made again.")
    there = processes.largest(f"there is {path}", number, int(arrays is not None))
    if not there:
        arrays = make()
        if processes.is_first():
            temporary = path.with_suffix(".tmp.npz")
            kept = arrays | {_KEY: np.array(key)}
            with open(temporary, "wb") as file:
                np.savez(file, **kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    processes.wait_for_all(f"{path} {number}")
    if arrays is None:
        with np.load(path) as file:
            arrays = {name: file[name] for name in names}
    return {name: arrays[name] for name in names}


def _read(
    path: pathlib.Path, names, fits: Callable[[str], bool]
) -> tuple[dict | None, str]:
    """The arrays of a file whose key fits, or None and why they cannot be used."""
    try:
        with np.load(path) as file:
            if not fits(str(file.get(_KEY, ""))):
                return None, "was made from other data, fields or models"
            return {name: file[name] for name in names}, ""
    except FileNotFoundError:
        return None, "is missing"
    # A damaged archive may raise any of these.
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        return None, f"is damaged ({error})"
