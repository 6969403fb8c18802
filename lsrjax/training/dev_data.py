"""The dev data that a stage is evaluated on during training."""

import dataclasses
from collections.abc import Callable

from lsrjax.checkpoint import saved_model
from lsrjax.data import sources
from lsrjax.data.examples import ANY
from lsrjax.initial.build_student import Student
from lsrjax.retrieval.evaluate import dev_metric, dev_task
from lsrjax.retrieval.rank import Searcher


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
    if not config.dev.source.name:
        return None
    weights = config.data.query_languages
    task = dev_task(
        dev_source(config, kind),
        config.dev.queries,
        # A query in an unknown language always counts, as in training.
        lambda language: (
            language == ANY or weights.get(language, weights.get(ANY, 0.0)) > 0
        ),
    )
    idle = Searcher.of(
        saved_model.SavedModel(
            student.spec, {}, student.tokenizer, student.pivot_tokenizer, "student"
        ),
        config,
        poll,
    )

    def evaluate(params):
        return dev_metric(
            task, dataclasses.replace(idle, params=params), config.dev.metric
        )

    return evaluate
