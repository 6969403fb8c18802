"""The formats of training data, and how they are recognised.

To add one: write a function in `rows_to_examples` that reads its row, and add a line to
`FORMATS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsrjax.data.examples import Group, Pair
from lsrjax.data.reading import format_options, rows_to_examples
from lsrjax.data.reading.rows_to_examples import Lookup
from lsrjax.errors import InputError
from lsrjax.options import Chosen, Options, resolve

AUTO = "auto"
_SHOWN = 300  # characters of a row in errors
_NORMALIZATION = "score_normalization"


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of data.

    Attributes:
      kind: of its examples: "pair" or "group".
      shape: its columns and their contents, for messages.
      fields: column names, and the options, to field -> column; None if the columns
        do not fit.
      read: a row of those fields, its name for errors, and a `Lookup`, to an example.
      Options: a dataclass of its options.
      needs: of "corpus" and "queries", the texts by id that its rows refer to.
      columns: options that name the columns that it needs.
      score_options: options about the teacher's scores.
      lists: lines of JSONL may be lists of ids.
      kept: `(a column's values by field, options, name for errors)` to the positions of
        the rows that are read (None: all), and a remark about them; None: all rows.
      judged: of rows of ids, the query and the grades of documents by id.
      ids: of rows with ids of queries, too: the query's, and those of its positives and
        of its other documents.
      lacks: of "scores", "negatives" and "positives" (more than one), those that no row
        has; scores are there if the option `grades` is on.
      in_language: texts of a row are in the language that it names (`in_language` of
        `rows_to_examples`).
    """

    kind: str
    shape: str
    fields: Callable[[Sequence[str], Any], dict[str, str] | None]
    read: Callable[[Mapping[str, Any], str, Lookup], Pair | Group]
    Options: type[Options] = Options
    needs: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    score_options: tuple[str, ...] = ()
    lists: bool = False
    kept: Callable[..., tuple] | None = None
    judged: Callable[..., tuple] | None = None
    ids: Callable[..., tuple[str, list[str], list[str]]] | None = None
    lacks: tuple[str, ...] = ()
    in_language: bool = False

    def lacking(self, options: Any) -> set[str]:
        """What no row has with these options, see `lacks`."""
        graded = getattr(options, "grades", False)
        none = getattr(options, "negatives", "") == "none"
        lacks = set(self.lacks) - ({"scores"} if graded else set())
        return lacks | ({"negatives"} if none else set())


def chosen(node: Any, where: str = "config.data") -> Chosen:
    """The format that `data.format` or `dev.format` names, with its options."""
    return resolve(FORMATS, node, f"{where}.format")


def recognise(
    names: Sequence[str],
    kind: str,
    asked: Chosen,
    where: str,
    first_row: Mapping[str, Any],
    field: str = "config.data",
) -> Chosen:
    """The format of a file, by its columns if none is asked for.

    Args:
      kind: of the examples needed: "pair" or "group".
      where: the file's name, for errors.

    Raises:
      InputError: no format of the kind fits, or several do.
    """
    if asked.name != AUTO:
        if asked.entry.kind != kind:
            raise InputError(
                f"{field}.format is {asked.name!r}, which holds"
                f" {PLURALS[asked.entry.kind]}, but the loss reads"
                f" {PLURALS[kind]}. Those are in {', '.join(of_kind(kind))}."
            )
        if asked.entry.fields(names, asked.options) is None:
            raise _no_fit(names, kind, [asked], field, where, first_row)
        return asked
    candidates = [chosen(name, field) for name in of_kind(kind)]
    fitting = [
        one for one in candidates if one.entry.fields(names, one.options) is not None
    ]
    if not fitting:
        raise _no_fit(names, kind, candidates, field, where, first_row)
    if len(fitting) > 1:
        raise InputError(
            f"{where} could be {' or '.join(one.name for one in fitting)}: its columns"
            f" are {', '.join(names)}. Say which it is in {field}.format."
        )
    return fitting[0]


PLURALS = {"pair": "pairs of translations", "group": "queries with documents"}


def of_kind(kind: str) -> list[str]:
    """The formats of a kind of example."""
    return [name for name, entry in FORMATS.items() if entry.kind == kind]


def _no_fit(names, kind, candidates, field, where, first_row) -> InputError:
    known = "\n".join(f"  {one.name}: {one.entry.shape}" for one in candidates)
    lacks, todo = ":", "Write the data as one of these"
    for one in candidates:
        if columns := one.entry.columns:
            named = [getattr(one.options, option) for option in columns]
            lacking = [column for column in named if column not in names]
            lacks = f" has no column {' or '.join(lacking)};" if lacking else lacks
            said = ", ".join(f"{option}=…" for option in columns)
            todo += (
                f", or name the columns that hold {' and '.join(columns)}:"
                f' {field}.format = entry("{one.name}", {said})'
            )
    return InputError(
        f"{where}{lacks} its columns are {', '.join(names)}. It fits no known format of"
        f" {PLURALS[kind]}. Its first row:\n  {str(dict(first_row))[:_SHOWN]}\n"
        f"Known formats:\n{known}\n{todo}."
    )


def _of_no_column(*_: Any) -> Any:
    """`auto` fits no columns itself."""
    return None


FORMATS: dict[str, Format] = {
    AUTO: Format("", "recognised by the columns", _of_no_column, _of_no_column),
    "milco": Format(
        "group",
        "query, pos [texts]; maybe neg [texts], pos_scores [numbers], neg_scores"
        " [numbers], language (MILCO, FlagEmbedding)",
        rows_to_examples.milco_fields,
        rows_to_examples.milco,
        format_options.MilcoOptions,
        columns=("query", "pos"),
        score_options=("pos_scores", "neg_scores", "score_weights", _NORMALIZATION),
        in_language=True,
    ),
    "alignment": Format(
        "pair",
        "english, non_english; maybe language (MILCO, parallel sentences)",
        rows_to_examples.alignment_fields,
        rows_to_examples.alignment,
        format_options.AlignmentOptions,
        columns=("english", "translation"),
    ),
    "tevatron": Format(
        "group",
        "query, positive_passages [{title, text}]; maybe negative_passages, language"
        " (Tevatron)",
        rows_to_examples.named(
            {"query": ("query",), "positive_passages": ("positive_passages",)},
            ("negative_passages",),
        ),
        rows_to_examples.tevatron,
        lacks=("scores",),
        in_language=True,
    ),
    "tevatron_ids": Format(
        "group",
        "query or query_text, positive_document_ids; maybe negative_document_ids,"
        " language of the query; config.data.corpus names the documents (Tevatron)",
        rows_to_examples.named(
            {
                "query": ("query_text", "query"),
                "positive_document_ids": ("positive_document_ids",),
            },
            ("negative_document_ids",),
        ),
        rows_to_examples.tevatron_ids,
        needs=("corpus",),
        judged=rows_to_examples.judged_tevatron,
        lacks=("scores",),
        in_language=True,
    ),
    "colbert": Format(
        "group",
        "lines of [qid, [pid, score], …] or [qid, pid, …], the first pid positive; its"
        " option queries and config.data.corpus name the texts (ColBERT)",
        rows_to_examples.named(
            {"qid": ("qid",), "pids": ("pids",), "scores": ("scores",)}
        ),
        rows_to_examples.colbert,
        format_options.ColbertOptions,
        needs=("corpus", "queries"),
        score_options=(_NORMALIZATION,),
        lists=True,
        judged=rows_to_examples.judged_colbert,
        ids=rows_to_examples.ids_colbert,
        lacks=("positives",),
    ),
    "triplet": Format(
        "group",
        "anchor (or query, question), positive (or answer, passage1); maybe negative"
        " (or passage2), negative_1, …, and then maybe label or score: the teacher's"
        " score of each, or the positive's less each negative's; maybe language"
        " (sentence-transformers)",
        rows_to_examples.triplet_fields,
        rows_to_examples.triplet,
        format_options.TripletOptions,
        score_options=(_NORMALIZATION,),
        kept=rows_to_examples.triplet_rows,
        lacks=("positives",),
        in_language=True,
    ),
    "labelled": Format(
        "group",
        "sentence1, sentence2 (or anchor, positive), label or score: rows of its option"
        " min_label and more; maybe language (sentence-transformers)",
        rows_to_examples.labelled_pair_fields,
        rows_to_examples.labelled,
        format_options.LabelledOptions,
        score_options=("grades",),
        kept=rows_to_examples.labelled_rows,
        lacks=("scores", "negatives", "positives"),
        in_language=True,
    ),
    "beir": Format(
        "group",
        "a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv (BEIR)",
        rows_to_examples.named(
            {name: (name,) for name in ("qid", "documents", "grades")}
        ),
        rows_to_examples.beir,
        format_options.BeirOptions,
        score_options=("grades",),
        judged=rows_to_examples.judged_beir,
        ids=rows_to_examples.ids_beir,
        lacks=("scores",),
    ),
}
