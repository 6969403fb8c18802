"""The conditions under which options have an effect; `when` of `option` names them."""

from collections.abc import Callable
from typing import Any

from lsrjax.initial import initialisations
from lsrjax.losses import objective
from lsrjax.models import heads
from lsrjax.models.layers import GIVEN
from lsrjax.options import Chosen


def _head(stage: Any) -> Chosen:
    return heads.chosen(stage.model.head)


def _ranking(stage: Any) -> str | None:
    loss = objective.of(stage.loss)
    if "document" not in loss.texts:
        return f"the loss {loss.name} has no queries and documents"
    return None


def _encoded_queries(stage: Any) -> str | None:
    if not _head(stage).entry.encodes_queries(_head(stage).options):
        return f"queries of the head {_head(stage).name} are not encoded"
    return None


def _learned_queries(stage: Any) -> str | None:
    if not _head(stage).entry.learns_queries(_head(stage).options):
        return "each word of a query weighs 1, whatever is learned"
    return None


def _static_queries(stage: Any) -> str | None:
    if _encoded_queries(stage) is None or _learned_queries(stage):
        return f"queries of the head {_head(stage).name} are not static"
    return None


def _sparse(stage: Any) -> str | None:
    if not _head(stage).entry.sparse:
        return f"the head {_head(stage).name} has views that are not weights of terms"
    return None


def _source_view(stage: Any) -> str | None:
    head = _head(stage)
    option = head.entry.source_option
    if getattr(head.options, option, False):
        return None
    off = f" ({option} is off)" if option else ""
    return f"the head {head.name} has no source view{off}"


def _pivot(stage: Any) -> str | None:
    if not _head(stage).entry.copies_pivot:
        return f"the head {_head(stage).name} copies no other model's"
    return None


def _words(stage: Any) -> str | None:
    if "head" not in _head(stage).entry.starts_from:
        return f"the head {_head(stage).name} is no bag of the encoder's own words"
    return None


def _fresh(stage: Any) -> str | None:
    for one in initialisations.of(stage.init):
        if one.entry.gives_encoder:
            return f"the weights come from init.{one.name}"
    return None


def _teacher(stage: Any) -> str | None:
    loss = objective.of(stage.loss)
    if "views" not in loss.targets and stage.prepare.scores != "teacher":
        return f"the loss {loss.name} asks no teacher (prepare.scores is given)"
    return None


def _needed(what: str) -> Callable[[Any], str | None]:
    """Whether a loss needs what a head may give."""

    def check(stage: Any) -> str | None:
        loss = objective.of(stage.loss)
        if what not in {one.entry.needs for one in loss.losses}:
            return f"the loss {loss.name} does not read it"
        return None

    return check


# Each returns why it does not hold in a stage's config, or None.
CONDITIONS: dict[str, Callable[[Any], str | None]] = {
    "ranking": _ranking,
    "encoded queries": _encoded_queries,
    "learned queries": _learned_queries,
    "static queries": _static_queries,
    "sparse": _sparse,
    "source view": _source_view,
    "pivot": _pivot,
    "words": _words,
    "fresh": _fresh,
    "teacher": _teacher,
    **{what: _needed(what) for what in GIVEN},
}
