"""Results as tables, and as explained examples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

MEAN, WORST = "mean", "worst"

# system -> language -> metric -> value
Results = Mapping[str, Mapping[str, Mapping[str, float]]]


# Metrics of a system's cost: more is not better.
COUNTS = ("query_terms", "document_terms", "index_bytes")

# Systems without a network, which every stage is shown beside.
BASELINES = ("bm25", "bm25 n-grams", "ibm model 1")


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


def with_metric(results: Results, metric: str) -> Results:
    """The systems that have a metric."""
    return {
        system: by_language
        for system, by_language in results.items()
        if any(metric in values for values in by_language.values())
    }
