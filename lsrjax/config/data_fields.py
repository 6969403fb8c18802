"""Checks of combinations of fields about data."""

from lsrjax.data.examples import ANY, ENGLISH
from lsrjax.data.reading.corpus import parse
from lsrjax.data.reading.formats import FORMATS
from lsrjax.data.reading.rows_to_examples import score_columns
from lsrjax.data.reading.teacher_ensembles import parse_weights
from lsrjax.errors import InputError

ROWS = ("files", "datasets", "tfds")  # sources whose rows have a format


def check(data, prepare, where: str) -> None:
    """Checks the fields about texts by id, and about scores of several teachers.

    Args:
      data: a stage's `data`, or one of its sets.
      prepare: the stage's `prepare`.
      where: the name of `data`, for errors.

    Raises:
      InputError: a teacher lacks a column or weight, ids lack their texts, or English
        texts are needed.
    """
    reads = data.source in ROWS and data.format != "auto"
    for field in FORMATS[data.format].needs if reads else ():
        if not data[field]:
            raise InputError(
                f"{where}.{field} is '', but the format {data.format} needs it: see"
                " lsrjax/config/schema.py."
            )
    for field in ("corpus", "queries"):
        languages = {language for language, _ in parse(data[field])}
        prepared = prepare.negatives != "given" or "teacher" in prepare.scores
        if prepared and languages and not languages & {ANY, ENGLISH}:
            raise InputError(
                f"{where}.{field} is in {', '.join(sorted(languages))}, but what"
                " config.prepare does is done in English: add en:FILES."
            )
    columns = data.columns
    count = len(score_columns(columns.pos_scores))
    if len(score_columns(columns.neg_scores)) != count:
        raise InputError(
            f"{where}.columns: pos_scores names {columns.pos_scores!r}, neg_scores"
            f" {columns.neg_scores!r}; name one column of each teacher in both."
        )
    try:
        weights = parse_weights(data.score_weights)
    except ValueError:
        raise InputError(
            f"{where}.score_weights is {data.score_weights!r}; write numbers"
            " >= 0, one of them > 0, with commas between."
        ) from None
    if count > 1 and weights and len(weights) != count:
        raise InputError(
            f"{where}.score_weights has {len(weights)} weights for the {count}"
            " teachers of data.columns.pos_scores; give each one."
        )


def effects(
    data, *, scored: bool, mined: bool
) -> list[tuple[bool, tuple[str, ...], str]]:
    """Rules about which fields of texts by id, and of scores, have an effect.

    Args:
      data: a stage's `data`, or one of its sets.
      scored: whether the teacher's scores are read from it.
      mined: whether negatives are mined from its corpus.

    Returns:
      (whether the fields have an effect, the fields, why they have none).
    """
    return [
        (
            data.source in ROWS,
            ("format", "corpus", "queries"),
            "the embedded data has its own format",
        ),
        (
            mined or data.format in ("auto", *_reading("corpus")),
            ("corpus",),
            f"the format {data.format} holds texts, not ids, and no negatives are"
            " mined",
        ),
        (
            data.format in ("auto", *_reading("queries")),
            ("queries",),
            f"rows of the format {data.format} hold the query's text",
        ),
        (
            scored and data.source in ROWS,
            ("score_weights", "score_normalization"),
            "no scores are read from the data",
        ),
        (
            scored,
            ("columns.pos_scores", "columns.neg_scores"),
            "no scores are read from the data",
        ),
        (
            len(score_columns(data.columns.pos_scores)) > 1,
            ("score_weights",),
            "columns.pos_scores names one teacher",
        ),
    ]


def has_languages(data, field: str = "corpus") -> bool:
    """Whether the texts of `data`, or of one of its sets, are in several languages.

    `field` is "corpus", for documents, or "queries".
    """
    if data.source == "debian":
        return True
    return any(language != ANY for language, _ in parse(data[field]))


def check_languages(named, several, field: str, where: str) -> None:
    """Refuses languages without texts by id.

    Args:
      named: languages that a field gives weights to.
      several: a stage's `data`, or all of its sets.
      field: of their texts, "corpus" or "queries".
      where: the field that gives weights, for errors.
    """
    known = {language for data in several for language, _ in parse(data[field])}
    embedded = any(data.source == "debian" for data in several)
    if not known or ANY in known or embedded:
        return
    if unknown := set(named) - known - {ANY}:
        raise InputError(
            f"{where} names {', '.join(sorted(unknown))}, but data.{field} has texts in"
            f" {', '.join(sorted(known))}. Name only these, or add files."
        )


def renames(data) -> bool:
    """Whether the columns of `data` or `dev` may be renamed in its format."""
    own = data.source in ROWS
    return own and (data.format == "auto" or FORMATS[data.format].renamed)


def _reading(field: str) -> list[str]:
    return [name for name, entry in FORMATS.items() if field in entry.needs]
