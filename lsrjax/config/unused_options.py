"""Refuses options of a stage's config that have no effect."""

from collections.abc import Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from lsrjax import options
from lsrjax.config.nodes import Entry
from lsrjax.errors import InputError
from lsrjax.losses import objective, regularizers
from lsrjax.models import heads
from lsrjax.options import no_effect

LAMBDAS = tuple(f"regularizer.{name}" for name in regularizers.LAMBDAS)
_SIZES = tuple(
    f"model.{f}"
    for f in (
        "family",
        "hidden_size",
        "num_layers",
        "num_heads",
        "intermediate_size",
        "max_length",
    )
)


def leaves(config: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The fields of one stage by dotted name, and their values.

    `stages` and `data.sets` are one field each.
    """
    for key in config:
        group = isinstance(config[key], ConfigDict) and key not in ("stages", "sets")
        if group and not isinstance(config[key], Entry):
            yield from leaves(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config[key]


def effects(c: ConfigDict) -> list[tuple[bool, tuple[str, ...], str]]:
    """(whether fields have an effect, the fields, why they have none) for a stage."""
    return [*_of_model(c), *_of_objective(c), *_of_evaluation(c)]


def _of_model(c):
    fresh = not (c.init.encoder or c.init.model)
    loss, head = objective.of(c.loss), heads.chosen(c.model.head)
    encodes_queries = head.entry.encodes_queries(head.options)
    ranks = "document" in loss.texts
    needed = {one.entry.needs for one in loss.losses}
    return [
        (
            head.name == "milco",
            ("init.head", "init.from_pivot"),
            "model.head is not milco",
        ),
        (head.name == "splade", ("init.lexical",), "model.head is not splade"),
        (
            ranks,
            (
                "model.towers",
                *(f"model.head.{name}" for name in head.entry.query_options),
                "model.query_prompt",
                "model.query_marker",
                "model.document_prompt",
                "model.document_marker",
            ),
            f"the loss {loss.name} has no queries and documents",
        ),
        (
            encodes_queries,
            ("model.towers",),
            f"queries of the head {head.name} are not encoded",
        ),
        (
            getattr(head.options, "queries", "") == "static" and not c.init.model,
            ("init.static",),
            "the weights come from init.model"
            if c.init.model
            else "queries are not static",
        ),
        (
            head.entry.learns_queries(head.options),
            ("regularizer.query", "regularizer.active_query"),
            "each word of a query weighs 1, whatever is learned",
        ),
        (
            head.entry.sparse,
            (*LAMBDAS, "regularizer.anti_zero", "log.health"),
            f"the head {head.name} has not only weights of terms",
        ),
        *(
            (
                need in needed,
                tuple(f"model.head.{name}" for name in names),
                f"the loss {loss.name} does not read it",
            )
            for need, names in head.entry.loss_options.items()
        ),
        (
            fresh,
            (
                *_SIZES,
                *(f"model.head.{name}" for name in options.fresh(type(head.options))),
                "init.from_pivot",
                "init.lexical",
            ),
            "the weights come from init.encoder or init.model",
        ),
        (
            head.entry.has_source(head.options),
            ("init.echo", "regularizer.source_query", "regularizer.source_document"),
            f"the head {head.name} has no source view (lexecho is off)",
        ),
        (c.init.echo == "idf", ("init.echo_scale",), "init.echo is random"),
    ]


def _of_objective(c):
    regularizer = regularizers.of(c.regularizer).options
    alone = {"name", "anti_zero"} if c.regularizer.name == "l1" else {"anti_zero"}
    return [
        (
            bool(regularizer.lambdas),
            tuple(f"regularizer.{name}" for name in c.regularizer if name not in alone),
            "every lambda is 0",
        ),
        (c.optim.weight_decay > 0, ("optim.no_decay",), "optim.weight_decay is 0"),
        (c.numbers.policy != "stop", ("numbers.most",), "numbers.policy is stop"),
    ]


def _of_evaluation(c):
    return [
        (c.evaluate.test != "", ("evaluate.examples",), "evaluate.test is empty"),
    ]


def check_no_effect(
    c: ConfigDict, default: ConfigDict, where: str, fields: Sequence[str], because: str
) -> None:
    """Refuses values other than the default for fields that have no effect.

    `fields` are names of fields or of groups, `because` says why.
    """
    values, defaults = dict(_with_options(c)), dict(_with_options(default))
    for field in values:
        covered = any(field == f or field.startswith(f"{f}.") for f in fields)
        if covered and values[field] != defaults.get(field, _unset(values[field])):
            said = no_effect(field, values[field], because)
            shown = (
                f" (the default is {defaults[field]!r})" if field in defaults else ""
            )
            raise InputError(f"{where}.{said.removesuffix('.')}{shown}.")


def _with_options(c) -> Iterator[tuple[str, object]]:
    for field, value in leaves(c):
        if isinstance(value, Entry):
            yield from ((f"{field}.{name}", of) for name, of in value.items())
        else:
            yield field, value


def _unset(value):
    """The value of an option that is off."""
    return type(value)() if isinstance(value, bool | int | float | str) else None
