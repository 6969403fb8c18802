"""The dev data that a stage is evaluated on during training."""

import dataclasses
from collections.abc import Callable

from lsrjax.checkpoint import saved_model
from lsrjax.config import check_tasks
from lsrjax.data import sources
from lsrjax.data.examples import ANY
from lsrjax.initial.build_student import Student
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


def evaluation(
    config, kind: str, student: Student, poll: Callable[[], None]
) -> Callable[[dict], dict[str, float]] | None:
    """The function from parameters to dev metrics, or None without dev data.

    `poll` is called before each batch is encoded.
    """
    tasks = _tasks(config, kind)
    if not tasks:
        return None
    idle = Searcher.of(
        saved_model.SavedModel(
            student.spec, {}, student.tokenizer, student.pivot_tokenizer, "student"
        ),
        config,
        poll,
    )

    def evaluate(params):
        searcher = dataclasses.replace(idle, params=params)
        return dev_metric(tasks, searcher, config.dev.metric, config.dev.over)

    return evaluate


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
