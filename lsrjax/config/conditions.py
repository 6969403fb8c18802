"""The conditions under which options have an effect; `when` of `option` names them."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from lsrjax import errors, options
from lsrjax.config import check_data
from lsrjax.data import sources
from lsrjax.data.batching import languages, mixing
from lsrjax.data.batching.negatives import choice_of
from lsrjax.initial import initialisations
from lsrjax.losses import objective
from lsrjax.models import heads
from lsrjax.models.backbones import table
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


def _pools(stage: Any) -> str | None:
    if not _head(stage).entry.pools:
        return f"the head {_head(stage).name} leaves no tokens out"
    return None


def _sparse(stage: Any) -> str | None:
    if not (_head(stage).entry.sparse or _head(stage).entry.weighed):
        return f"the head {_head(stage).name} has views that are not weights of terms"
    return None


def _dev_data(stage: Any) -> str | None:
    if not (stage.dev.source.name or stage.dev.task.name):
        return "dev.source is empty, and so is dev.task"
    return None


def _source_view(stage: Any) -> str | None:
    head = _head(stage)
    option = head.entry.source_option
    if getattr(head.options, option, False):
        return None
    off = f" ({option} is off)" if option else ""
    return f"the head {head.name} has no source view{off}"


def _option(name: str) -> Callable[[Any], str | None]:
    """Whether the head has an option that is set."""

    def check(stage: Any) -> str | None:
        head = _head(stage)
        if not hasattr(head.options, name):
            return f"the head {head.name} has no {name}"
        return None if getattr(head.options, name) else f"model.head.{name} is 0"

    return check


def _one_embedding(stage: Any) -> str | None:
    if "embedding" not in _head(stage).entry.gives:
        return f"texts of the head {_head(stage).name} are not one embedding"
    return None


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


def _family(stage: Any) -> str | None:
    family = table.chosen(stage.model.family)
    changed = any(options.set_options(family.options))
    if family.name in table.BACKBONES or changed:
        return _fresh(stage)
    return None  # named, so that files may name it


def _trained(stage: Any) -> str | None:
    if names := ", ".join(stage.adapt):
        return f"adapt has {names}, beside which no weights are trained"
    return None


def _teacher(stage: Any) -> str | None:
    loss = objective.of(stage.loss)
    if not loss.reads_views and stage.prepare.scores != "teacher":
        return f"the loss {loss.name} asks no teacher (prepare.scores is given)"
    return None


def _scoring(stage: Any) -> str | None:
    if stage.prepare.scores != "teacher":
        return "the teacher scores no documents (prepare.scores is given)"
    return None


def _one_set(stage: Any) -> str | None:
    return "each of data.sets has its own" if len(stage.data.sets) else None


def _rows(stage: Any) -> str | None:
    sets = mixing.named_sets(stage.data).values()
    if not any(sources.chosen(one.source).entry.breakable for one in sets):
        return "the embedded data has none"
    return None


def _languages(stage: Any) -> str | None:
    if not check_data.has_languages(stage):
        return (
            "only embedded documents and those of a corpus exist in several languages"
        )
    return None


def _query_languages(stage: Any) -> str | None:
    # Dev data that is no rows has queries in several languages.
    if not sources.chosen(stage.dev.source).entry.rows:
        return None
    if languages.asked(stage.data) or check_data.may_name_languages(stage):
        return None
    if not check_data.has_languages(stage, "queries"):
        return (
            "only embedded queries, those that the format looks up, rows with a column"
            " language and plain texts by language exist in several languages"
        )
    return _ranking(stage)


def _parts(stage: Any) -> str | None:
    if stage.data.batches_from == "one" and not len(stage.data.sets):
        return "data.sets is empty"
    return None


def _shares(stage: Any) -> str | None:
    if stage.data.batches_from == "one":
        return "data.batches_from is 'one': batches are of a set, in any language"
    return None


def _groups(stage: Any) -> str | None:
    if max(mixing.group_sizes(stage.data)) == 1:
        return "data.group_size is 1: a query has its positive document only"
    return None


def _scores(stage: Any) -> str | None:
    loss = objective.of(stage.loss)
    if "scores" not in loss.targets and not choice_of(stage.data).needs_scores:
        return f"the loss {loss.name} reads no scores"
    return None


def _few_negatives(stage: Any) -> str | None:
    if check_data.mines(stage) and not choice_of(stage.data).filters:
        return "prepare.negatives is bm25, which mines as many as are needed"
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
    "ranking loss": _ranking,
    "encoded queries": _encoded_queries,
    "learned queries": _learned_queries,
    "static queries": _static_queries,
    "pooled tokens": _pools,
    "sparse views": _sparse,
    "dev data": _dev_data,
    "source view": _source_view,
    "translations": _option("translations"),
    "n-grams": _option("ngrams"),
    "one embedding": _one_embedding,
    "pivot head": _pivot,
    "word head": _words,
    "fresh weights": _fresh,
    "read family": _family,
    "trained weights": _trained,
    "asked teacher": _teacher,
    "scoring teacher": _scoring,
    "one set": _one_set,
    "rows read": _rows,
    "document languages": _languages,
    "query languages": _query_languages,
    "parts of batches": _parts,
    "shares of languages": _shares,
    "several documents": _groups,
    "scores read": _scores,
    "few negatives": _few_negatives,
    **{f"{what} loss": _needed(what) for what in GIVEN},
}


def check(stage: Any, found: Any, where: str) -> None:
    """Checks the options of a stage, and of its entries, against the whole stage.

    Args:
      stage: its config.
      found: the same, as `options.checked` returns it.
      where: its name, for errors.

    Raises:
      InputError: options without effect, or that contradict others.
    """
    with errors.together() as each:
        for at, one in _walk(found, where):
            for name in getattr(one, "when", ()):
                if because := CONDITIONS[name](stage):
                    each.add(f"{at} would have no effect: {because}. Remove it.")
            for option, name in options.set_with(one):
                if " " in name and (because := CONDITIONS[name](stage)):
                    said = options.no_effect(*options.set_value(one, option), because)
                    each.add(f"{at}.{said}")
            if isinstance(one, options.Options):
                with each:
                    one.check_stage(stage, at)


def _walk(found: Any, where: str) -> Iterator[tuple[str, Any]]:
    """All dataclasses of options in one, with their names."""
    yield where, found
    for field in dataclasses.fields(found):
        value, at = getattr(found, field.name), f"{where}.{field.name}"
        if isinstance(value, Chosen):
            yield from _walk(value.options, at)
        elif isinstance(value, list | tuple):
            for one in value:  # entries, or plain values such as files
                if isinstance(one, Chosen):
                    yield from _walk(one.options, f"{at}.{one.name}")
        elif dataclasses.is_dataclass(value):
            yield from _walk(value, at)
