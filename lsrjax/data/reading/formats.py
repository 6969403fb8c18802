"""The formats of training data, and how they are recognised.

To add one: write a function in `rows_to_examples` that reads its row, and add a line to
`FORMATS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsrjax.data.examples import Group, Pair
from lsrjax.data.reading import rows_to_examples
from lsrjax.data.reading.rows_to_examples import FIELDS, Lookup
from lsrjax.errors import InputError

_SHOWN = 300  # characters of a row in errors


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of data.

    Attributes:
      kind: of its examples: "pair" or "group".
      shape: its columns and their contents, for messages.
      fields: column names, and `config.data.columns`, to field -> column; None if the
        columns do not fit.
      read: a row of those fields, its name for errors, and a `Lookup`, to an example.
      needs: the fields of config.data that name files of texts by id.
      renamed: whether `config.data.columns` names its columns.
      judged: of rows of ids, the query and the grades of documents by id.
      ids: of rows with ids of queries, too: the query's, and those of its positives and
        of its other documents.
      lacks: of "scores", "negatives" and "positives" (more than one), those that no row
        has.
    """

    kind: str
    shape: str
    fields: Callable[[Sequence[str], Mapping[str, str]], dict[str, str] | None]
    read: Callable[[Mapping[str, Any], str, Lookup], Pair | Group]
    needs: tuple[str, ...] = ()
    renamed: bool = False
    judged: Callable[..., tuple] | None = None
    ids: Callable[..., tuple[str, list[str], list[str]]] | None = None
    lacks: tuple[str, ...] = ()


def recognise(
    names: Sequence[str],
    kind: str,
    columns: Mapping[str, str],
    chosen: str,
    where: str,
    first_row: Mapping[str, Any],
    field: str = "config.data",
) -> str:
    """The format of a file, by its columns.

    Args:
      kind: of the examples needed: "pair" or "group".
      columns: `config.data.columns`; renamed ones leave only the format they name.

    Raises:
      InputError: no format of the kind fits, or several do.
    """
    if chosen != "auto":
        if FORMATS[chosen].kind != kind:
            raise InputError(
                f"{field}.format is {chosen!r}, which holds"
                f" {_PLURALS[FORMATS[chosen].kind]}, but the loss reads"
                f" {_PLURALS[kind]}. Those are in {', '.join(_of_kind(kind))}."
            )
        if FORMATS[chosen].fields(names, columns) is None:
            raise _no_fit(names, kind, [chosen], columns, where, first_row)
        return chosen
    candidates = _of_kind(kind)
    if any(
        columns[field] != rows_to_examples.DEFAULTS[field] for field in FIELDS[kind]
    ):
        candidates = [name for name in candidates if FORMATS[name].renamed]
    fitting = [n for n in candidates if FORMATS[n].fields(names, columns) is not None]
    if not fitting:
        raise _no_fit(names, kind, candidates, columns, where, first_row)
    if len(fitting) > 1:
        raise InputError(
            f"{where} could be {' or '.join(fitting)}: its columns are"
            f" {', '.join(names)}. Say which it is in {field}.format."
        )
    return fitting[0]


_PLURALS = {"pair": "pairs of translations", "group": "queries with documents"}


def _of_kind(kind: str) -> list[str]:
    return [name for name, entry in FORMATS.items() if entry.kind == kind]


def _no_fit(names, kind, candidates, columns, where, first_row) -> InputError:
    named = [
        columns[f] for f in rows_to_examples.NEEDED[kind] if columns[f] not in names
    ]
    lacks, renamed = ":", any(FORMATS[name].renamed for name in candidates)
    if named and renamed:
        lacks = f" has no column {' or '.join(named)};"
    known = "\n".join(f"  {name}: {FORMATS[name].shape}" for name in candidates)
    todo = "Write the data as one of these"
    if renamed:
        todo += (
            ", or name the columns that hold"
            f" {' and '.join(rows_to_examples.NEEDED[kind])} in config.data.columns"
        )
    return InputError(
        f"{where}{lacks} its columns are {', '.join(names)}. It fits no known format of"
        f" {_PLURALS[kind]}. Its first row:\n  {str(dict(first_row))[:_SHOWN]}\n"
        f"Known formats:\n{known}\n{todo}."
    )


FORMATS = {
    "milco": Format(
        "group",
        "query, pos [texts]; maybe neg [texts], pos_scores [numbers], neg_scores"
        " [numbers] (MILCO, FlagEmbedding)",
        rows_to_examples.renamed_fields("group"),
        rows_to_examples.milco,
        renamed=True,
    ),
    "alignment": Format(
        "pair",
        "english, non_english; maybe language (MILCO, parallel sentences)",
        rows_to_examples.renamed_fields("pair"),
        rows_to_examples.alignment,
        renamed=True,
    ),
    "tevatron": Format(
        "group",
        "query, positive_passages [{title, text}]; maybe negative_passages (Tevatron)",
        rows_to_examples.named(
            {"query": ("query",), "positive_passages": ("positive_passages",)},
            ("negative_passages",),
        ),
        rows_to_examples.tevatron,
        lacks=("scores",),
    ),
    "tevatron_ids": Format(
        "group",
        "query or query_text, positive_document_ids; maybe negative_document_ids;"
        " config.data.corpus names the documents (Tevatron)",
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
    ),
    "colbert": Format(
        "group",
        "lines of [qid, [pid, score], …] or [qid, pid, …], the first pid positive;"
        " config.data.queries and config.data.corpus name the texts (ColBERT)",
        rows_to_examples.named(
            {"qid": ("qid",), "pids": ("pids",), "scores": ("scores",)}
        ),
        rows_to_examples.colbert,
        needs=("queries", "corpus"),
        judged=rows_to_examples.judged_colbert,
        ids=rows_to_examples.ids_colbert,
        lacks=("positives",),
    ),
    "triplet": Format(
        "group",
        "anchor (or query, question), positive (or answer, passage1); maybe negative"
        " (or passage2), negative_1, …, and then maybe label or score: the teacher's"
        " score of each, or the positive's less each negative's"
        " (sentence-transformers)",
        rows_to_examples.triplet_fields,
        rows_to_examples.triplet,
        lacks=("positives",),
    ),
    "labelled": Format(
        "group",
        "sentence1, sentence2 (or anchor, positive), label or score: rows of"
        " config.data.min_label and more (sentence-transformers)",
        rows_to_examples.labelled_pair_fields,
        rows_to_examples.labelled,
        lacks=("scores", "negatives", "positives"),
    ),
    "beir": Format(
        "group",
        "a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, SPLIT being"
        " config.data.split (BEIR)",
        rows_to_examples.named(
            {name: (name,) for name in ("qid", "documents", "grades")}
        ),
        rows_to_examples.beir,
        judged=rows_to_examples.judged_beir,
        ids=rows_to_examples.ids_beir,
        lacks=("scores",),
    ),
}
