"""Compares the systems of a finished run: tables, `results.json`, and examples."""

import contextlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console

from lsrjax import json_files
from lsrjax.checkpoint import digests, saved_model
from lsrjax.checkpoint.names_on_disk import DAMAGED, set_aside
from lsrjax.checkpoint.results_file import DIGESTS_FILE
from lsrjax.checkpoint.set_damaged_aside import listing
from lsrjax.config import check_tasks, fields
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ENGLISH
from lsrjax.distributed import processes, sharding
from lsrjax.models.backbones.encoder_config import STATED
from lsrjax.options import resolve
from lsrjax.retrieval import evaluate, rank, result_tables, results_file, task_tables
from lsrjax.retrieval import metrics as measures
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.encode_texts import joined
from lsrjax.retrieval.matches import COMMON
from lsrjax.retrieval.rank import Searcher, Way
from lsrjax.retrieval.results_file import ENGLISH_TEXTS, MIXED_TEXTS, RESULTS_FILE
from lsrjax.retrieval.search import search
from lsrjax.retrieval.task_results import PartResults
from lsrjax.retrieval.tasks.table import TASKS, loaded
from lsrjax.retrieval.tasks.task import Task
from lsrjax.retrieval.terms import HASHED, NUMBERED
from lsrjax.training import baselines, stage_models

EXAMPLES_FILE = "examples.json"
SPEED_FILE = "speed.json"
_FILES = (RESULTS_FILE, EXAMPLES_FILE, SPEED_FILE)
_SHOWN_TERMS = 8
_SHOWN_DOCUMENTS = 3


def evaluate_run(
    run_config,
    workdir: pathlib.Path,
    console: Console,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Evaluates baselines and the run's models as `config.evaluate` says.

    Writes `results.json`, identical in every run; `speed.json`, the documents per
    second that each stage's model encodes; and `examples.json`.

    `poll` is called before each batch is encoded.
    """
    tasks: dict[str, Any] = {}
    examples: list[dict] = []
    speed: dict[str, float] = {}
    if run_config.evaluate.test:
        tasks, examples, speed = _on_test(run_config, workdir, console, poll)
    if run_config.evaluate.tasks:
        tasks |= _on_tasks(run_config, workdir, console, poll)
    if processes.is_first():
        json_files.write_json(workdir / EXAMPLES_FILE, examples)
        json_files.write_json(workdir / SPEED_FILE, speed)
        results_file.write(workdir / RESULTS_FILE, tasks)
        digests.seal(workdir, _FILES, workdir / DIGESTS_FILE)


def _on_test(run_config, workdir, console, poll) -> tuple[dict, list[dict], dict]:
    """Baselines and the models of all stages on a split of the embedded texts.

    Returns:
      What `task_tables.described` says of each task, the examples of the last stage,
      and speeds.
    """
    split = run_config.evaluate.split
    chosen = {
        name: resolve(
            TASKS,
            {"name": "debian", "documents": name.split("/")[1], "split": split},
            "config.evaluate",
        )
        for name in (ENGLISH_TEXTS, MIXED_TEXTS)
    }
    tasks = {name: next(loaded(one)) for name, one in chosen.items()}
    english = tasks[ENGLISH_TEXTS]
    languages = [*dict.fromkeys(english.languages)]
    groups = list(embedded.examples("group", split))
    console.print(
        f"Evaluating {len(english.queries):,} queries in {len(languages)} languages"
        f" on {len(groups):,} documents of the {split} split.",
        soft_wrap=True,
    )
    pairs = embedded.examples("pair", "train")
    parts = {name: PartResults.of(task, task.metrics) for name, task in tasks.items()}
    for system, index in baselines.baselines(
        (pair.translation, pair.english) for pair in pairs
    ).items():
        for name, task in tasks.items():
            depth = measures.required_depth(task.metrics)
            found = index(task.corpus).search(task.queries, depth)
            parts[name].add(system, task, rank.Ranking(*found))
    made = {
        name: task_tables.described(one, [parts[name]]) for name, one in chosen.items()
    }
    examples, speed = [], {}
    for stage_name, stage in fields.stages(run_config).items():
        with _searcher(stage_name, stage, workdir, poll) as searcher:
            own = list(filter(searcher.knows, _languages(stage, languages)))
            for name, task in tasks.items():
                if not own or (name == MIXED_TEXTS and own != languages):
                    continue  # documents are in languages that it has no use for
                part = _ranked(stage_name, searcher, _only(task, own))
                more = task_tables.described(chosen[name], [part])
                made[name]["results"] |= more["results"]
            speed[stage_name] = evaluate.encoding_speed(searcher, english)
            wanted = list(filter(searcher.knows, run_config.evaluate.examples))
            examples = _examples(english, groups, searcher, wanted)
    return made, examples, speed


def _ranked(
    stage: str, searcher: Searcher, task: Task, *, bm25: bool = False
) -> PartResults:
    """The results of a stage's model and of each of its views on a corpus."""
    part = PartResults.of(task, task.metrics)
    depth = measures.required_depth(task.metrics)
    if bm25:
        part.add("bm25", task, rank.bm25(task, depth))
    ways = {
        f"{stage} {view}".strip(): Way(of)
        for view, of in rank.views_of(searcher).items()
    }
    for system, ranking in rank.rank(task, searcher, ways, depth).items():
        part.add(system, task, ranking)
    return part


def _on_tasks(run_config, workdir, console, poll) -> dict[str, Any]:
    """BM25 and the last stage's model, and each of its views, on benchmarks."""
    found = {}
    name, stage = list(fields.stages(run_config).items())[-1]
    with _searcher(name, stage, workdir, poll) as searcher:
        for label, chosen in check_tasks.evaluated(run_config).items():
            parts = []
            for task in loaded(chosen):
                console.print(
                    f"Evaluating {label}: {task.name}", highlight=False, soft_wrap=True
                )
                parts.append(_ranked(name, searcher, task, bm25=True))
            found[label] = task_tables.described(chosen, parts)
    return found


@contextlib.contextmanager
def _searcher(name: str, stage, workdir: pathlib.Path, poll):
    """A stage's model on its mesh."""
    with sharding.on_mesh(stage.mesh.data, stage.mesh.model) as mesh:
        model = saved_model.load_model(workdir / name)
        placed = stage_models.placed(stage, model, mesh)
        stated = stage.model.language == STATED
        yield Searcher.of(placed, stage, poll, stated=stated)


def are_sound(workdir: pathlib.Path, console: Console) -> bool:
    """Whether the results of a run exist, as they were written.

    Altered ones are moved to `damaged/` and reported, and the run is evaluated again.
    """
    if not (workdir / RESULTS_FILE).is_file():
        return False
    found = digests.unsealed(workdir, _FILES, workdir / DIGESTS_FILE)
    if not found:
        return True
    for name in (*_FILES, DIGESTS_FILE):
        if (workdir / name).is_file():
            set_aside(workdir, workdir / name, "results")
    console.print(
        f"The results in {workdir} are not as they were written:\n{listing(found)}\n"
        f"They are in {workdir / DAMAGED / 'results'}; the run is evaluated again.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return False


def show(workdir: pathlib.Path, console: Console) -> None:
    """Prints the tables and examples of an evaluated run."""
    found = (workdir / name for name in (EXAMPLES_FILE, SPEED_FILE))
    examples, speed = (json.loads(path.read_text("utf-8")) for path in found)
    if examples:
        console.print(
            "\nQueries that the last stage answers and BM25 does not (one a language):"
        )
        result_tables.print_examples(console, examples)
    for name, made in results_file.read(workdir / RESULTS_FILE)["tasks"].items():
        task_tables.show(name, made, console, speed if name == ENGLISH_TEXTS else {})
    path = workdir / RESULTS_FILE
    console.print(f"Written to {path}", highlight=False, soft_wrap=True)


def _languages(stage, known: list[str]) -> list[str]:
    """English if a stage trains only on English queries, else all languages."""
    weights = stage.data.query_languages
    trained = {language for language, weight in weights.items() if weight}
    return [ENGLISH] if trained == {ENGLISH} else known


def _only(task: Task, languages: list[str]) -> Task:
    chosen = enumerate(task.languages)
    return task.only([i for i, language in chosen if language in languages])


def _examples(task, groups, model, languages) -> list[dict]:
    """For each language, the first query in the model's top 3 that BM25 misses."""
    # Dense embeddings have no terms to show.
    if not languages or not model.encoder.spec.sparse:
        return []
    task = _only(task, list(languages))
    bm25_hits, _ = BM25(task.corpus).search(task.queries, 10)
    queries = model.queries(task.queries, task.spoken)
    spoken = task.spoken_at(range(len(task.corpus)))
    documents = model.documents(task.corpus, spoken)
    hits, _ = search(joined(queries), joined(documents), _SHOWN_DOCUMENTS)
    examples = []
    for language in languages:
        for i, relevant in enumerate(task.relevant):
            missed = relevant not in bm25_hits[i]
            if task.languages[i] == language and relevant in hits[i] and missed:
                examples.append(
                    _example(task, groups, model, queries, documents, hits, i)
                )
                break
    return examples


def _example(task, groups, model, queries, documents, hits, i) -> dict:
    names = {view: _term_names(model, view) for view in queries}
    top = hits[i][0]
    terms, because = {}, []
    for view, matrix in queries.items():
        if view in HASHED:
            both = float(matrix[i].multiply(documents[view][top]).sum())
            because += [(COMMON, view, both)] * bool(both)
            continue
        terms[view] = [
            (names[view](j), float(matrix[i, j])) for j in _strongest(matrix[i])
        ]
        products = matrix[i].multiply(documents[view][top]).tocsr()
        because += [
            (names[view](j), view, float(products[0, j])) for j in _strongest(products)
        ]
    because.sort(key=lambda item: -item[2])
    titles = {
        group.positives[0][ENGLISH]: group.query[ENGLISH]
        for group in reversed(groups)  # of equal documents, the first one's title
    }
    found = [
        (rank, titles[task.corpus[d]], bool(d == task.relevant[i]))
        for rank, d in enumerate(hits[i].tolist(), start=1)
        if d >= 0
    ]
    return {
        "query": task.queries[i],
        "lang": task.languages[i],
        "terms": terms,
        "found": found,
        "because": because[:_SHOWN_TERMS],
    }


def _strongest(row) -> np.ndarray:
    order = np.argsort(-row.data, kind="stable")[:_SHOWN_TERMS]
    return row.indices[order]


def _term_names(model, view: str):
    """Column to term of a view; pivot terms are from the English tokenizer."""
    if view in NUMBERED:
        return str
    tokenizer = model.pivot_tokenizer if view == "pivot" else model.encoder.tokenizer
    return lambda column: tokenizer.token(column)
