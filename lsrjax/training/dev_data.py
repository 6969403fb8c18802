"""The dev data that a stage is evaluated on during training."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.checkpoint import saved_model
from lsrjax.config import check_tasks
from lsrjax.data import sources
from lsrjax.data.examples import ANY
from lsrjax.initial.build_student import Student
from lsrjax.models.backbones.encoder_config import STATED
from lsrjax.retrieval import terms
from lsrjax.retrieval.evaluate import dev_metric, dev_task
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.tasks.table import loaded
from lsrjax.retrieval.tasks.task import Task


def dev_source(config, kind: str):
    """The held-out examples of a stage whose training examples are of a `kind`."""
    where = "config.dev"
    # Examples that are no rows have documents also where the loss reads pairs.
    rows = sources.chosen(config.dev.source, where).entry.rows
    return sources.open_source(
        config.dev, kind if rows else "group", corpus=config.data.corpus, where=where
    )


def dev_examples(config, kind: str) -> int:
    """The number of held-out examples of a stage; reads the first one as a check."""
    dev = dev_source(config, kind)
    if getattr(dev, "by_id", False):
        # A query without relevant documents can be evaluated on, but not trained on.
        dev.judged(0)
    else:
        dev[0]
    return len(dev)


_SHOWN_TERMS = 10


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A stage's dev data, and a searcher without parameters.

    Attributes:
      config: the stage's.
    """

    tasks: Sequence[Task]
    searcher: Searcher
    config: Any

    def __call__(self, params: dict) -> dict[str, float]:
        """The dev metric, over all and by language."""
        searcher = dataclasses.replace(self.searcher, params=params)
        dev = self.config.dev
        return dev_metric(self.tasks, searcher, dev.metric, dev.over)

    def texts(self, params: dict) -> list[tuple[str, str, str, str, str]]:
        """Sample texts: role, language, text, view, and its strongest terms.

        The queries are of as many languages as possible, the documents the relevant
        ones of these queries. Without sparse views, or `log.texts`, there are none.
        """
        searcher = dataclasses.replace(self.searcher, params=params)
        if not self._chosen or not searcher.encoder.spec.sparse:
            return []
        task, found = self.tasks[0], []
        queries = [(task.queries[i], task.languages[i]) for i in self._chosen]
        relevant = dict.fromkeys(_relevant(task, i) for i in self._chosen)
        places = [i for i in relevant if i >= 0]
        documents = [(task.corpus[i], "") for i in places]
        asked_in = [task.spoken[i] for i in self._chosen]
        for role, some, encode, spoken in (
            ("query", queries, searcher.queries, asked_in),
            ("document", documents, searcher.documents, task.spoken_at(places)),
        ):
            views = encode([text for text, _ in some], spoken) if some else {}
            found += [
                (role, language, text, view, self._terms(matrix[row], view))
                for row, (text, language) in enumerate(some)
                for view, matrix in views.items()
            ]
        return found

    @functools.cached_property
    def _chosen(self) -> list[int]:
        """Queries, the first one of each language first."""
        task = self.tasks[0]
        seen: dict[str, itertools.count] = {}
        turn = [
            next(seen.setdefault(language, itertools.count()))
            for language in task.languages
        ]
        return np.argsort(turn, kind="stable")[: self.config.log.texts].tolist()

    @functools.cached_property
    def _names(self) -> dict[str, list[str]]:
        searcher = self.searcher
        spec, tokenizer = searcher.encoder.spec, searcher.encoder.tokenizer
        return {
            view: terms.names_of(spec, tokenizer, searcher.pivot_tokenizer, [view])
            for view in spec.views
        }

    def _terms(self, row, view: str) -> str:
        order = np.argsort(-row.data, kind="stable")[:_SHOWN_TERMS]
        names = self._names[view]
        return ", ".join(f"{names[row.indices[i]]} {row.data[i]:.2f}" for i in order)


def _relevant(task: Task, query: int) -> int:
    """The position of a relevant document, or -1 where a judge decides."""
    if query >= len(task.relevant):
        return -1
    found = task.relevant[query]
    if isinstance(found, Mapping):
        return max(found, key=found.__getitem__, default=-1)
    return found if isinstance(found, int) else next(iter(found), -1)


def evaluation(
    config, kind: str, student: Student, poll: Callable[[], None]
) -> Evaluation | None:
    """The evaluation of parameters on the dev data, or None without dev data.

    `poll` is called before each batch is encoded.
    """
    tasks = _tasks(config, kind)
    if not tasks:
        return None
    searcher = Searcher.of(
        saved_model.SavedModel(
            student.spec, {}, student.tokenizer, student.pivot_tokenizer, "student"
        ),
        config,
        poll,
        stated=config.model.language == STATED,
    )
    for task in tasks:
        searcher.check(task)
    return Evaluation(tasks, searcher, config)


def _tasks(config, kind: str) -> list[Task]:
    """The parts of the dev task, or the held-out examples as a task; maybe none."""
    if chosen := check_tasks.of_dev(config):
        return list(loaded(chosen))
    if not config.dev.source.name:
        return []
    weights = config.data.query_languages
    return [
        dev_task(
            dev_source(config, kind),
            config.dev.queries,
            # A query in an unknown language always counts, as in training.
            lambda language: (
                language == ANY or weights.get(language, weights.get(ANY, 0.0)) > 0
            ),
        )
    ]
