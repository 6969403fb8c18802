"""Results on tasks as tables: on a console, and in Markdown for model cards."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from lsrjax import options
from lsrjax.retrieval import result_tables
from lsrjax.retrieval.task_results import PartResults, table


def described(chosen: options.Chosen, parts: Sequence[PartResults]) -> dict[str, Any]:
    """What a results file says of a task: options, metrics, data and results."""
    return {
        "options": options.plain(chosen),
        "metrics": list(parts[0].metrics),
        "data": {part.name: dict(part.data) for part in parts},
        "results": result_tables.rounded(table(parts)),
    }


def show(name: str, made: Mapping[str, Any], console: Console) -> None:
    """Prints what `described` gives: a table for each metric, costs, and the data."""
    results = made["results"]
    for metric in made["metrics"]:
        title = f"\n{name}: {metric}"
        result_tables.print_table(results, metric, console, title=title)
    costs = result_tables.with_metric(results, "index_bytes")
    result_tables.print_costs(costs, {}, console, of="a document")
    for part, data in made["data"].items():
        console.print(f"{part}: {in_words(data)}", highlight=False, markup=False)


def markdown(tasks: Mapping[str, Any]) -> str:
    """The tables of each task's metrics, with its data."""
    return "\n".join(
        f"{name}, {metric}:\n\n{result_tables.markdown_table(made['results'], metric)}"
        + "".join(f"\n{part}: {in_words(data)}.\n" for part, data in of.items())
        for name, made in tasks.items()
        for place, metric in enumerate(made["metrics"])
        for of in [made["data"] if place == len(made["metrics"]) - 1 else {}]
    )


def in_words(data: Mapping[str, Any]) -> str:
    """Where data is from, and its version, on a line."""
    said = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            said.append(f"{key} ({in_words(value)})")
        elif key == "sha256":
            said.append(f"sha256 {value[:12]}")
        elif isinstance(value, int):
            said.append(f"{value:,} {key.replace('_', ' ')}")
        else:
            said.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(said)
