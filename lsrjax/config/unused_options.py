"""Refuses options of a stage's config that have no effect."""

from collections.abc import Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from lsrjax.config.check_data import CHOICE, mines, reads_scores, source_effects
from lsrjax.config.data_fields import ROWS, has_languages, renames
from lsrjax.config.nodes import Entry
from lsrjax.data.batching.mixing import SET_FIELDS
from lsrjax.data.batching.negatives import choice_of
from lsrjax.errors import InputError
from lsrjax.losses import objective
from lsrjax.options import no_effect


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
    return [*_of_data(c), *_of_evaluation(c)]


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
            ("prepare.count", "prepare.depth"),
            "prepare.negatives is given",
        ),
        (
            not mines(c) or choice_of(c.data).filters,
            ("data.short_rows",),
            "prepare.negatives is bm25, which mines as many as are needed",
        ),
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
