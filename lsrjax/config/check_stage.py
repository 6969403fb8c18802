"""Which values and combinations of a stage's config make no sense, and why."""

import math
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from lsrjax.config import data_fields
from lsrjax.config.check_data import (
    check_choice,
    check_formats,
    check_set,
    check_split,
    set_effects,
)
from lsrjax.config.unused_options import (
    LAMBDAS,
    POOLING,
    check_no_effect,
    effects,
    leaves,
)
from lsrjax.data.batching.mixing import MIXERS, blank_set, sources_of
from lsrjax.data.batching.negatives import SAMPLERS, choice_of
from lsrjax.data.sources import SOURCES
from lsrjax.errors import InputError
from lsrjax.lookup import entry
from lsrjax.losses import losses, objective
from lsrjax.losses.regularizers import REGULARIZERS, SCHEDULES
from lsrjax.models.encoder import REMAT
from lsrjax.models.heads import own_head
from lsrjax.models.retriever import TOWERS
from lsrjax.retrieval.metrics import required_depth

_CHOICES = {
    "model.repeats": ("sum", "max"),
    "model.pool_mask": ("exclude", "multiply"),
    "model.dtype": ("float32", "bfloat16"),
    "model.family": ("bert", "xlm-roberta"),
    "model.pooling": ("max", "sum", "cls", "mean"),
    "model.towers": TOWERS,
    "model.queries": ("encoded", "static", "words"),
    "init.static": ("ones", "idf"),
    "init.from_pivot": ("", "shared", "translations"),
    "init.echo": ("random", "idf"),
    "data.source": tuple(SOURCES),
    "data.short_rows": ("bad", "repeat"),
    **data_fields.CHOICES,
    "data.batches_from": ("mixed", "one"),
    "data.mixing": ("passages", "entries", "round_robin"),
    "prepare.negatives": ("given", "bm25"),
    "prepare.scores": ("given", "teacher"),
    "dev.source": ("", *SOURCES),
    "checkpoint.on_full_disk": ("stop", "go_on"),
    "loss.margins": losses.MARGINS,
    "regularizer.name": tuple(REGULARIZERS),
    "regularizer.schedule": tuple(SCHEDULES),
    "optim.schedule": ("constant", "linear", "cosine"),
    "numbers.policy": ("stop", "skip", "roll_back"),
    "memory.remat": tuple(REMAT),
    "evaluate.test": ("", "debian"),
}

_POSITIVE = (
    "batch_size",
    "log.every",
    "checkpoint.every",
    "checkpoint.keep",
    "numbers.most",
    "model.hidden_size",
    "model.num_layers",
    "model.num_heads",
    "model.intermediate_size",
    "model.max_length",
    "model.latents",
    "model.active_latents",
    "model.revived_latents",
    "model.dead_after",
    "data.length_parts",
    "data.length_multiple",
    "data.threads",
    "data.prefetch",
    "data.group_size",
    "data.positives",
    "data.negative_rank_scale",
    "data.margin_bins",
    "data.mix_temperature",
    "data.query_length",
    "data.document_length",
    "prepare.count",
    "prepare.depth",
    "loss.temperature",
    "loss.infonce_temperature",
    "loss.teacher_scale",
    "regularizer.active_gain",
    "init.echo_scale",
    "optim.lr",
    "optim.eps",
    "dev.queries",
)
_NOT_NEGATIVE = (
    "seed",
    "steps",
    "epochs",
    "data.topics",
    "data.bad_records",
    "model.embedding_size",
    "memory.encode_chunk",
    "optim.warmup_steps",
    "optim.warmup_fraction",
    "optim.weight_decay",
    "optim.clip_norm",
    "regularizer.warmup_steps",
    "regularizer.threshold",
    "regularizer.active_query",
    "regularizer.active_document",
    "regularizer.anti_zero",
    "loss.false_negative_margin",
    "loss.auxiliary",
    "optim.b1",
    "optim.b2",
    "numbers.spike",
    "watchdog.seconds",
    "dev.every",
)
_BELOW_ONE = (
    "data.bad_records",
    "model.dropout",
    "optim.warmup_fraction",
    "optim.b1",
    "optim.b2",
)
# Far above what anyone trains with; beyond them, sizes and counters overflow.
_LARGEST = 2**31 - 1
_AT_MOST = {
    "batch_size": 2**20,
    "data.group_size": 2**16,
    "data.threads": 2**10,
    "data.prefetch": 2**16,
    "data.length_parts": 2**10,
    "prepare.count": 2**16,
    "prepare.depth": 2**20,
    "checkpoint.keep": 2**16,
    "watchdog.seconds": 10**9,
    "epochs": 10**6,
    "model.num_layers": 2**10,
    "model.num_heads": 2**10,
    "model.hidden_size": 2**16,
    "model.intermediate_size": 2**18,
    "model.max_length": 2**20,
    "model.embedding_size": 2**16,
    "model.latents": 2**24,
}
_LARGEST_FLOAT = 3e38  # float32
_MAY_BE_INFINITE = ("data.negative_max_score", "data.negative_margin")


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
    objective.of(c.loss, f"{where}.loss")
    _check_schedule(c, where)
    _check_data(c, where)
    for name, own in c.data.sets.items():
        at = f"{where}.data.sets.{name}"
        check_set(own, at)
        data_fields.check(own, c.prepare, at)
        for applies, names, because in set_effects(own, c):
            if not applies:
                check_no_effect(own, blank_set(default.data), at, names, because)
    data_fields.check(c.data, c.prepare, f"{where}.data")
    _check_needs(c, where)
    _check_group(c, where)
    check_choice(c, where)
    for applies, names, because in effects(c):
        if not applies:
            check_no_effect(c, default, where, names, because)
    check_formats(c, where)


def _check_values(c, where) -> None:
    values = dict(leaves(c))
    for field, choices in _CHOICES.items():
        if values[field] not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            raise InputError(f"{where}.{field} is {values[field]!r}; known: {known}.")
    entry(MIXERS, c.data.mixer, f"{where}.data.mixer")
    entry(SAMPLERS, c.data.negatives, f"{where}.data.negatives")
    entry_of = own_head(c.model.head, f"{where}.model.head")
    if not hasattr(entry_of, "views"):
        raise InputError(
            f"{where}.model.head is {c.model.head!r}, which is no head: it has no"
            " views(spec). See lsrjax/models/heads.py."
        )
    for field, value in values.items():
        infinite = isinstance(value, float) and not abs(value) <= _LARGEST_FLOAT
        if infinite and field not in _MAY_BE_INFINITE:
            raise InputError(
                f"{where}.{field} is {value}; give a finite number, as float32 has it."
            )
        whole = isinstance(value, int)
        most = _AT_MOST.get(field, _LARGEST if whole else math.inf)
        if isinstance(value, int | float) and value > most:
            raise InputError(f"{where}.{field} is {value}; it is at most {most:,}.")
    for field in ("model.view_weights", "loss.view_weights"):
        _check_view_weights(values[field], f"{where}.{field}")
    for field in ("data.query_length", "data.document_length"):
        if values[field] < 3:
            raise InputError(
                f"{where}.{field} is {values[field]}; two tokens of a text are special"
                " ones, so that it must be >= 3."
            )
    for field in _POSITIVE:
        if values[field] <= 0:
            raise InputError(f"{where}.{field} is {values[field]}; it must be > 0.")
    for field in (*_NOT_NEGATIVE, *LAMBDAS):
        if values[field] < 0:
            raise InputError(f"{where}.{field} is {values[field]}; it must be >= 0.")
    for field in ("mesh.data", "mesh.model"):
        if values[field] < 1 and values[field] != -1:
            raise InputError(
                f"{where}.{field} is {values[field]}; it is a number of devices, or -1"
                " for the rest."
            )
    if values["model.dropout"] < 0 and values["model.dropout"] != -1:
        raise InputError(
            f"{where}.model.dropout is {values['model.dropout']}; it is a share >= 0,"
            " or -1 for that of the checkpoint."
        )
    if 0 < values["numbers.spike"] <= 1:
        raise InputError(
            f"{where}.numbers.spike is {values['numbers.spike']}, times the median that"
            " half of all losses are above. Give a number above 1, or 0 for none."
        )
    for field in _BELOW_ONE:
        if values[field] >= 1:
            raise InputError(f"{where}.{field} is {values[field]}; it must be < 1.")
    for field in ("optim.freeze", "optim.no_decay"):
        try:
            re.compile(values[field])
        except re.error as e:
            raise InputError(
                f"{where}.{field} is {values[field]!r}: not a regular expression ({e})."
            ) from e


def _check_view_weights(weights, field: str) -> None:
    numbers = all(isinstance(weight, int | float) for weight in weights)
    valid = numbers and all(0 <= weight < math.inf for weight in weights)
    if len(weights) != 3 or not valid or not any(weights):
        raise InputError(
            f"{field} is {tuple(weights)}; give three numbers >= 0, of the views dense,"
            " terms and tokens, one of them > 0."
        )


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
    """Refuses a warm-up that is longer than the stage.

    Args:
      c: the stage's config.
      steps: of the stage; 0: not known yet.
      where: the config's name, for errors.

    Raises:
      InputError: names the field.
    """
    warmup = c.optim.warmup_steps
    if 0 < steps < warmup:
        raise InputError(
            f"{where}.optim.warmup_steps is {warmup:,}, but the stage has {steps:,}"
            " steps, so that the warm-up would not end. Lower it, or train longer."
        )


def check_evaluate(c: ConfigDict) -> None:
    """Checks what a run, whose stages may be several, says of its evaluation.

    Raises:
      InputError: names the field and what to do.
    """
    known = _CHOICES["evaluate.test"]
    if c.evaluate.test not in known:
        raise InputError(
            f"config.evaluate.test is {c.evaluate.test!r}; known:"
            f" {', '.join(map(repr, known))}."
        )
    if not all(isinstance(language, str) for language in c.evaluate.examples):
        raise InputError(
            f"config.evaluate.examples is {tuple(c.evaluate.examples)}; give languages,"
            " as in ('ja', 'de')."
        )
    if not 0 <= c.seed <= _LARGEST:
        raise InputError(f"config.seed is {c.seed}; it is 0 to {_LARGEST:,}.")


def _check_data(c, where) -> None:
    if not c.data.fields or not all(f in ("title", "text") for f in c.data.fields):
        raise InputError(
            f"{where}.data.fields is {c.data.fields}; choose from ('title', 'text')."
        )
    if c.data.topics and len(c.data.sets):
        raise InputError(
            f"{where}.data.topics is {c.data.topics}, but data.sets has several data"
            " sets; a batch comes from one topic or from data sets. Set one of them."
        )
    for part in ("data", "dev"):
        check_split(c[part], f"{where}.{part}")
    if c.dev.source:
        try:
            required_depth([c.dev.metric])
        except ValueError as e:
            raise InputError(f"{where}.dev.metric is {c.dev.metric!r}: {e}") from e


def _check_needs(c, where) -> None:
    loss = objective.of(c.loss)
    needs = {
        "data.files": c.data.source == "files" and not len(c.data.sets),
        "data.dataset": c.data.source in ("datasets", "tfds") and not len(c.data.sets),
        "dev.files": c.dev.source == "files",
        "dev.dataset": c.dev.source in ("datasets", "tfds"),
        "tokenizer": not (c.init.encoder or c.init.model),
        "init.head": c.model.head == "milco" and not c.init.model,
        "teacher.model": "views" in loss.targets or c.prepare.scores == "teacher",
        "regularizer.warmup_steps": c.regularizer.schedule != "constant",
        "regularizer.threshold": "threshold"
        in REGULARIZERS[c.regularizer.name].options,
    }
    values = dict(leaves(c))
    for field, needed in needs.items():
        if needed and not values[field]:
            raise InputError(
                f"{where}.{field} is {values[field]!r}, but this config needs it: see"
                " lsrjax/config/fields.py."
            )
    if c.model.head == "csr" and c.model.active_latents > c.model.latents:
        raise InputError(
            f"{where}.model.active_latents is {c.model.active_latents}, more than the"
            f" {c.model.latents} of model.latents."
        )
    pooling = POOLING.get(c.model.head, ())
    if pooling and c.model.pooling not in pooling:
        raise InputError(
            f"{where}.model.pooling is {c.model.pooling!r}; for the head {c.model.head}"
            f" it is {' or '.join(pooling)}."
        )
    if "m3" in loss.weights and c.model.head != "m3":
        raise InputError(
            f"{where}.loss.name is {c.loss.name!r}, but the head {c.model.head} has not"
            " the three views that it distils into each other. Use the head m3, or"
            " another loss."
        )
    if "reconstruction" in loss.weights and c.model.head != "csr":
        raise InputError(
            f"{where}.loss.name is {c.loss.name!r}, but the head {c.model.head} has no"
            " autoencoder to reconstruct with. Use csr, or another loss."
        )
    if "views" in loss.targets and c.model.head not in ("milco", "splade"):
        raise InputError(
            f"{where}.loss.name is {c.loss.name!r}, which compares weights of terms;"
            f" the head {c.model.head} has none before its activation. Use milco or"
            " splade."
        )
    if c.init.from_pivot == "translations" and "views" not in loss.targets:
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
    loss = objective.of(c.loss)
    if "scores" in loss.targets and c.data.group_size < 2:
        raise InputError(
            f"{where}.data.group_size is {c.data.group_size}; the loss {c.loss.name}"
            " compares a query's documents, so it needs at least 2."
        )
    contrasts = {"infonce", "m3"} & set(loss.weights)
    if contrasts and c.batch_size * c.data.group_size < 2:
        raise InputError(
            f"{where}.batch_size and data.group_size are 1, but the loss {c.loss.name}"
            " tells a query's document from others. Raise one of them."
        )
    mined, embedded = c.prepare.negatives == "bm25", "debian" in sources_of(c.data)
    chosen = c.data.group_size > 1 and choice_of(c.data).needs_scores
    scores = "scores" in loss.targets or chosen
    if scores and (mined or embedded) and c.prepare.scores == "given":
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
