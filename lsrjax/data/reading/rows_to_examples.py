"""How a row of each format becomes an example, and which columns it needs.

Functions whose names end in `fields` find the columns: they map the names of a file's
columns and the format's options to field -> column, or to None if the columns do not
fit. The others read a row of those fields.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.examples import ANY, Group, Pair, Text
from lsrjax.data.reading.bad_records import EMPTY, POSITIVE, SCORE, TYPE, BadRecord
from lsrjax.data.reading.corpus import Corpus
from lsrjax.data.reading.format_options import (
    AlignmentOptions,
    LabelledOptions,
    MilcoOptions,
    TripletOptions,
    several,
)
from lsrjax.data.reading.ids import as_id, check_characters
from lsrjax.data.reading.texts import with_title
from lsrjax.errors import InputError
from lsrjax.options import Options


@dataclasses.dataclass(frozen=True)
class Lookup:
    """What is needed to read a row, apart from the row.

    Attributes:
      corpus: documents by id, if there are any.
      queries: queries by id, if there are any.
      options: of the format.
    """

    corpus: Corpus | None = None
    queries: Corpus | None = None
    options: Any = Options()


# Fields of rows.

_LARGEST = float(np.finfo(np.float32).max)


def wording(value: Any, where: str, field: str) -> str:
    """A non-empty text, or an error."""
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(
            EMPTY if value is None or isinstance(value, str) else TYPE,
            f"{where}: field {field!r} is {value!r:.80}; a non-empty text is needed."
            " Remove the row or fill it in.",
        )
    check_characters(value, f"{where}: field {field!r}")
    return value


def _texts(values: Any, where: str, field: str) -> list[Text]:
    return [{ANY: wording(v, where, field)} for v in _as_list(values, where, field)]


def _as_list(value: Any, where: str, field: str) -> list:
    """A list; one text counts as a list of one, as in triples, null as an empty one."""
    if value is None:
        return []
    if not isinstance(value, str | list):
        raise BadRecord(
            TYPE,
            f"{where}: field {field!r} is {value!r:.80}; a list of texts is needed. Put"
            " the row right or remove it.",
        )
    return [value] if isinstance(value, str) else value


def _label(value: Any, where: str, field: str) -> str:
    if value is not None and not isinstance(value, str):
        raise BadRecord(
            TYPE, f"{where}: field {field!r} is {value!r:.80}; a text is needed."
        )
    return value or ""


# The first of these columns that a file has, if none is named.
LANGUAGES = ("language", "lang")


def language_field(names: Sequence[str], options: Any, where: str) -> dict[str, str]:
    """The field language and its column, if the file has one.

    Raises:
      InputError: it lacks the column that the options name.
    """
    asked = getattr(options, "language", "")
    if asked and asked not in names:
        raise InputError(
            f"{where} has no column {asked}, which the format's option language names;"
            f" its columns are {', '.join(names)}."
        )
    column = next((name for name in (asked, *LANGUAGES) if name in names), None)
    return {} if column is None else {"language": column}


def in_language(text: Text, language: str) -> Text:
    """A row's text of unstated language in the row's own."""
    return {language: text[ANY]} if ANY in text else text


def group_in_language(row, group: Group, by_id: bool) -> Group:
    """A group whose texts are in the language that its row names, if it names one.

    Args:
      by_id: its documents are another file's, and in the languages which that states.
    """
    language = language_of(row, group.id)
    if language == ANY:
        return group
    asked = dataclasses.replace(group, query=in_language(group.query, language))
    if by_id:
        return asked
    return dataclasses.replace(
        asked,
        positives=[in_language(text, language) for text in group.positives],
        negatives=[in_language(text, language) for text in group.negatives],
    )


def language_of(row, where: str) -> str:
    """The language that a row names; `*` if it names none."""
    return _label(row.get("language"), where, "language").strip() or ANY


def _group(where: str, query: Text, positives, negatives, scores=None) -> Group:
    if not positives:
        raise BadRecord(POSITIVE, f"{where}: no positive document. Remove the row.")
    return Group(where, query, positives, negatives, scores)


def _numbers(values: Sequence, where: str) -> list[float]:
    for place, score in enumerate(values):
        number = isinstance(score, float | int) and not isinstance(score, bool)
        # Within float32; false for NaN.
        if not number or not abs(score) <= _LARGEST:
            raise BadRecord(
                SCORE,
                f"{where}: teacher score {place} (positives first) is {score!r:.80}; a"
                " finite number is needed. Score the row again or remove it.",
            )
    return list(values)


def named(needs: Mapping[str, Sequence[str]], optional=()):
    """Field -> column, if each needed field has one of its names, the first that fits.

    A file may lack `optional` fields, which have their own names.
    """

    def fields(names, options):
        found = {}
        for field, known in needs.items():
            column = next((name for name in known if name in names), None)
            if column is None:
                return None
            found[field] = column
        return found | {field: field for field in optional if field in names}

    return fields


# MILCO and FlagEmbedding.


def alignment_fields(names, options: AlignmentOptions):
    """The columns that the options name; that of languages may be missing, or lang."""
    found = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
    }
    if found["english"] not in names or found["translation"] not in names:
        return None
    found["language"] = next(
        (name for name in (options.language, *LANGUAGES) if name in names), ""
    )
    return {field: column for field, column in found.items() if column in names}


def milco_fields(names, options: MilcoOptions):
    """The columns that the options name, of each of several teachers."""
    if options.query not in names or options.pos not in names:
        return None
    found = {"query": options.query, "pos": options.pos}
    found |= {"neg": options.neg} if options.neg in names else {}
    for field in ("pos_scores", "neg_scores"):
        columns = several(getattr(options, field))
        if len(columns) > 1 and (lacking := set(columns) - set(names)):
            raise InputError(
                f"{field} of the format milco names {', '.join(sorted(lacking))}, but"
                f" the columns of the data are {', '.join(names)}."
            )
        found |= {_part(field, i): c for i, c in enumerate(columns) if c in names}
    return found


def _part(field: str, teacher: int) -> str:
    return f"{field}.{teacher}" if teacher else field


def milco(row, where, lookup) -> Group:
    """Lists of texts, and of teachers' scores."""
    positives = _texts(row["pos"], where, "pos")
    negatives = _texts(row.get("neg"), where, "neg")
    query = {ANY: wording(row["query"], where, "query")}
    if not positives:
        return _group(where, query, positives, negatives)  # raises
    sizes = {"pos_scores": len(positives), "neg_scores": len(negatives)}
    teachers = 1 + max((int(f.split(".")[1]) for f in row if "." in f), default=0)
    scores = [_teacher(row, i, sizes, where) for i in range(teachers)]
    missing = [i for i, values in enumerate(scores) if values is None]
    if missing and len(missing) < teachers:
        raise BadRecord(
            SCORE,
            f"{where}: {len(missing)} of {teachers} teachers have no scores. Score the"
            " row with all of them, or remove it.",
        )
    combined = None if missing else lookup.options.combine(scores)
    return _group(where, query, positives, negatives, combined)


def _scores(value: Any, where: str, field: str) -> list:
    """A list; one score counts as a list of one, null as an empty one."""
    if value is None:
        return []
    if not isinstance(value, float | int | list):
        raise BadRecord(
            SCORE,
            f"{where}: field {field!r} is {value!r:.80}; a list of numbers is needed."
            " Score the row again or remove it.",
        )
    return value if isinstance(value, list) else [value]


def _teacher(row, teacher: int, sizes: Mapping[str, int], where: str):
    names = [_part(field, teacher) for field in sizes]
    if all(row.get(name) is None for name in names):
        return None
    parts = []
    for name, count in zip(names, sizes.values(), strict=True):
        values = row.get(name)
        values = _scores(values, where, name)
        if len(values) != count:
            raise BadRecord(
                SCORE,
                f"{where}: {name} has {len(values)} teacher scores for {count}"
                " documents; each document needs one. Score the row again or remove"
                " it.",
            )
        parts.extend(values)
    return _numbers(parts, where)


def alignment(row, where, lookup) -> Pair:
    """English and its translation."""
    return Pair(
        id=where,
        english=wording(row["english"], where, "english"),
        translation=wording(row["translation"], where, "translation"),
        language=language_of(row, where),
    )


# Tevatron, BEIR, ColBERT.


def _passages(row, field: str, where: str) -> list[Text]:
    passages = row.get(field) or []
    if isinstance(passages, dict) and _of_equal_lists(passages.values()):
        # TFDS gives a list of objects as an object of lists.
        passages = [
            dict(zip(passages, values, strict=True))
            for values in zip(*passages.values(), strict=True)
        ]
    texts: list[Text] = []
    for passage in passages if isinstance(passages, list) else [passages]:
        if not isinstance(passage, dict):
            raise BadRecord(
                TYPE,
                f"{where}: {field} holds {passage!r:.80}; objects with text and maybe"
                " title are needed. Passages given by id go into"
                " positive_document_ids and negative_document_ids.",
            )
        text = wording(passage.get("text"), where, f"{field}.text")
        title = _label(passage.get("title"), where, f"{field}.title")
        check_characters(title, f"{where}: field {field + '.title'!r}")
        texts.append({ANY: with_title(title, text)})
    return texts


def _of_equal_lists(values) -> bool:
    values = list(values)
    return all(isinstance(v, list) for v in values) and len(set(map(len, values))) == 1


def tevatron(row, where, lookup) -> Group:
    """Lists of objects with title and text."""
    return _group(
        where,
        {ANY: wording(row["query"], where, "query")},
        _passages(row, "positive_passages", where),
        _passages(row, "negative_passages", where),
    )


def _looked_up(ids, where: str, corpus: Corpus) -> list[Text]:
    return [corpus.get(key, where) for key in _as_ids(ids, where)]


def _as_ids(ids, where: str) -> list[str]:
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return [as_id(key, where) for key in ids]


def tevatron_ids(row, where, lookup) -> Group:
    """The query's text, and ids of documents."""
    return _group(
        where,
        {ANY: wording(row["query"], where, "query")},
        _looked_up(row["positive_document_ids"], where, lookup.corpus),
        _looked_up(row.get("negative_document_ids"), where, lookup.corpus),
    )


def beir(row, where, lookup) -> Group:
    """Ids of the query and of judged documents, and their grades.

    Positives are documents with a grade above 0, or, if grades are the scores, those
    with the highest one.
    """
    judged = list(zip(row["documents"], row["grades"], strict=True))
    graded = lookup.options.grades
    best = max(row["grades"]) if graded else 0
    positives = [pair for pair in judged if 0 < pair[1] >= best]
    others = [pair for pair in judged if not 0 < pair[1] >= best]
    scores = [grade for _, grade in positives + others]
    return _group(
        where,
        lookup.queries.get(as_id(row["qid"], where), where),
        _looked_up([key for key, _ in positives], where, lookup.corpus),
        _looked_up([key for key, _ in others], where, lookup.corpus),
        np.array(_numbers(scores, where), np.float32) if graded else None,
    )


# Rows as judgements, for evaluation: the query, and the grades of documents by id.


def judged_beir(row, where, lookup) -> tuple[Text, dict[str, float]]:
    """All grades of a query."""
    grades = dict(zip(row["documents"], row["grades"], strict=True))
    return lookup.queries.get(as_id(row["qid"], where), where), grades


def judged_tevatron(row, where, lookup) -> tuple[Text, dict[str, float]]:
    """Positive documents have the grade 1."""
    keys = _as_ids(row["positive_document_ids"], where)
    if not keys:
        raise BadRecord(POSITIVE, f"{where}: no positive document. Remove the row.")
    return {ANY: wording(row["query"], where, "query")}, dict.fromkeys(keys, 1.0)


def judged_colbert(row, where, lookup) -> tuple[Text, dict[str, float]]:
    """The first document has the grade 1."""
    query = lookup.queries.get(as_id(row["qid"], where), where)
    return query, {as_id(row["pids"][0], where): 1.0}


# Rows as ids: of the query, of its positives, and of its other documents.


def ids_beir(row, where) -> tuple[str, list[str], list[str]]:
    """Documents with a grade above 0 are positives."""
    judged = list(zip(row["documents"], row["grades"], strict=True))
    return (
        as_id(row["qid"], where),
        [key for key, grade in judged if grade > 0],
        [key for key, grade in judged if grade <= 0],
    )


def ids_colbert(row, where) -> tuple[str, list[str], list[str]]:
    """The first document is the positive."""
    first, *others = _as_ids(row["pids"], where)
    return as_id(row["qid"], where), [first], others


def colbert(row, where, lookup) -> Group:
    """Ids of the query and of documents, the first of which is positive."""
    documents = _looked_up(row["pids"], where, lookup.corpus)
    scores = row["scores"]
    if scores is not None:
        values = _numbers(_scores(scores, where, "scores"), where)
        if len(values) != len(documents):
            raise BadRecord(
                SCORE,
                f"{where}: {len(values)} teacher scores for {len(documents)} documents;"
                " each needs one. Score the row again or remove it.",
            )
        scores = lookup.options.combine([values])
    query = lookup.queries.get(as_id(row["qid"], where), where)
    return _group(where, query, documents[:1], documents[1:], scores)


# sentence-transformers.

_ANCHOR = ("anchor", "query", "question")
_POSITIVE = ("positive", "passage1", "answer")
_LABEL = ("label", "score", "scores", "labels")


def triplet_fields(names, options: TripletOptions):
    """Anchor, positive, and negatives with or without scores."""
    found = named({"anchor": _ANCHOR, "positive": _POSITIVE})(names, options)
    if found is None:
        return None
    negatives = [n for n in names if re.fullmatch(r"negative(_\d+)?|passage2", n)]
    negatives.sort(key=lambda name: int("0" + re.sub(r"\D", "", name)))
    label = next((name for name in _LABEL if name in names), None)
    if options.negatives != "any" and not negatives:
        raise InputError(
            f"the format triplet's option negatives is {options.negatives!r}, but the"
            f" data has no column of negatives: {', '.join(names)}. Leave it at 'any'."
        )
    if label and not negatives:
        return None  # a labelled pair
    found |= {f"negative.{i}": name for i, name in enumerate(negatives)}
    return found | ({"label": label} if label else {})


def triplet(row, where, lookup) -> Group:
    """Anchor, positive and negatives; their scores, or differences of scores.

    MarginMSE's differences (the positive's score minus the negative's) become the
    scores 0 and minus the difference: the losses depend on differences only.
    """
    names = [field for field in row if field.startswith("negative.")]
    negatives = [text for name in names for text in _texts(row[name], where, name)]
    scores = None
    if row.get("label") is not None:
        label = row["label"] if isinstance(row["label"], list) else [row["label"]]
        values = _numbers(label, where)
        if len(values) == len(negatives):
            # Differences to the positive's score, which is arbitrary.
            values = [0.0, *(-value for value in values)]
        if len(values) != 1 + len(negatives):
            raise BadRecord(
                SCORE,
                f"{where}: {len(label)} teacher scores for a positive and"
                f" {len(negatives)} negatives; one for each document is needed, or the"
                " positive's less each negative's. Score the row again or remove it.",
            )
        scores = lookup.options.combine([values])
    return _group(
        where,
        {ANY: wording(row["anchor"], where, "anchor")},
        [{ANY: wording(row["positive"], where, "positive")}],
        negatives,
        scores,
    )


def triplet_rows(
    values: Callable[[str], Iterable], options: TripletOptions, where: str
) -> tuple[np.ndarray | None, str]:
    """Positions of the rows that `options.negatives` asks for, and a remark.

    Args:
      values: gives the values of a field of all rows.

    Raises:
      InputError: there is no such row.
    """
    if options.negatives == "any":
        return None, ""
    has = np.array([one is not None for one in values("negative.0")], bool)
    said = "a negative" if options.negatives == "some" else "no negative"
    (kept,) = np.nonzero(has if options.negatives == "some" else ~has)
    if not len(kept):
        raise InputError(
            f"{where}: no row has {said}, which the format triplet's option negatives"
            f" = {options.negatives!r} asks for. Leave it at 'any'."
        )
    return kept, f"{len(kept):,} of {len(has):,} rows have {said}"


_labelled_fields = named(
    {
        "first": ("sentence1", *_ANCHOR),
        "second": ("sentence2", *_POSITIVE),
        "label": _LABEL,
    }
)


def labelled_pair_fields(names, options):
    """Two sentences and a label, no negatives."""
    if any(re.fullmatch(r"negative(_\d+)?|passage2", name) for name in names):
        return None
    return _labelled_fields(names, options)


def labelled(row, where, lookup) -> Group:
    """Two sentences that belong together; rows of low labels are never read.

    If labels are the scores, the sentences of all rows, with theirs.
    """
    if not _is_label(row["label"]):
        raise BadRecord(
            SCORE,
            f"{where}: the label is {row['label']!r:.80}; a number is needed. Put it"
            " right or remove the row.",
        )
    scores = None
    if lookup.options.grades:
        scores = np.array(_numbers([float(row["label"])], where), np.float32)
    return _group(
        where,
        {ANY: wording(row["first"], where, "first sentence")},
        [{ANY: wording(row["second"], where, "second sentence")}],
        [],
        scores,
    )


def labelled_rows(
    values: Callable[[str], Iterable], options: LabelledOptions, where: str
) -> tuple[np.ndarray, str]:
    """Positions of the rows of `labelled` data that are trained on, and a remark.

    Null and labels below `options.min_label` are left out, unless labels are the
    scores. Those that are not numbers remain: reading such a row is an error.

    Args:
      values: gives the values of a field of all rows.

    Raises:
      InputError: no label is a number, or none is high enough.
    """
    labels = list(values("label"))
    least = -math.inf if options.grades else options.min_label
    known = np.array([_is_label(label) for label in labels], bool)
    missing = np.array([label is None for label in labels], bool)
    if not known.any() and not missing.all():
        wrong = next(label for label in labels if label is not None)
        raise InputError(
            f"{where}: the labels are not numbers ({wrong!r:.80}). Write a number for"
            " each row."
        )
    numbers = np.full(len(labels), -np.inf)
    numbers[known] = [float(labels[i]) for i in np.flatnonzero(known).tolist()]
    high = known & (numbers >= least)
    (kept,) = np.nonzero(high | ~(known | missing))
    if not known.any():
        raise InputError(f"{where}: no row has a label. Write a number for each row.")
    if not high.any():
        raise InputError(
            f"{where}: no row has a label of at least {least} (min_label of the format"
            " labelled); the highest is"
            f" {numbers.max(initial=-np.inf)}. Lower it."
        )
    more = "" if options.grades else f" of {least} or more"
    return kept, f"{len(kept):,} of {len(labels):,} rows have a label{more}"


def _is_label(value: Any) -> bool:
    """Whether the value is a number, possibly as text or boolean: 1, true or "1"."""
    try:
        return not isinstance(value, list | BadRecord) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
