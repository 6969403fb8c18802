"""Dev data as a task, the quality of a model on it, and the speed of encoding."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lsrjax.data.examples import ANY, ENGLISH, Pair
from lsrjax.errors import InputError
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval import rank
from lsrjax.retrieval.rank import Searcher, Way
from lsrjax.retrieval.task_results import PartResults, table
from lsrjax.retrieval.tasks.task import Task, graded


def dev_task(source, limit: int, languages: Callable[[str], bool]) -> Task:
    """Held-out examples as a retrieval task.

    Pairs: each translation is a query for its English text among all English texts.
    Groups: the query, in each of its languages, searches for its positives among all
    documents, in English where available: those of the whole corpus, with every
    judgement, if the groups contain ids, as in a BEIR folder; else those of all groups.
    Pairs and groups of one query, by its id or else its text, are one query.

    Takes `limit` queries at most, spread evenly over the examples, and of groups those
    in the languages that count.

    Raises:
      InputError: no query is in such a language, or a judgement without its document.
    """
    by_id = getattr(source, "by_id", False)
    corpus, queries = (_judged if by_id else _own)(source, languages)
    if not queries:
        raise InputError(
            "The dev data has no query in the languages of config.data.query_languages."
            " Name one that it has, or leave config.dev.source empty."
        )
    chosen = np.linspace(0, len(queries) - 1, min(limit, len(queries))).astype(int)
    texts, spoken, relevant = zip(*(queries[i] for i in chosen), strict=True)
    wordings, of = [text for _, text in corpus], [language for language, _ in corpus]
    return Task(texts, spoken, wordings, relevant, document_language=of)


def _own(source, languages) -> tuple[list[tuple[str, str]], list[tuple]]:
    corpus: dict[str, tuple[int, str]] = {}

    def place_of(language: str, text: str) -> int:
        return corpus.setdefault(text, (len(corpus), language))[0]

    # Data of pairs has a row for each of a query's positives.
    queries: dict[tuple[str, str], dict[int, int]] = {}
    for index in range(len(source)):
        example = source[index]
        if isinstance(example, Pair):
            asked = example.translation, example.language
            queries.setdefault(asked, {})[place_of(ENGLISH, example.english)] = 1
            continue
        grades = {place_of(*_english(text)): 1 for text in example.positives}
        for text in example.negatives:
            place_of(*_english(text))
        for text, language, relevant in _asked(example.query, languages, grades):
            queries.setdefault((text, language), {}).update(relevant)
    documents = [(language, text) for text, (_, language) in corpus.items()]
    return documents, [(*asked, relevant) for asked, relevant in queries.items()]


def _judged(source, languages) -> tuple[list[tuple[str, str]], list[tuple]]:
    corpus, places = [], {}
    for place in range(len(source.documents)):
        key, text = source.documents.item(place)
        places[key] = place
        corpus.append(_english(text))
    queries: dict[tuple[str, str, str], dict[int, int]] = {}
    for index in range(len(source)):
        where, query, judged = source.judged(index)
        key, *_ = source.ids(index) or ("",)
        grades = graded(where, judged, places, len(corpus))
        for text, language, relevant in _asked(query, languages, grades):
            own = queries.setdefault((key, text, language), {})
            own |= {
                place: max(of, own.get(place, of)) for place, of in relevant.items()
            }
    return corpus, [(*asked, relevant) for (_, *asked), relevant in queries.items()]


def _asked(query: Mapping[str, str], languages, relevant) -> list[tuple]:
    return [
        (text, language, relevant)
        for language, text in query.items()
        if languages(language)
    ]


def _english(text: Mapping[str, str]) -> tuple[str, str]:
    """Language and wording: English or, without it, the first one."""
    if text.get(ENGLISH):
        return ENGLISH, text[ENGLISH]
    return next(iter(text.items()), (ANY, ""))


_TIMED_TEXTS = 512


def encoding_speed(searcher: Searcher, task: Task) -> float:
    """Documents encoded per second, over a sample, without compilation."""
    texts = task.corpus
    places = np.linspace(0, len(texts) - 1, min(_TIMED_TEXTS, len(texts))).astype(int)
    sample, spoken = [texts[i] for i in places], task.spoken_at(places.tolist())
    searcher.documents(sample, spoken)
    started = time.perf_counter()
    searcher.documents(sample, spoken)
    return len(sample) / (time.perf_counter() - started)


def dev_metric(
    tasks: Sequence[Task], searcher: Searcher, metric: str, over: str = "queries"
) -> dict[str, float]:
    """A metric on dev tasks, all views together; by language under `metric/LANGUAGE`.

    Args:
      tasks: the parts of a benchmark, or one task.
      searcher: the model.
      metric: its name.
      over: "queries" for the mean over all queries, "mean" or "worst" of the columns
        that `task_results.table` has.
    """
    parts, depth = [], measures.required_depth([metric])
    for task in tasks:
        part = PartResults.of(task, [metric])
        part.add("", task, rank.rank(task, searcher, {"": Way()}, depth)[""])
        parts.append(part)
    columns = table(parts)[""]
    if over == "queries":
        values = np.concatenate([part.values[""][metric] for part in parts])
        value = float(values.mean())
    else:
        # A single language has no summary: it is its own mean, and the worst.
        value = (columns.get(over) or next(iter(columns.values())))[metric]
    named = {name: of for name, of in columns.items() if name not in ("mean", "worst")}
    by_language = {f"{metric}/{name}": of[metric] for name, of in named.items()}
    return {metric: value, **(by_language if len(named) > 1 else {})}
