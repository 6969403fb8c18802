"""Refuses options of a stage's config that have no effect."""

from collections.abc import Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from lsrjax import options
from lsrjax.config.check_data import CHOICE, mines, reads_scores, source_effects
from lsrjax.config.data_fields import ROWS, has_languages, renames
from lsrjax.config.nodes import Entry
from lsrjax.data.batching.mixing import SET_FIELDS
from lsrjax.data.batching.negatives import choice_of
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
    return [*_of_model(c), *_of_data(c), *_of_objective(c), *_of_evaluation(c)]


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


def _of_data(c):
    loss = objective.of(c.loss)
    ranks = "document" in loss.texts
    several = len(c.data.sets) > 0
    choice = choice_of(c.data)
    return [
        *(
            (applies, tuple(f"data.{name}" for name in names), because)
            for applies, names, because in source_effects(
                c.data, ranks, loss.name, reads_scores(c), mines(c)
            )
        ),
        (
            not several,
            tuple(f"data.{field}" for field in SET_FIELDS if field != "columns"),
            "each of data.sets has its own",
        ),
        (
            "labelled" in (c.data.format, c.dev.format),
            ("data.min_label",),
            "data.format is not labelled",
        ),
        (
            (renames(c.data) and not several) or renames(c.dev),
            ("data.columns",),
            "each of data.sets has its own"
            if several
            else "the embedded data has its own names"
            if c.data.source == "debian"
            else f"the format {c.data.format} has its own names",
        ),
        (
            any(own.source in ROWS for own in list(c.data.sets.values()) or [c.data]),
            ("data.bad_records",),
            "the embedded data has none",
        ),
        (several, ("data.mixer", "data.batches_from"), "data.sets is empty"),
        (
            c.data.mixer == "temperature",
            ("data.mix_temperature",),
            "data.mixer is not temperature",
        ),
        (
            any(map(has_languages, c.data.sets.values()))
            if several
            else has_languages(c.data),
            ("data.mixing", "data.document_languages"),
            "only embedded documents and those of a corpus exist in several languages",
        ),
        (
            any(
                has_languages(own, "queries")
                for own in (c.data.sets.values() if several else [c.data])
            )
            or c.dev.source == "debian",
            ("data.query_languages",),
            "only embedded queries and those of data.queries exist in several"
            " languages",
        ),
        (
            ranks,
            (
                "data.group_size",
                *CHOICE,
                "data.topics",
                "data.unique_texts",
                "data.document_languages",
                "prepare.negatives",
                "regularizer.anti_zero",
                *LAMBDAS,
            ),
            f"the loss {objective.of(c.loss).name} has no queries and documents",
        ),
        (
            ranks or c.dev.source == "debian",
            ("data.query_languages",),
            f"the loss {objective.of(c.loss).name} has no queries",
        ),
        (
            c.data.group_size > 1,
            (*CHOICE, "prepare.negatives"),
            "data.group_size is 1: a query has its positive document only",
        ),
        (
            choice.negatives == "rank",
            ("data.negative_rank_scale",),
            "data.negatives is not rank",
        ),
        (
            choice.negatives == "margin_bins",
            ("data.margin_bins",),
            "data.negatives is not margin_bins",
        ),
        (
            "scores" in loss.targets or choice.needs_scores,
            ("prepare.scores",),
            f"the loss {objective.of(c.loss).name} reads no scores",
        ),
        (
            mines(c),
            ("prepare.count", "prepare.depth", "prepare.every"),
            "prepare.negatives is given",
        ),
        (
            not mines(c) or choice_of(c.data).filters,
            ("data.short_rows",),
            "negatives are mined, as many as are needed",
        ),
        (
            "views" in loss.targets or c.prepare.scores == "teacher",
            ("teacher.model",),
            f"the loss {loss.name} asks no teacher (prepare.scores is given)",
        ),
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
        (c.dev.source != "", ("dev",), "dev.source is empty"),
        (c.dev.source == "files", ("dev.files",), "dev.source is not files"),
        (
            c.dev.source in ("datasets", "tfds"),
            ("dev.dataset",),
            "dev.source is not datasets or tfds",
        ),
        (
            c.dev.source != "files" or c.dev.format == "beir",
            ("dev.split",),
            "files have no splits; a BEIR folder has, with dev.format = 'beir'",
        ),
        (c.dev.source in ROWS, ("dev.format",), "the embedded data has its own format"),
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
