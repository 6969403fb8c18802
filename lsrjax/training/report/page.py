"""The page of a report: what it shows, in which order."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lsrjax
from lsrjax.config import fields
from lsrjax.convert.write import public
from lsrjax.retrieval import result_tables, task_tables
from lsrjax.retrieval.result_tables import BASELINES, COUNTS, MEAN, WORST
from lsrjax.retrieval.results_file import ENGLISH_TEXTS
from lsrjax.training.report import curves, styles
from lsrjax.training.report.charts import number
from lsrjax.training.report.elements import Element, Inside, tag, written
from lsrjax.training.report.records import Record

_CELL = 60  # characters of a field's value
# Neither scripts nor anything from elsewhere, whatever a run's files hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(runs: Sequence[Record]) -> str:
    """A whole file of HTML about some runs."""
    parts = [(title, [*found(runs)]) for title, found in _PARTS.items()]
    parts = [(title, found) for title, found in parts if found]
    links = [tag("a", title, href=f"#{_id(title)}") for title, _ in parts]
    title = ", ".join(run.name for run in runs)
    return document(
        title,
        tag("header", tag("h1", title), tag("nav", links)),
        [tag("section", tag("h2", t), found, id=_id(t)) for t, found in parts],
        tag("footer", f"Written by lsrjax {lsrjax.__version__}"),
    )


def document(title: str, *inside: Inside, policy: str = _POLICY) -> str:
    """A file of HTML with the style of reports."""
    view = "width=device-width, initial-scale=1"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content=view),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", styles.TEXT),
    )
    html = tag("html", head, tag("body", inside), lang="en")
    return f"<!DOCTYPE html>\n{written(html)}\n"


def figures(runs: Sequence[Record]) -> dict[str, Element]:
    """The tables and charts of results and training, by a name for a file."""
    made = {"results": [*_results(runs)]} | {
        stage: curves.of_stage(stage, runs) for stage in _stage_names(runs)
    }
    found: dict[str, Element] = {}
    for name, several in made.items():
        for figure in several:
            caption = next(figure.iter("figcaption")).text or ""
            found[f"{name}-{_id(caption.split(' (')[0])}"] = figure
    return found


def _id(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _stage_names(runs: Sequence[Record]) -> list[str]:
    return [*dict.fromkeys(stage for run in runs for stage in run.stages)]


def _table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[Inside]], kind=""
) -> Element:
    """A table that scrolls sideways; the first cell of a row is its head."""
    head = tag("tr", [tag("th", name, scope="col") for name in columns])
    body = [
        tag(
            "tr",
            tag("th", first, scope="row"),
            [
                cell if isinstance(cell, Element) and cell.tag == "td" else
                tag("td", cell)
                for cell in rest
            ],
        )
        for first, *rest in rows
    ]  # fmt: skip
    table = tag("table", tag("thead", head), tag("tbody", body), class_=kind)
    scrolled = tag("div", table, class_="scroll", tabindex=0)
    return tag("figure", tag("figcaption", caption), scrolled, class_="wide")


def _summary(runs: Sequence[Record]) -> Iterator[Element]:
    rows: list[list[Inside]] = []
    for run in runs:
        for stage, numbers in run.stages.items():
            last = max(step for points in numbers.values() for step, _ in points)
            done = stage in run.done
            dev = [
                f"{name.removeprefix('dev_')} {max(v for _, v in points):.3f}"
                for name, points in numbers.items()
                if name.startswith("dev_") and "/" not in name
            ]
            speeds = sorted(v for _, v in numbers.get("tokens_per_s", ()))
            rows.append(
                [
                    f"{run.name}, {stage}" if len(runs) > 1 else stage,
                    f"{last:,.0f}" + ("" if done else ", not finished"),
                    _last(numbers, "loss"),
                    ", ".join(dev) or "-",
                    number(speeds[len(speeds) // 2]) if speeds else "-",
                    _last(numbers, "padding", "{:.1%}"),
                    _last(numbers, "memory_gb", "{:.2f}"),
                ]
            )
    names = ("", "steps", "loss", "best on dev data", "tokens/s", "padding")
    if rows:
        yield _table("Stages", (*names, "peak memory, GB"), rows)


def _languages(runs: Sequence[Record]) -> Iterator[Element]:
    for run in runs:
        for stage, rows in run.languages.items():
            if rows:
                title = f"{run.name}, {stage}" if len(runs) > 1 else stage
                yield _table(f"Languages of the first batches: {title}", _SHARES, rows)


_SHARES = ("", "language", "texts", "tokens", "tokens of a text")


def _last(numbers: Mapping, name: str, form: str = "") -> str:
    if name not in numbers:
        return "-"
    value = numbers[name][-1][1]
    return form.format(value) if form else number(value)


def _results(runs: Sequence[Record]) -> Iterator[Element]:
    for task, by_run in _by_task(runs).items():
        metrics = dict.fromkeys(
            metric
            for made in by_run.values()
            for metric in task_tables.shown_metrics(made)
        )
        systems: dict[str, Any] = {}
        for name, made in by_run.items():
            for system, values in made["results"].items():
                same = system in BASELINES and systems.get(system, values) == values
                alone = len(runs) == 1 or same
                systems[system if alone else f"{name}, {system}"] = values
        for metric in metrics:
            shown = result_tables.with_metric(systems, metric)
            yield _heat(f"{task}: {metric}", shown, metric)


def _by_task(runs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """The results on each task, by run."""
    names = dict.fromkeys(task for run in runs for task in run.tasks)
    return {
        task: {run.name: run.tasks[task] for run in runs if task in run.tasks}
        for task in names
    }


def _heat(caption: str, systems: Mapping[str, Any], metric: str) -> Element:
    """A table with a row for each system, a column for each language, and colours."""
    columns = list(
        dict.fromkeys(
            language
            for values in systems.values()
            for language, by_metric in values.items()
            if metric in by_metric
        )
    )
    columns.sort(key=(WORST, MEAN).__contains__)
    values = {
        (system, language): systems[system][language][metric]
        for system in systems
        for language in columns
        if metric in systems[system].get(language, {})
    }
    low, high = min(values.values()), max(values.values())
    best = {
        language: max(v for (_, own), v in values.items() if own == language)
        for language in columns
    }

    def cell(system: str, language: str) -> Element:
        value = values.get((system, language))
        if value is None:
            return tag("td", "-")
        share = (value - low) / (high - low) if high > low else 0.0
        text = (
            f"{value:.1f}" if metric in COUNTS else f"{value:.3f}".replace("0.", ".", 1)
        )
        is_best = len(systems) > 1 and metric not in COUNTS and value == best[language]
        # The style sheet makes a colour of it.
        return tag(
            "td", tag("b", text) if is_best else text, style=f"--heat: {share:.3f}"
        )

    rows: list[list[Inside]] = [
        [system, *(cell(system, one) for one in columns)] for system in systems
    ]
    return _table(caption, ("", *columns), rows, "heat")


def _costs(runs: Sequence[Record]) -> Iterator[Element]:
    columns = ("", "active terms", "bytes in an index", "encoded per second")
    speeds = {run.name: run.speed for run in runs}
    for task, by_run in _by_task(runs).items():
        rows: list[list[Inside]] = []
        for name, made in by_run.items():
            shown = result_tables.with_metric(made["results"], "index_bytes")
            for system, languages in shown.items():
                values = next(iter(languages.values()))
                speed = speeds[name].get(system) if task == ENGLISH_TEXTS else None
                rows.append(
                    [
                        f"{name}, {system}" if len(runs) > 1 else system,
                        f"{values['document_terms']:.1f}",
                        f"{values['index_bytes']:,.0f}",
                        "-" if speed is None else f"{speed:,.0f}",
                    ]
                )
        if rows:
            title = f"{task}: cost of a document (-: not measured, or a view)"
            yield _table(title, columns, rows)
    yield from _grid([*curves.of_tasks(runs)])


def _grid(found: Sequence[Element]) -> Iterator[Element]:
    if found:
        yield tag("div", found, class_="grid")


def _training(runs: Sequence[Record]) -> Iterator[Element]:
    for stage in _stage_names(runs):
        yield tag("h3", f"Stage {stage}")
        yield from _grid(curves.of_stage(stage, runs))


def _examples(runs: Sequence[Record]) -> Iterator[Element]:
    for run in runs:
        if run.examples and len(runs) > 1:
            yield tag("h3", run.name)
        yield from _grid([*map(_example, run.examples)])


def _example(example: Mapping[str, Any]) -> Element:
    found = [
        tag(
            "li",
            title,
            tag("span", " ✓", title="the right document") if right else None,
            value=rank,
            dir="auto",
            **({"class_": "right"} if right else {}),
        )
        for rank, title, right in example["found"]
    ]
    views = [
        tag("p", tag("span", f"{view} ", class_="view"), chips(terms))
        for view, terms in example["terms"].items()
    ]
    because = None
    if example["because"] and example["found"]:
        terms = [(f"{t} ({view})", part) for t, view, part in example["because"]]
        because = tag("p", tag("span", "why the first ", class_="view"), chips(terms))
    heading = tag("h4", tag("span", example["lang"], class_="lang"), " ",
                  tag("bdi", example["query"]))  # fmt: skip
    return tag("article", heading, views, tag("ol", found), because)


def chips(terms: Sequence[tuple[str, float]]) -> list[Inside]:
    """Terms with their weights, in colours."""
    highest = max((abs(weight) for _, weight in terms), default=0) or 1
    return [
        tag(
            "span",
            tag("bdi", term),
            " ",
            tag("small", f"{weight:.2f}"),
            class_="term",
            style=f"--heat: {abs(weight) / highest:.3f}",
        )
        for term, weight in terms
    ] or ["(none)"]


def _config(runs: Sequence[Record]) -> Iterator[Element]:
    """Of one run, what differs from the defaults; of several, between them."""
    flat = {run.name: _fields(run.config) for run in runs if run.config}
    if not flat:
        return
    if len(flat) > 1:
        every = dict.fromkeys(field for one in flat.values() for field in one)
        rows = [
            (field, [one.get(field) for one in flat.values()])
            for field in every
            if len({json.dumps(one.get(field)) for one in flat.values()}) > 1
        ]
        yield _of_fields("Fields that differ between the runs", [*flat], rows)
        return
    (config,) = (run.config for run in runs if run.config)
    default = _flat(json.loads(fields.get_default().to_json()))
    stages = config.get("stages") or {fields.ONLY_STAGE: config}
    found = {stage: _flat(values) for stage, values in stages.items()}
    known = dict.fromkeys(field for one in found.values() for field in one)
    rows = [
        (field, [one.get(field) for one in found.values()])
        for field in known
        if any(one.get(field) != default.get(field) for one in found.values())
    ]
    yield _of_fields("Fields that differ from the defaults, by stage", [*found], rows)


def _of_fields(
    caption: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]]
) -> Element:
    shown: list[list[Inside]] = [
        [field, *(_value(field.split(".")[-1], value) for value in values)]
        for field, values in rows
    ]
    if not shown:
        return tag("p", f"{caption}: none.")
    return _table(caption, ("", *columns), shown, "fields")


def _value(field: str, value: Any) -> Element:
    text = "-" if value is None else json.dumps(
        public.tree(value, field), ensure_ascii=False
    )  # fmt: skip
    short = text if len(text) <= _CELL else f"{text[: _CELL - 2]} …"
    return tag("code", short, title=text)


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a run reads: those of its stages, where it has stages."""
    flat = _flat({key: one for key, one in config.items() if key != "stages"})
    if not config.get("stages"):
        return flat
    outside = {k: v for k, v in flat.items() if k.split(".")[0] in ("seed", "evaluate")}
    return outside | _flat(config["stages"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        # Options of trackers, which may hold a password, stay for `public.tree`.
        if isinstance(value, Mapping) and value and key != "trackers":
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


_PARTS: Mapping[str, Callable[[Sequence[Record]], Iterator[Element]]] = {
    "Summary": _summary,
    "Results": _results,
    "Cost": _costs,
    "Training": _training,
    "Languages": _languages,
    "Examples": _examples,
    "Config": _config,
}
