"""The end of a run: its dev metrics, what its model makes of texts, what to do next."""

import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from lsrjax.config import fields
from lsrjax.retrieval import result_tables
from lsrjax.training import lines_file
from lsrjax.training.trackers import METRICS_FILE, TEXTS_FILE

_SHOWN_TEXTS = 6


def show(run_config, workdir: pathlib.Path, console: Console) -> None:
    """Prints them; only the last of a run with tables of `evaluate.test`."""
    stages = fields.stages(run_config)
    if not run_config.evaluate.test:
        _show_dev(stages, workdir, console)
        _show_texts(workdir / list(stages)[-1], console)
    console.print("\nWhat to do next:", highlight=False)
    for command in commands(run_config, workdir):
        console.print(Text(f"  {command}"), soft_wrap=True)


def commands(run_config, workdir: pathlib.Path) -> Iterator[str]:
    """Commands that evaluate, index, search and serve with the run's model."""
    model = shlex.quote(str(workdir))
    name = shlex.quote(workdir.absolute().name)
    last = list(fields.stages(run_config).values())[-1]
    corpus = last.data.corpus if isinstance(last.data.corpus, str) else ""
    texts = shlex.quote(corpus or "documents.jsonl")
    if not run_config.evaluate.test:
        yield (
            f"lsrjax evaluate --model {model} --task beir --task.path=MY_DATA"
            f" --out {name}-results"
        )
    out = f"{name}-index"
    yield f"lsrjax index --model {model} --texts {texts} --engine exact --out {out}"
    yield f'lsrjax search --index {out} --model {model} --query "…"'
    yield f"lsrjax serve --index {out} --model {model}"


def _show_dev(stages: Mapping[str, Any], workdir: pathlib.Path, console) -> None:
    """A table of each dev metric: the best step of each stage, by language."""
    by_metric: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for name, stage in stages.items():
        metric = stage.dev.metric
        key = f"dev_{metric}"
        records = lines_file.read(workdir / name / METRICS_FILE)
        # Of equal values the later one, as the checkpoint that is kept.
        best = max(
            (one for one in records if key in one),
            key=lambda one: (one[key], one["step"]),
            default=None,
        )
        if best is not None:
            over = "all" if stage.dev.over == "queries" else stage.dev.over
            columns = {
                field.removeprefix(f"{key}/"): value
                for field, value in best.items()
                if field.startswith(f"{key}/")
            }
            row = {column: {metric: value} for column, value in columns.items()}
            row[over] = {metric: best[key]}
            shown = f"{name}, step {best['step']:,}"
            by_metric.setdefault(metric, {})[shown] = row
    for metric, systems in by_metric.items():
        title = f"\n{metric} on the dev data"
        result_tables.print_table(systems, metric, console, title=title)


def _show_texts(folder: pathlib.Path, console: Console) -> None:
    """The sample texts of the last evaluation with their strongest terms."""
    rows = [*lines_file.read(folder / TEXTS_FILE)]
    views: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if row["step"] == rows[-1]["step"]:
            text = row["role"], row["language"], row["text"]
            views.setdefault(text, {})[row["view"]] = row["terms"]
    if not views:
        return
    console.print("Texts of the dev data with their strongest terms:", highlight=False)
    for (role, language, shown), terms in list(views.items())[:_SHOWN_TEXTS]:
        title = f"{role} ({language})" if language else role
        lines = [f"  {title}: {' '.join(shown.split())}"]
        lines += [f"    {view}: {found or '(none)'}" for view, found in terms.items()]
        for line in lines:
            if console.is_terminal:
                console.print(Text(line), no_wrap=True, overflow="ellipsis")
            else:
                console.print(Text(line), soft_wrap=True)
