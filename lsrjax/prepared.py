"""A stage's data: opened and guarded; negatives, scores, topics made once and kept."""

import pathlib
import zipfile
from collections.abc import Sequence

import jax
import numpy as np

from lsrjax import checkpoint, hosts
from lsrjax import train as training
from lsrjax.config_data import reads_scores
from lsrjax.data import bad_records, manifest, mixing, sources
from lsrjax.data.bad_records import BadRecords
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.data.topics import cluster, query_text
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import CrossEncoderSpec
from lsrjax.prepare import score as preparing
from lsrjax.retrieval.evaluate import Searcher
from lsrjax.retrieval.pairs import PairScorer


def open_sets(config, kind: str, folder: pathlib.Path, bad: BadRecords) -> list:
    """The training data's sets, checked against what they were and guarded."""
    if hosts.is_first():
        manifest.check_files(folder / manifest.FILE, config.data, config.dev)
    sets = mixing.open_sets(config.data, kind)
    if hosts.is_first():
        manifest.check_versions(folder / manifest.FILE, sets)
    names = list(config.data.sets) or [""]
    return [
        bad.guard(
            source,
            name=name,
            seed=config.seed,
            share=config.data.bad_records,
            scored=reads_scores(config),
        )
        if isinstance(source, sources.Rows)
        else source
        for name, source in zip(names, sets, strict=True)
    ]


def bad_records_of(name: str, folder: pathlib.Path, bad=None) -> BadRecords:
    """What all processes have found, in one file; no process may be looking."""
    if hosts.is_first():
        bad_records.merge(folder)
    hosts.wait_for_all(f"bad records of {name}")
    if bad is None:
        return BadRecords(folder, jax.process_index())
    bad.reload()
    return bad


def with_negatives(config, source, folder: pathlib.Path, teacher, tracker):
    """The source with mined negatives and teacher scores, made once and kept."""
    mined = config.prepare.negatives == "bm25"
    scored = config.prepare.scores == "teacher"
    if not (mined or scored):
        return source
    corpus, positives = preparing.corpus_of(source)

    def prepare():
        tracker.note(
            f"Preparing {len(source):,} queries over {len(corpus):,} documents:"
            + (" mining negatives with BM25" if mined else "")
            + (f"{',' if mined else ''} scoring with the teacher" if scored else "")
        )
        return preparing.prepare(
            source,
            corpus,
            positives,
            mined=config.prepare if mined else None,
            teacher=_scorer(teacher, config) if scored else None,
            seed=config.seed,
        )

    arrays = _kept(folder / "prepared.npz", ("negatives", "scores"), prepare)
    scores = arrays["scores"] if scored else None
    return sources.WithNegatives(source, corpus, arrays["negatives"], scores)


def _scorer(teacher: checkpoint.SavedModel, config) -> Searcher | PairScorer:
    """A retriever or a cross-encoder, ready to score."""
    if not isinstance(teacher.spec, CrossEncoderSpec):
        return Searcher.of(teacher, config)
    return PairScorer(
        teacher.spec,
        teacher.params,
        TextTokenizer(teacher.tokenizer),
        config.data.query_length,
        config.data.document_length,
        dtype=config.model.dtype,
    )


def topics(config, source, folder: pathlib.Path, student, tracker) -> np.ndarray | None:
    """[examples] the topic of each query, made once and kept; None without topics."""
    if not config.data.topics:
        return None

    def make():
        tracker.note(f"Clustering {len(source):,} queries by topic")
        queries = [query_text(source[i]) for i in range(len(source))]
        tokenizer = TextTokenizer(student.tokenizer)
        ids = tokenizer.ids(queries, config.data.query_length)
        count, least = config.data.topics, training.entries_of(config)
        return {"topics": cluster(ids, count, least, config.seed)}

    return _kept(folder / "topics.npz", ("topics",), make)["topics"]


def _kept(path: pathlib.Path, names: Sequence[str], make) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, from a file where they have been made before."""
    if not path.is_file():
        arrays = make()
        if hosts.is_first():
            temporary = path.with_suffix(".tmp.npz")
            np.savez(temporary, **arrays)
            temporary.replace(path)
    hosts.wait_for_all(str(path))
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        raise InputError(
            f"{path} is damaged ({e}). Delete it; it is made again from the data."
        ) from e
