"""Results of a run: as a file, as tables, and as explained examples."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lsrjax.data.examples import ENGLISH
from lsrjax.json_files import write_json

MEAN, WORST = "mean", "worst"

# system -> language -> metric -> value
Results = Mapping[str, Mapping[str, Mapping[str, float]]]


# Metrics of a system's cost: more is not better.
COUNTS = ("query_terms", "document_terms", "index_bytes")

# Systems without a network, which every stage is shown beside.
BASELINES = ("bm25", "bm25 n-grams", "ibm model 1")

MULTILINGUAL = "multilingual "
TABLES = (
    ("nDCG@10", "English documents (the mean is over all languages but English)"),
    ("R@100", "English documents"),
    (f"{MULTILINGUAL}nDCG@10", "each document in one of the languages"),
    ("query_terms", "active terms of a query"),
)


class SearchExample(TypedDict):
    """One query and the documents a system found for it, for `print_examples`."""

    query: str
    lang: str
    # view -> (term, weight), strongest first
    terms: Mapping[str, Sequence[tuple[str, float]]]
    # (rank from 1, title, whether it is the right document), best first
    found: Sequence[tuple[int, str, bool]]
    # (term, view, query weight x document weight) of the first document found
    because: NotRequired[Sequence[tuple[str, str, float]]]


def with_mean(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Adds to each system the mean over all its languages but English.

    The language `mean` comes last, and replaces one that is there.

    Raises:
        ValueError: if systems cover different languages or a language lacks a metric,
            since such means could not be compared.
    """
    averaged: dict[str, dict[str, dict[str, float]]] = {}
    first = None
    for system, given in results.items():
        languages = {k: dict(v) for k, v in given.items() if k != MEAN}
        averaged[system] = languages
        others = [language for language in languages if language != ENGLISH]
        if not others:
            continue
        first = first or (system, others)
        if set(others) != set(first[1]):
            raise ValueError(
                f"report: {system} has results in {', '.join(sorted(others))}, but "
                f"{first[0]} in {', '.join(sorted(first[1]))}; their means cannot be "
                "compared. Evaluate all systems in the same languages."
            )
        metrics = list(languages[others[0]])
        for language in others:
            if set(languages[language]) != set(metrics):
                raise ValueError(
                    f"report: {system} has {', '.join(languages[language])} in "
                    f"{language}, but {', '.join(metrics)} in {others[0]}; evaluate "
                    "the same metrics in every language."
                )
        languages[MEAN] = {
            metric: sum(languages[language][metric] for language in others)
            / len(others)
            for metric in metrics
        }
    return averaged


# The key of results on tasks in a run's file; the others are systems.
TASKS = "tasks"


def write_results(
    path: str | os.PathLike[str],
    results: Results,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes results as JSON, rounded to six digits, in their order.

    The file is replaced atomically, so that a reader never sees half of it; missing
    folders are created.

    Args:
        path: of the file.
        results: of systems.
        tasks: `task_tables.described` of each task, if any.

    Raises:
        ValueError: if a value is not finite.
    """
    path = Path(path)
    own = rounded(results)
    found = [own, *(task["results"] for task in (tasks or {}).values())]
    bad = [
        f"{metric} of {system} in {language}"
        for one in found
        for system, languages in one.items()
        for language, values in languages.items()
        for metric, value in values.items()
        if not math.isfinite(value)
    ]
    if bad:
        raise ValueError(
            f"report: {bad[0]} is not finite, {path} is not written; find out why "
            "the evaluation gave it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, own | ({TASKS: tasks} if tasks else {}))


def rounded(value: Any) -> Any:
    """The numbers in nested dicts, rounded to six digits."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return round(float(value), 6)


def print_table(
    results: Results, metric: str, console: Console, *, title: str = ""
) -> None:
    """Prints a metric: systems as rows, languages as columns, mean and worst last.

    Higher values are better. The best of several in a column is bold; a missing one is
    `-`. Languages that do not fit the console's width continue in another table. The
    title defaults to the metric's name.

    Raises:
        ValueError: if no system has the metric.
    """
    languages, rows = _table(results, metric)
    console.print(title or metric, highlight=False)
    name_width = min(max(map(cell_len, rows)), max(console.width // 2, 8))
    for chunk in _fitting(languages, rows, console.width - name_width - 2):
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("", width=name_width, overflow="fold")
        for language in chunk:
            table.add_column(language, justify="right", no_wrap=True)
        for system, cells in rows.items():
            values = (cells[language] for language in chunk)
            table.add_row(
                Text(system),
                *(Text(text, style="bold" if best else "") for text, best in values),
            )
        console.print(table)
        console.print()


def print_costs(
    results: Results,
    documents_per_s: Mapping[str, float],
    console: Console,
    *,
    of: str = "an English document",
) -> None:
    """Prints the cost of a document in each system.

    `document_terms` (for token embeddings, tokens) and `index_bytes` are the same in
    each language. Without `documents_per_s`, there is no column of speeds.
    """
    columns = ["", "terms", "bytes"]
    timed = ""
    if documents_per_s:
        columns.append("per second")
        timed = ", encoded in a second (-: a view, whose model encodes all at once)"
    console.print(
        f"\ncost of {of}: active terms, bytes in an index (6 a term, 2 a"
        f" number of an embedding){timed}",
        highlight=False,
    )
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name else "left")
    for system, languages in results.items():
        values = next(iter(languages.values()))
        speed = documents_per_s.get(system)
        table.add_row(
            Text(system),
            f"{values['document_terms']:.1f}",
            f"{values['index_bytes']:,.0f}",
            *(["-" if speed is None else f"{speed:,.0f}"] if documents_per_s else []),
        )
    console.print(table)


def markdown_table(results: Results, metric: str) -> str:
    """The table of `print_table` as Markdown; ValueError without the metric."""
    languages, rows = _table(results, metric)
    lines = [[metric, *languages], ["---", *["---:"] * len(languages)]]
    for system, cells in rows.items():
        values = (cells[language] for language in languages)
        lines.append(
            [
                system.replace("|", r"\|"),
                *(f"**{text}**" if best else text for text, best in values),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_examples(console: Console, examples: Iterable[SearchExample]) -> None:
    """Prints queries with their strongest terms and the documents they find."""
    for example in examples:
        rows = Table.grid(padding=(0, 2, 0, 0), expand=True)
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(ratio=1, overflow="fold")
        rows.add_row("query", Text(_plain(example["query"]), style="bold"))
        for view, terms in example["terms"].items():
            weighted = ((term, f"{weight:.2f}") for term, weight in terms)
            rows.add_row(Text(f"{view} terms"), _terms(weighted))
        rows.add_row("", "")
        for rank, title, relevant in example["found"]:
            line = Text(f"{'✓' if relevant else ' '} {_plain(title)}")
            line.stylize("green" if relevant else "")
            rows.add_row(f"found {rank}", line)
        if not any(relevant for _, _, relevant in example["found"]):
            shown = len(example["found"])
            rows.add_row("", f"(the right document is not among the first {shown})")
        if because := example.get("because"):
            named = ((term, f"{view} {part:.2f}") for term, view, part in because)
            rows.add_row(f"why found {example['found'][0][0]}", _terms(named))
        console.print(Panel(rows, title=Text(example["lang"]), title_align="left"))


def _table(
    results: Results, metric: str
) -> tuple[list[str], dict[str, dict[str, tuple[str, bool]]]]:
    """The columns, and for each system its cells: text and whether best."""
    known = dict.fromkeys(
        name
        for languages in results.values()
        for values in languages.values()
        for name in values
    )
    if metric not in known:
        raise ValueError(
            f"report: no system has {metric!r}; the results hold "
            f"{', '.join(known) or 'no metrics at all'}."
        )
    columns = dict.fromkeys(
        language
        for languages in results.values()
        for language, values in languages.items()
        if metric in values
    )
    for summary in (MEAN, WORST):
        if summary in columns:
            columns[summary] = columns.pop(summary)
    rows: dict[str, dict[str, tuple[str, bool]]] = {name: {} for name in results}
    for language in columns:
        values = {
            system: round(float(languages[language][metric]), 3)
            for system, languages in results.items()
            if metric in languages.get(language, {})
        }
        best = max(values.values())
        for system in results:
            value = values.get(system)
            is_best = len(values) > 1 and value == best and metric not in COUNTS
            rows[system][language] = (_number(value, metric), is_best)
    return list(columns), rows


def _number(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    if metric in COUNTS:
        return f"{value:.1f}"
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _fitting(
    languages: Sequence[str],
    rows: Mapping[str, Mapping[str, tuple[str, bool]]],
    width: int,
) -> list[list[str]]:
    chunks: list[list[str]] = []
    left = 0
    for language in languages:
        texts = [language, *(cells[language][0] for cells in rows.values())]
        needed = max(map(cell_len, texts)) + 1
        if not chunks or needed > left:
            chunks.append([])
            left = width
        chunks[-1].append(language)
        left -= needed
    return chunks


def _terms(terms: Iterable[tuple[str, str]]) -> Text:
    line = Text()
    for term, number in terms:
        line.append("  " if line else "")
        line.append(_plain(term), style="cyan")
        line.append(f"\u00a0{number}", style="dim")
    return line if line else Text("(none)", style="dim")


def _plain(text: str) -> str:
    """A text on one line, without control characters."""
    kept = (char if char.isprintable() or char == "\u200c" else " " for char in text)
    return " ".join("".join(kept).split())


def markdown(results, name: str) -> str:
    """The tables of a stage, its views and the baselines as Markdown, or nothing."""
    own = {
        system: values
        for system, values in results.items()
        if system != TASKS and (system in BASELINES or system.split(" ")[0] == name)
    }
    if not set(own) - set(BASELINES):
        return ""
    tables = [
        f"{metric}: {title}\n\n{markdown_table(systems, metric)}"
        for metric, title in TABLES
        if (systems := with_metric(own, metric))
    ]
    return "\n".join(tables)


def with_metric(results: Results, metric: str) -> Results:
    """The systems that have a metric."""
    return {
        system: by_language
        for system, by_language in results.items()
        if any(metric in values for values in by_language.values())
    }
