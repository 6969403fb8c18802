"""Retrieval tasks of mteb, loaded by mteb."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lsrjax import options
from lsrjax.data.reading.texts import with_title
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks import documents, parts
from lsrjax.retrieval.tasks.task import Task, judged_task

# mteb's names of metrics before _at_10, and ours before @10.
_METRICS = {
    "ndcg": "nDCG",
    "map": "AP",
    "recall": "R",
    "precision": "P",
    "mrr": "RR",
    "hit_rate": "Success",
}


class Mteb:
    """Retrieval tasks of the package mteb, by name."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The tasks, and what is read of them."""

        names: tuple[str, ...] = option((), "such as ('SciFact', 'MIRACLRetrieval')")
        subsets: tuple[str, ...] = option((), "languages, as mteb has them; empty: all")
        split: str = option("", "empty: the first one that mteb evaluates")

        def problem(self) -> str | None:
            """Refuses options without tasks."""
            return None if self.names else "names is empty; name tasks of mteb."

    @staticmethod
    def parts(given: "Mteb.Options") -> list["Mteb.Options"]:
        """One for each task and subset."""
        return [
            part
            for one in parts.each(given, "names", (), more=True)
            for part in parts.each(one, "subsets", _task(one.names[0]).hf_subsets)
        ]

    @staticmethod
    def load(given: "Mteb.Options") -> Task:
        """Lets mteb fetch and read a task."""
        name = parts.the_only(given.names, "names")
        subset = parts.the_only(given.subsets, "subsets")
        task = _task(name)
        split = given.split or task.eval_splits[0]
        try:
            task.load_data()
            task.convert_v1_dataset_format_to_v2(num_proc=None)
            data = task.dataset[subset][split]
        except Exception as error:  # the library raises many unrelated types
            raise InputError(
                f"mteb could not load {name}, {subset}, {split}:"
                f" {type(error).__name__}: {error}."
            ) from error
        return _converted(task, name, subset, split, data)


def _converted(task: Any, name: str, subset: str, split: str, data: Any) -> Task:
    rows = (
        (str(row["id"]), with_title(row.get("title"), row["text"]).strip())
        for row in data["corpus"]
    )
    queries = ((str(row["id"]), row["text"], subset) for row in data["queries"])
    judged = {query: of for query, of in data["relevant_docs"].items() if of}
    main, _, cut = task.metadata.main_score.partition("_at_")
    metric = f"{_METRICS.get(main, 'nDCG')}@{cut or 10}"
    return judged_task(
        f"{name}/{subset}",
        documents.in_memory(rows, name),
        queries,
        judged,
        metrics=tuple(dict.fromkeys((metric, "nDCG@10", "R@100"))),
        data={
            "source": task.metadata.dataset["path"],
            "revision": task.metadata.dataset["revision"],
            "split": split,
        },
        own_ids=task.ignore_identical_ids,
        document_language=subset,
    )


def _task(name: str) -> Any:
    try:
        import mteb
    except ImportError as error:
        raise InputError(
            "The task 'mteb' needs the package mteb: pip install 'lsrjax[mteb]'."
        ) from error
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        raise InputError(f"task.names: mteb has no task {name!r} ({error}).") from error
    needed: Sequence[str] = ("ignore_identical_ids", "convert_v1_dataset_format_to_v2")
    if not all(hasattr(task, one) for one in needed):
        raise InputError(f"task.names: {name!r} of mteb is no retrieval task.")
    return task
