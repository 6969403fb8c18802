"""Checks of `data` and `data.sets`: values that make no sense, and why."""

from lsrjax.config import data_fields
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.debian_texts.embedded import SPLITS
from lsrjax.data.reading.formats import FORMATS
from lsrjax.data.reading.rows_to_examples import FIELDS
from lsrjax.errors import InputError
from lsrjax.losses import objective

# Fields that choose a query's documents, and the languages they are shown in.
CHOICE = (
    "data.mixing",
    "data.positives",
    "data.negatives",
    "data.negative_rank_scale",
    "data.margin_bins",
    "data.negative_max_score",
    "data.negative_margin",
    "data.short_rows",
)
_PAIR_COLUMNS = tuple(f"columns.{f}" for f in FIELDS["pair"])
_GROUP_COLUMNS = tuple(f"columns.{f}" for f in FIELDS["group"])


def check_split(data, where: str) -> None:
    """Refuses a split that the embedded data does not have."""
    if data.source == "debian" and data.split not in SPLITS:
        raise InputError(
            f"{where}.split is {data.split!r}; the embedded data has"
            f" {', '.join(SPLITS)}."
        )


def check_set(own, where: str) -> None:
    """Checks the values of one of `data.sets`; `where` is its name, for errors."""
    check_split(own, where)
    for field, kinds in (("files", ("files",)), ("dataset", ("datasets", "tfds"))):
        if own.source in kinds and not own[field]:
            raise InputError(
                f"{where}.{field} is {own[field]!r}, but this set needs it: see"
                " lsrjax/config/schema.py."
            )


def check_choice(c, where: str) -> None:
    """Checks that a query's documents and languages suit a stage's loss and data."""
    data = c.data
    loss = objective.of(c.loss)
    scores = "scores" in loss.targets
    if 1 < data.group_size <= data.positives:
        raise InputError(
            f"{where}.data.positives is {data.positives}, but data.group_size is"
            f" {data.group_size}: a group needs a negative, too. Raise group_size."
        )
    if data.positives > 1 and not scores:
        raise InputError(
            f"{where}.data.positives is {data.positives}, but the loss {loss.name}"
            " takes the first document for the only positive. Set it to 1."
        )
    prepared = mines(c) or c.prepare.scores == "teacher"
    if data.positives > 1 and prepared:
        raise InputError(
            f"{where}.data.positives is {data.positives}, but what config.prepare makes"
            " has one positive for each query. Set it to 1."
        )
    if data.negatives in ("top", "rank") and mines(c):
        raise InputError(
            f"{where}.data.negatives is {data.negatives!r}, but mined negatives come in"
            " random order. Use 'random', and lower prepare.depth for harder ones."
        )
    if "languages" in loss.targets:
        _check_languages_compared(data, loss, where)
    if data.mixing == "round_robin" and not scores:
        raise InputError(
            f"{where}.data.mixing is 'round_robin', which repeats a query and its"
            f" teacher scores in every language, but the loss {loss.name} reads no"
            " scores. Use 'passages' or 'entries'."
        )


def _check_languages_compared(data, loss: objective.Objective, where: str) -> None:
    shown = f"{where}.loss has language_kl"
    if "scores" not in loss.targets:
        raise InputError(
            f"{shown}: language_kl alone is met by equal scores of all documents. Add"
            " it to a loss that reads the teacher's scores, as in {'kl': {},"
            " 'language_kl': {'weight': 0.5}}."
        )
    if data.mixing != "round_robin":
        raise InputError(
            f"{shown}, which compares a query's scores in several languages, but"
            f" {where}.data.mixing = {data.mixing!r} shows it in one. Set it to"
            " 'round_robin', or leave language_kl out."
        )


def check_formats(c, where: str) -> None:
    """Refuses formats that lack what a stage reads of a query's documents.

    If the columns determine the format, the first rows show what is missing.
    """
    loss = objective.of(c.loss)
    ranks = "document" in loss.texts
    several = [(f"{where}.data.sets.{name}", own) for name, own in c.data.sets.items()]
    for at, data in several or [(f"{where}.data", c.data)]:
        if data.source not in data_fields.ROWS or data.format == "auto":
            continue
        entry = FORMATS[data.format]
        if (entry.kind == "group") != ranks:
            kind = "queries with documents" if ranks else "pairs of translations"
            known = [n for n, f in FORMATS.items() if (f.kind == "group") == ranks]
            raise InputError(
                f"{at}.format is {data.format!r}, but the loss {loss.name} reads"
                f" {kind}: {' or '.join(known)}."
            )
        given = not mines(c)
        for what, asked, todo in (
            (
                "negatives",
                ranks and c.data.group_size > 1 and given,
                "Set config.prepare.negatives to 'bm25', or data.group_size to 1.",
            ),
            (
                "scores",
                ranks and reads_scores(c),
                "Set config.prepare.scores to 'teacher', or use a loss and negatives"
                " without scores.",
            ),
            ("positives", c.data.positives > 1, "Set data.positives to 1."),
        ):
            if asked and what in entry.lacks:
                more = "more than one positive" if what == "positives" else what
                raise InputError(
                    f"{at}.format is {data.format!r}, whose rows have not {more}."
                    f" {todo}"
                )


def source_effects(
    data, ranks: bool, loss: str, scored: bool, mined: bool
) -> list[tuple[bool, tuple, str]]:
    """Rules about which fields of `data` or of one of its sets have an effect.

    Args:
      data: the stage's `data`, or one of its sets.
      ranks: the loss reads queries and documents, not pairs.
      loss: its name.
      scored: the teacher's scores are read from the data.
      mined: negatives are mined from its corpus.

    Returns:
      (whether the fields have an effect, the fields, why they have none) for each rule.
    """
    return [
        (data.source == "files", ("files",), "data.source is not files"),
        (
            data.source in ("datasets", "tfds"),
            ("dataset",),
            "data.source is not datasets or tfds",
        ),
        (
            data.source != "files" or data.format == "beir",
            ("split",),
            "files have no splits; a BEIR folder has, with data.format = 'beir'",
        ),
        *data_fields.effects(data, scored=scored, mined=mined),
        (ranks, _GROUP_COLUMNS, f"the loss {loss} reads pairs"),
        (not ranks, _PAIR_COLUMNS, f"the loss {loss} reads queries"),
        (
            data.source == "debian" and not ranks,
            ("fields",),
            "only embedded pairs have fields to choose",
        ),
    ]


def reads_scores(c) -> bool:
    """Whether a stage reads a teacher's scores from its data."""
    asked = "scores" in objective.of(c.loss).targets or (
        c.data.group_size > 1 and choice_of(c.data).needs_scores
    )
    return asked and c.prepare.scores == "given"


def mines(c) -> bool:
    """Whether a stage mines negatives."""
    return c.prepare.negatives != "given"


def set_effects(own, c) -> list[tuple[bool, tuple, str]]:
    """As `source_effects`, for one of the sets of a stage's config `c`."""
    loss = objective.of(c.loss)
    ranks = "document" in loss.texts
    return [
        *source_effects(own, ranks, loss.name, reads_scores(c), mines(c)),
        (
            own.format == "labelled",
            ("min_label",),
            "the set's format is not labelled",
        ),
        (own.source != "debian", ("columns",), "the embedded data has its own names"),
        (c.data.mixer == "weights", ("weight",), "data.mixer is not weights"),
    ]
