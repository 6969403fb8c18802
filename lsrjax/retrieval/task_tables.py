"""Results on tasks as tables: on a console, and in Markdown for model cards."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from lsrjax import options
from lsrjax.retrieval import result_tables
from lsrjax.retrieval.result_tables import BASELINES
from lsrjax.retrieval.task_results import PartResults, table


def described(chosen: options.Chosen, parts: Sequence[PartResults]) -> dict[str, Any]:
    """What a results file says of a task: options, metrics, data and results."""
    return {
        "options": options.plain(chosen),
        "metrics": list(parts[0].metrics),
        "data": {part.name: dict(part.data) for part in parts},
        "results": result_tables.rounded(table(parts)),
    }


def show(
    name: str,
    made: Mapping[str, Any],
    console: Console,
    documents_per_s: Mapping[str, float] | None = None,
) -> None:
    """Prints what `described` gives: a table for each metric, costs, and the data."""
    results = made["results"]
    for metric in shown_metrics(made):
        systems = result_tables.with_metric(results, metric)
        title = f"\n{name}: {metric}"
        result_tables.print_table(systems, metric, console, title=title)
    costs = result_tables.with_metric(results, "index_bytes")
    if costs:
        speeds = documents_per_s or {}
        result_tables.print_costs(costs, speeds, console, of="a document")
    for part, data in made["data"].items():
        console.print(f"{part}: {in_words(data)}", highlight=False, markup=False)


def shown_metrics(made: Mapping[str, Any]) -> list[str]:
    """The metrics that have a table: those of the task, and a query's active terms."""
    return [
        metric
        for metric in (*made["metrics"], "query_terms")
        if result_tables.with_metric(made["results"], metric)
    ]


def of_stage(tasks: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The tasks of a run that it is evaluated on, with its rows and the baselines'."""
    return {
        name: {
            **made,
            "results": {
                system: values
                for system, values in made["results"].items()
                if system in BASELINES or system.split(" ")[0] == stage
            },
        }
        for name, made in tasks.items()
        if stage in made["results"]
    }


def markdown(tasks: Mapping[str, Any]) -> str:
    """The tables of each task's metrics, with its data."""
    return "\n".join(
        f"{name}, {metric}:\n\n{result_tables.markdown_table(made['results'], metric)}"
        + "".join(f"\n{part}: {in_words(data)}.\n" for part, data in of.items())
        for name, made in tasks.items()
        for metric in made["metrics"]
        for of in [made["data"] if metric == made["metrics"][-1] else {}]
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
