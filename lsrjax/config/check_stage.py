"""Checks of a stage's config: values and combinations that make no sense, and why."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from lsrjax import errors, optimizers
from lsrjax.config import check_data, conditions
from lsrjax.config.fields import leaves
from lsrjax.config.schema import Run
from lsrjax.convert import references
from lsrjax.data import sources
from lsrjax.data.batching import languages, mixing
from lsrjax.data.batching.mixing import group_sizes, named_sets
from lsrjax.data.batching.negatives import choice_of
from lsrjax.errors import InputError
from lsrjax.initial import initialisations
from lsrjax.losses import objective
from lsrjax.models import heads
from lsrjax.models.layers import GIVEN
from lsrjax.retrieval.metrics import required_depth


def check_stage(c: ConfigDict, found: Run, where: str) -> None:
    """Checks the values of a stage's fields together; `found` are the same, checked."""
    _check_entries(c, where)
    with errors.together() as each:
        for check in (
            _check_schedule,
            _check_data,
            check_data.check_round_robin,
            check_data.check_languages,
            _check_needs,
            _check_group,
            check_data.check_choice,
            check_data.check_rows,
            _check_groups,
        ):
            with each:
                check(c, where)
    # What has no effect may have one once these are mended.
    conditions.check(c, found, where)


def _check_entries(c, where) -> None:
    heads.chosen(c.model.head, f"{where}.model.head")
    objective.of(c.loss, f"{where}.loss")
    optimizers.chosen(c.optim.optimizer, f"{where}.optim.optimizer")


def _check_schedule(c, where) -> None:
    if (c.steps > 0) == (c.epochs > 0):
        raise InputError(
            f"{where}: steps is {c.steps} and epochs is {c.epochs}; set one of them."
        )
    check_warmup(c, c.steps, where)
    if c.optim.warmup_steps and c.optim.warmup_fraction:
        raise InputError(
            f"{where}.optim: warmup_steps is {c.optim.warmup_steps} and"
            f" warmup_fraction is {c.optim.warmup_fraction}; set one of them."
        )


def check_warmup(c: ConfigDict, steps: int, where: str) -> None:
    """Refuses a warm-up longer than the stage; `steps` is 0 if not known yet."""
    warmup = c.optim.warmup_steps
    if 0 < steps < warmup:
        raise InputError(
            f"{where}.optim.warmup_steps is {warmup:,}, but the stage has {steps:,}"
            " steps, so that the warm-up would not end. Lower it, or train longer."
        )


def _check_data(c, where) -> None:
    if c.data.topics and len(c.data.sets):
        raise InputError(
            f"{where}.data.topics is {c.data.topics}, but data.sets has several data"
            " sets; a batch comes from one topic or from data sets. Set one of them."
        )
    because = conditions.CONDITIONS["dev data"](c)
    if c.checkpoint.push_when == "best" and because:
        raise InputError(
            f"{where}.checkpoint.push_when is 'best', but {because}, so that none is."
        )
    if c.data.topics and languages.asked(c.data):
        raise InputError(
            f"{where}.data.topics is {c.data.topics}, but data.batches_from ="
            f" {c.data.batches_from!r} and data.language_temperature ="
            f" {c.data.language_temperature:g} make batches of languages. Set one of"
            " them."
        )
    if c.dev.source.name or c.dev.task.name:
        try:
            required_depth([c.dev.metric])
        except ValueError as e:
            raise InputError(f"{where}.dev.metric is {c.dev.metric!r}: {e}") from e


def _check_needs(c, where) -> None:
    initialisations.check(c, where)
    loss = objective.of(c.loss)
    needs = {
        "tokenizer": conditions.CONDITIONS["fresh weights"](c) is None,
        "teacher.model": loss.reads_views or c.prepare.scores == "teacher",
    }
    values = dict(leaves(c))
    for field, needed in needs.items():
        if needed and not values[field]:
            raise InputError(
                f"{where}.{field} is {values[field]!r}, but this config needs it: see"
                " lsrjax/config/schema.py."
            )
    head = heads.chosen(c.model.head, f"{where}.model.head").entry
    for one in loss.losses:
        needs = one.entry.needs
        if needs and needs not in head.gives:
            able = [name for name, one in heads.HEADS.items() if needs in one.gives]
            raise InputError(
                f"{where}.loss.{one.name} needs {GIVEN[needs]}, which the head"
                f" {c.model.head.name} does not have. Use {' or '.join(able)}, or"
                " another loss."
            )


def _check_group(c, where) -> None:
    """Checks that a query gets the documents and scores that the loss needs."""
    loss = objective.of(c.loss)
    own, sizes = named_sets(c.data).values(), group_sizes(c.data)
    if loss.compares_documents and min(sizes) < 2:
        raise InputError(
            f"{where}.data.group_size is {min(sizes)}; the loss {loss.name}"
            " compares a query's documents, so it needs at least 2."
        )
    mined = check_data.mines(c)
    each = [sources.chosen(one.source).entry.lacks for one in own]
    lacks = {what for one in each for what in one}
    chosen = max(sizes) > 1 and choice_of(c.data).needs_scores
    scores = "scores" in loss.targets or chosen
    if scores and (mined or "scores" in lacks) and c.prepare.scores == "given":
        whose = "mined negatives" if mined else "the embedded queries"
        raise InputError(
            f"{where}.prepare.scores is 'given', but {whose} come without scores: set"
            " it to 'teacher', and teacher.model."
        )
    for size, one in zip(sizes, each, strict=True):
        hard = "document" in loss.texts and size > 1
        if hard and "negatives" in one and not mined:
            raise InputError(
                f"{where}.data.group_size is {size}, but the embedded data has no"
                " negatives: set prepare.negatives to 'bm25'."
            )
    if mined and c.prepare.count < max(sizes) - 1:
        raise InputError(
            f"{where}.prepare.count is {c.prepare.count}: fewer negatives than the"
            f" {max(sizes) - 1} that data.group_size asks for."
        )


def _check_groups(c, where) -> None:
    """Checks that there are groups to weigh, and a loss of each query."""
    groups, loss = c.dro.groups, objective.of(c.loss)
    if not groups or "document" not in loss.texts:
        return  # or it has no effect, which is refused
    counts = {
        "languages": len(mixing.languages(c.data)),
        "sets": len(c.data.sets),
        "topics": c.data.topics,
    }
    missing = {
        "languages": "the queries are in no two stated languages",
        "sets": "data.sets has no two data sets",
        "topics": f"data.topics is {c.data.topics}",
    }
    # Rows that name their languages are counted when they are opened.
    named = groups == "languages" and check_data.may_name_languages(c)
    if counts[groups] < 2 and not named:
        raise InputError(
            f"{where}.dro.groups is {groups!r}, but {missing[groups]}: there are no two"
            " groups to weigh. Leave it empty."
        )
    for one in loss.losses:
        if not one.entry.by_query:
            raise InputError(
                f"{where}.dro.groups is {groups!r}, which weighs queries, but the loss"
                f" {one.name} has no value for each query. Leave one of them out."
            )


def check_references(c: ConfigDict, earlier: Sequence[str], where: str) -> None:
    """Refuses `stage:NAME` unless an earlier stage has that name."""
    for field, value in references.of_stage(c).items():
        reference = str(value)
        if reference.startswith("stage:") and reference[6:] not in earlier:
            known = ", ".join(earlier) or "none"
            raise InputError(
                f"{where}.{field} is {reference!r}, but the stages before this one"
                f" are: {known}."
            )
