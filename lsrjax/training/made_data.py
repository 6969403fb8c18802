"""Makes what a stage's data lacks (negatives, scores, topics), and caches it."""

import dataclasses
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from lsrjax.checkpoint import saved_model
from lsrjax.data import sources
from lsrjax.data.batching import mixing
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.batching.topics import cluster, query_text
from lsrjax.data.reading import unchanged_files
from lsrjax.data.reading.bad_records import BadRecords
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import processes
from lsrjax.models.cross_encoder import CrossEncoderSpec
from lsrjax.retrieval import teacher_scores
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.rank import Searcher
from lsrjax.training import model_origins
from lsrjax.training.batch_contents import Contents
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

    def with_negatives(self, source, bad: BadRecords, teacher):
        """Adds mined negatives and the teacher's scores to the examples.

        `bad` counts the rows that end up with too few negatives.
        """
        config = self.config
        mined = config.prepare.negatives == "bm25"
        scored = config.prepare.scores == "teacher"
        if not (mined or scored):
            return source
        corpus, positives = teacher_scores.corpus_of(source, whole=mined)

        def prepare():
            self.tracker.note(
                f"Preparing {len(source):,} queries over {len(corpus):,} documents:"
                + (" mining negatives with BM25" if mined else "")
                + (f"{',' if mined else ''} scoring with the teacher" if scored else "")
            )
            return teacher_scores.prepare(
                source,
                corpus,
                positives,
                mined=config.prepare if mined else None,
                teacher=_scorer(teacher, config, self.poll) if scored else None,
                seed=config.seed,
            )

        fields = ("prepare", "seed", "model.dtype", "data")
        arrays = self._kept("prepared.npz", ("negatives", "scores"), prepare, fields)
        scores = arrays["scores"] if scored else None
        prepared = sources.WithNegatives(source, corpus, arrays["negatives"], scores)
        filtered = scored and choice_of(config.data).filters
        if not filtered and config.data.mixing == "passages":
            return prepared
        # These scores may filter out more negatives than a row can spare, and mined
        # negatives may lack a language.
        check = documents(config, own=True)
        prepared = guarded(config, bad, prepared, "", scored, check)
        prepared.look_through()
        return prepared

    def order(self, source, sizes: Sequence[int], student):
        """The order of the examples in batches.

        `sizes` are those of the data sets; the student's tokenizer is for topics.
        """
        config, entries = self.config, self.contents.entries
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

    def _kept(self, file: str, names: Sequence[str], make, fields: Sequence[str]):
        key = _made_from(self.config, fields, self.folder, self.models)
        return _kept(self.folder / file, names, make, key, self.tracker)


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
    path: pathlib.Path, names: Sequence[str], make, key: str, tracker
) -> dict[str, np.ndarray]:
    """The arrays that `make` returns, read from a file if they were made before.

    Args:
      make: makes the arrays; all processes take part.
      key: digest of the inputs, in the first process; a file with another key is made
        again.
    """
    arrays = None
    if processes.is_first() and path.is_file():
        arrays, why = _read(path, names, key)
        if why:
            tracker.note(f"  {path} {why}, and is made again.")
    there = processes.largest(f"there is {path}", 0, int(arrays is not None))
    if not there:
        arrays = make()
        if processes.is_first():
            temporary = path.with_suffix(".tmp.npz")
            kept = arrays | {_KEY: np.array(key)}
            np.savez(temporary, **kept)
            temporary.replace(path)
    processes.wait_for_all(str(path))
    if arrays is None:
        with np.load(path) as file:
            arrays = {name: file[name] for name in names}
    return {name: arrays[name] for name in names}


def _read(path: pathlib.Path, names, key: str) -> tuple[dict | None, str]:
    """The arrays of a file, or None and why they cannot be used."""
    try:
        with np.load(path) as file:
            if str(file.get(_KEY, "")) != key:
                return None, "was made from other data, fields or models"
            return {name: file[name] for name in names}, ""
    # A damaged archive may raise any of these.
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        return None, f"is damaged ({error})"
