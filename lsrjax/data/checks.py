"""Which fields of a stage's config about data make sense together, and why."""

from lsrjax.data.corpus import parse
from lsrjax.data.ensembles import NORMALIZATIONS, parse_weights
from lsrjax.data.examples import ANY, ENGLISH
from lsrjax.data.formats import FORMATS
from lsrjax.data.readers import score_columns
from lsrjax.errors import InputError

CHOICES = {
    "data.format": ("auto", *FORMATS),
    "data.score_normalization": tuple(NORMALIZATIONS),
    "dev.format": ("auto", *FORMATS),
}
_ROWS = ("files", "datasets", "tfds")  # the sources that are in some format


def needed(c) -> dict[str, bool]:
    """Fields that the data's format needs, and whether it does."""
    reads = c.data.source in _ROWS and c.data.format != "auto"
    needs = FORMATS[c.data.format].needs if reads else ()
    return {f"data.{field}": field in needs for field in ("corpus", "queries")}


def check(c, where: str) -> None:
    """Checks the fields of texts by id, and those that make one score of several.

    Raises:
      InputError: a teacher lacks a column or weight, or English texts are needed.
    """
    for field in ("corpus", "queries"):
        languages = {language for language, _ in parse(c.data[field])}
        prepared = "bm25" in c.prepare.negatives or "teacher" in c.prepare.scores
        if prepared and languages and not languages & {ANY, ENGLISH}:
            raise InputError(
                f"{where}.data.{field} is in {', '.join(sorted(languages))}, but what"
                " config.prepare does is done in English: add en:FILES."
            )
    columns = c.data.columns
    count = len(score_columns(columns.pos_scores))
    if len(score_columns(columns.neg_scores)) != count:
        raise InputError(
            f"{where}.data.columns: pos_scores names {columns.pos_scores!r}, neg_scores"
            f" {columns.neg_scores!r}; name one column of each teacher in both."
        )
    try:
        weights = parse_weights(c.data.score_weights)
    except ValueError:
        raise InputError(
            f"{where}.data.score_weights is {c.data.score_weights!r}; write numbers"
            " >= 0, one of them > 0, with commas between."
        ) from None
    if count > 1 and weights and len(weights) != count:
        raise InputError(
            f"{where}.data.score_weights has {len(weights)} weights for the {count}"
            " teachers of data.columns.pos_scores; give each one."
        )


def effects(c, *, scored: bool) -> list[tuple[bool, tuple[str, ...], str]]:
    """Rules of the data's fields.

    Args:
      c: a stage's config.
      scored: whether its loss reads the teacher's scores.

    Returns:
      (whether the fields take effect, the fields, why they do not).
    """
    data, dev = c.data, c.dev
    renaming = {"auto"} | {name for name, entry in FORMATS.items() if entry.renamed}
    texts = parse(f"{data.corpus},{data.queries}")
    return [
        (
            data.source in ("datasets", "tfds"),
            ("data.dataset",),
            "data.source is not datasets or tfds",
        ),
        (
            data.source != "files" or data.format == "beir",
            ("data.split",),
            "files have no splits; a BEIR folder has, with data.format = 'beir'",
        ),
        (
            data.source != "debian" or dev.source in _ROWS,
            ("data.columns",),
            "the embedded data has its own names",
        ),
        (
            renaming & {data.format, dev.format if dev.source in _ROWS else ""}
            != set(),
            ("data.columns",),
            f"the format {data.format} has its own names",
        ),
        (
            data.source in _ROWS,
            ("data.format", "data.corpus", "data.queries"),
            "the embedded data has its own format",
        ),
        (
            data.format in ("auto", *_reading("corpus")),
            ("data.corpus",),
            f"the format {data.format} holds texts, not ids",
        ),
        (
            data.format in ("auto", *_reading("queries")),
            ("data.queries",),
            f"rows of the format {data.format} hold the query's text",
        ),
        (
            "labelled" in (data.format, dev.format),
            ("data.min_label",),
            "data.format is not labelled",
        ),
        (
            scored and c.prepare.scores == "given" and data.source in _ROWS,
            ("data.score_weights", "data.score_normalization"),
            "no scores are read from the data",
        ),
        (
            len(score_columns(data.columns.pos_scores)) > 1,
            ("data.score_weights",),
            "data.columns.pos_scores names one teacher",
        ),
        (
            data.source == "debian" or any(language != ANY for language, _ in texts),
            ("data.mixing", "data.document_languages"),
            "only embedded documents and those of a corpus exist in several languages",
        ),
        (
            dev.source in ("datasets", "tfds"),
            ("dev.dataset",),
            "dev.source is not datasets or tfds",
        ),
        (
            dev.source != "files" or dev.format == "beir",
            ("dev.split",),
            "files have no splits; a BEIR folder has, with dev.format = 'beir'",
        ),
        (
            dev.source in _ROWS,
            ("dev.format",),
            "the embedded data has its own format",
        ),
    ]


def _reading(field: str) -> list[str]:
    return [name for name, entry in FORMATS.items() if field in entry.needs]
