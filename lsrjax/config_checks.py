"""Which values and combinations of a stage's config make no sense, and why."""

import re
from collections.abc import Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from lsrjax.data import checks
from lsrjax.data.embedded import SPLITS
from lsrjax.data.sources import FIELDS, SOURCES
from lsrjax.errors import InputError
from lsrjax.losses import LOSSES
from lsrjax.models.encoder import REMAT
from lsrjax.models.heads import HEADS
from lsrjax.regularizers import REGULARIZERS, SCHEDULES
from lsrjax.retrieval.metrics import required_depth

_CHOICES = {
    "model.head": tuple(HEADS),
    "model.repeats": ("sum", "max"),
    "model.pool_mask": ("exclude", "multiply"),
    "model.dtype": ("float32", "bfloat16"),
    "model.family": ("bert", "xlm-roberta"),
    "init.from_pivot": ("", "shared", "translations"),
    "init.echo": ("random", "idf"),
    "data.source": tuple(SOURCES),
    **checks.CHOICES,
    "data.mixing": ("passages", "entries"),
    "prepare.negatives": ("given", "bm25"),
    "prepare.scores": ("given", "teacher"),
    "dev.source": ("", *SOURCES),
    "loss.name": tuple(LOSSES),
    "regularizer.name": tuple(REGULARIZERS),
    "regularizer.schedule": tuple(SCHEDULES),
    "optim.schedule": ("constant", "linear", "cosine"),
    "memory.remat": tuple(REMAT),
    "evaluate.test": ("", "debian"),
}

_POSITIVE = (
    "batch_size",
    "log.every",
    "checkpoint.every",
    "checkpoint.keep",
    "model.hidden_size",
    "model.num_layers",
    "model.num_heads",
    "model.intermediate_size",
    "model.max_length",
    "data.length_parts",
    "data.length_multiple",
    "data.threads",
    "data.prefetch",
    "data.group_size",
    "data.query_length",
    "data.document_length",
    "prepare.count",
    "prepare.depth",
    "loss.temperature",
    "optim.lr",
    "dev.queries",
)
_NOT_NEGATIVE = (
    "seed",
    "steps",
    "epochs",
    "model.dropout",
    "memory.encode_chunk",
    "optim.warmup_steps",
    "optim.warmup_fraction",
    "optim.weight_decay",
    "optim.clip_norm",
    "regularizer.warmup_steps",
    "dev.every",
)

_LAMBDAS = tuple(
    f"regularizer.{f}" for f in ("query", "document", "source_query", "source_document")
)
_PAIR_COLUMNS = tuple(f"data.columns.{f}" for f in FIELDS["pair"])
_GROUP_COLUMNS = tuple(f"data.columns.{f}" for f in FIELDS["group"])
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
    """The fields of one stage by dotted name, and their values; `stages` is one."""
    for key in config:
        if isinstance(config[key], ConfigDict) and key != "stages":
            yield from leaves(config[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config[key]


def check_stage(c: ConfigDict, default: ConfigDict, where: str) -> None:
    """Checks the values of a stage's fields, alone and together.

    Args:
      c: the stage's config; its fields are those of `default`.
      default: every field at its default.
      where: the config's name, for errors.

    Raises:
      InputError: names the field and what to do.
    """
    _check_values(c, where)
    _check_schedule(c, where)
    _check_data(c, where)
    checks.check(c, where)
    _check_needs(c, where)
    _check_group(c, where)
    for applies, names, because in _effects(c):
        if not applies:
            check_no_effect(c, default, where, names, because)


def _check_values(c, where) -> None:
    values = dict(leaves(c))
    for field, choices in _CHOICES.items():
        if values[field] not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            raise InputError(f"{where}.{field} is {values[field]!r}; known: {known}.")
    for field in _POSITIVE:
        if values[field] <= 0:
            raise InputError(f"{where}.{field} is {values[field]}; it must be > 0.")
    for field in (*_NOT_NEGATIVE, *_LAMBDAS):
        if values[field] < 0:
            raise InputError(f"{where}.{field} is {values[field]}; it must be >= 0.")
    for field in ("mesh.data", "mesh.model"):
        if values[field] < 1 and values[field] != -1:
            raise InputError(
                f"{where}.{field} is {values[field]}; it is a number of devices, or -1"
                " for the rest."
            )
    for field in ("model.dropout", "optim.warmup_fraction"):
        if values[field] >= 1:
            raise InputError(f"{where}.{field} is {values[field]}; it must be < 1.")
    for field in ("optim.freeze", "optim.no_decay"):
        try:
            re.compile(values[field])
        except re.error as e:
            raise InputError(
                f"{where}.{field} is {values[field]!r}: not a regular expression ({e})."
            ) from e


def _check_schedule(c, where) -> None:
    if (c.steps > 0) == (c.epochs > 0):
        raise InputError(
            f"{where}: steps is {c.steps} and epochs is {c.epochs}; set one of them."
        )
    if c.optim.warmup_steps and c.optim.warmup_fraction:
        raise InputError(
            f"{where}.optim: warmup_steps is {c.optim.warmup_steps} and"
            f" warmup_fraction is {c.optim.warmup_fraction}; set one of them."
        )


def _check_data(c, where) -> None:
    if not c.data.fields or not set(c.data.fields) <= {"title", "text"}:
        raise InputError(
            f"{where}.data.fields is {c.data.fields}; choose from ('title', 'text')."
        )
    for part in ("data", "dev"):
        if c[part].source == "debian" and c[part].split not in SPLITS:
            raise InputError(
                f"{where}.{part}.split is {c[part].split!r}; the embedded data has"
                f" {', '.join(SPLITS)}."
            )
    if c.dev.source:
        try:
            required_depth([c.dev.metric])
        except ValueError as e:
            raise InputError(f"{where}.dev.metric is {c.dev.metric!r}: {e}") from e


def _check_needs(c, where) -> None:
    loss = LOSSES[c.loss.name]
    needs = {
        "data.files": c.data.source == "files",
        "data.dataset": c.data.source in ("datasets", "tfds"),
        "dev.files": c.dev.source == "files",
        "dev.dataset": c.dev.source in ("datasets", "tfds"),
        **checks.needed(c),
        "tokenizer": not (c.init.encoder or c.init.model),
        "init.head": c.model.head == "milco" and not c.init.model,
        "teacher.model": loss.target == "views" or c.prepare.scores == "teacher",
        "regularizer.warmup_steps": c.regularizer.schedule != "constant",
    }
    values = dict(leaves(c))
    for field, needed in needs.items():
        if needed and not values[field]:
            raise InputError(
                f"{where}.{field} is {values[field]!r}, but this config needs it: see"
                " lsrjax/config.py."
            )
    if c.init.from_pivot == "translations" and loss.target != "views":
        raise InputError(
            f"{where}.init.from_pivot is 'translations', which come from training"
            f" pairs, and the loss {c.loss.name} has none. Use 'shared', or start in an"
            " alignment stage."
        )
    if c.init.model and (c.init.encoder or c.init.head):
        raise InputError(
            f"{where}.init: model gives the whole retriever; leave encoder and head"
            " empty."
        )


def _check_group(c, where) -> None:
    """Whether a query gets the documents and scores that the loss asks for."""
    loss = LOSSES[c.loss.name]
    if loss.target == "scores" and c.data.group_size < 2:
        raise InputError(
            f"{where}.data.group_size is {c.data.group_size}; the loss {c.loss.name}"
            " compares a query's documents, so it needs at least 2."
        )
    mined, embedded = c.prepare.negatives == "bm25", c.data.source == "debian"
    if loss.target == "scores" and (mined or embedded) and c.prepare.scores == "given":
        whose = "mined negatives" if mined else "the embedded queries"
        raise InputError(
            f"{where}.prepare.scores is 'given', but {whose} come without scores: set"
            " it to 'teacher', and teacher.model."
        )
    if "document" in loss.texts and c.data.group_size > 1 and embedded and not mined:
        raise InputError(
            f"{where}.data.group_size is {c.data.group_size}, but the embedded data has"
            " no negatives: set prepare.negatives to 'bm25'."
        )
    if mined and c.prepare.count < c.data.group_size - 1:
        raise InputError(
            f"{where}.prepare.count is {c.prepare.count}: fewer negatives than the"
            f" {c.data.group_size - 1} that data.group_size asks for."
        )


def _effects(c) -> list[tuple[bool, tuple[str, ...], str]]:
    """(whether the fields take effect, the fields, why they do not)."""
    loss = LOSSES[c.loss.name]
    ranks = "document" in loss.texts
    fresh = not (c.init.encoder or c.init.model)
    return [
        # The model and where it starts.
        (
            c.model.head == "milco",
            ("model.lexecho", "init.head", "init.from_pivot"),
            "model.head is not milco",
        ),
        (
            c.model.head == "splade",
            ("model.tied", "init.lexical"),
            "model.head is not splade",
        ),
        (
            fresh,
            (*_SIZES, "model.tied", "init.from_pivot", "init.lexical"),
            "the weights come from init.encoder or init.model",
        ),
        (
            c.model.lexecho,
            (
                "model.repeats",
                "model.exclude_special_tokens",
                "init.echo",
                "regularizer.source_query",
                "regularizer.source_document",
            ),
            "model.lexecho is off",
        ),
        (c.init.echo == "idf", ("init.echo_scale",), "init.echo is random"),
        # The data.
        (c.data.source == "files", ("data.files",), "data.source is not files"),
        *checks.effects(c, scored=loss.target == "scores"),
        (ranks, _GROUP_COLUMNS, f"the loss {c.loss.name} reads pairs"),
        (not ranks, _PAIR_COLUMNS, f"the loss {c.loss.name} reads queries"),
        (
            c.data.source == "debian" and not ranks,
            ("data.fields",),
            "only embedded pairs have fields to choose",
        ),
        (
            ranks,
            (
                "data.group_size",
                "data.mixing",
                "data.document_languages",
                "prepare.negatives",
                *_LAMBDAS,
            ),
            f"the loss {c.loss.name} has no queries and documents",
        ),
        (
            ranks or c.dev.source == "debian",
            ("data.query_languages",),
            f"the loss {c.loss.name} has no queries",
        ),
        (
            c.data.group_size > 1,
            ("data.mixing", "prepare.negatives"),
            "data.group_size is 1: a query has its positive document only",
        ),
        (
            loss.target == "scores",
            ("prepare.scores",),
            f"the loss {c.loss.name} reads no scores",
        ),
        (
            c.prepare.negatives == "bm25",
            ("prepare.count", "prepare.depth"),
            "prepare.negatives is given",
        ),
        (
            loss.target == "views" or c.prepare.scores == "teacher",
            ("teacher.model",),
            f"the loss {c.loss.name} asks no teacher (prepare.scores is given)",
        ),
        # The objective.
        (
            "teacher_scale" in loss.options,
            ("loss.teacher_scale",),
            f"the loss {c.loss.name} has no teacher's scores",
        ),
        (
            "temperature" in loss.options,
            ("loss.temperature",),
            f"the loss {c.loss.name} has no temperature",
        ),
        (
            any(c.regularizer[f.split(".")[1]] for f in _LAMBDAS),
            ("regularizer.name", "regularizer.schedule", "regularizer.warmup_steps"),
            "every lambda is 0",
        ),
        (
            c.regularizer.schedule != "constant",
            ("regularizer.warmup_steps",),
            "regularizer.schedule is constant",
        ),
        (c.optim.weight_decay > 0, ("optim.no_decay",), "optim.weight_decay is 0"),
        # Evaluation.
        (c.dev.source != "", ("dev",), "dev.source is empty"),
        (c.dev.source == "files", ("dev.files",), "dev.source is not files"),
        (c.evaluate.test != "", ("evaluate.examples",), "evaluate.test is empty"),
    ]


def check_no_effect(
    c: ConfigDict, default: ConfigDict, where: str, fields: Sequence[str], because: str
) -> None:
    """Refuses values other than the default for fields that have no effect.

    Args:
      c: a config.
      default: every field at its default.
      where: the config's name, for errors.
      fields: names of fields, or of groups of them.
      because: why they have no effect.
    """
    values, defaults = dict(leaves(c)), dict(leaves(default))
    for field in values:
        covered = any(field == f or field.startswith(f"{f}.") for f in fields)
        if covered and values[field] != defaults[field]:
            raise InputError(
                f"{where}.{field} = {values[field]!r} would have no effect: {because}."
                f" Remove it (the default is {defaults[field]!r})."
            )


def check_references(c: ConfigDict, earlier: Sequence[str], where: str) -> None:
    """Refuses `stage:NAME` where no stage before this one (`earlier`) has the name."""
    for field in ("init.model", "init.encoder", "init.head", "teacher.model"):
        reference = dict(leaves(c))[field]
        if reference.startswith("stage:") and reference[6:] not in earlier:
            known = ", ".join(earlier) or "none"
            raise InputError(
                f"{where}.{field} is {reference!r}, but the stages before this one"
                f" are: {known}."
            )
