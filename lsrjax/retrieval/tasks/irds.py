"""Any collection of ir_datasets, by its id."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, overload

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.retrieval.tasks import parts
from lsrjax.retrieval.tasks.documents import Documents
from lsrjax.retrieval.tasks.task import Task, judged_task


class IrDatasets:
    """A collection of ir_datasets with documents, queries and judgements."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """The collections."""

        ids: tuple[str, ...] = option(
            (), "of ir_datasets, such as ('neuclir/1/fa/trec-2022', 'vaswani')"
        )
        field: str = option(
            "", "of a query, such as title or description; empty: as ir_datasets says"
        )
        metrics: tuple[str, ...] = option(
            ("nDCG@10", "R@100"), "the main one first; any that ir_measures knows"
        )

        def problem(self) -> str | None:
            """Refuses options without collections."""
            return None if self.ids else "ids is empty; name collections."

    @staticmethod
    def parts(given: "IrDatasets.Options") -> list["IrDatasets.Options"]:
        """One for each collection."""
        return parts.each(given, "ids", (), more=True)

    @staticmethod
    def load(given: "IrDatasets.Options") -> Task:
        """Fetches a collection, where it may be, and reads its ids and judgements."""
        name = parts.the_only(given.ids, "ids")
        data = _collection(name)
        try:
            judged: dict[str, dict[str, float]] = {}
            for row in data.qrels_iter():
                judged.setdefault(row.query_id, {})[row.doc_id] = row.relevance
            language = data.queries_lang() or "all"
            of_documents = data.docs_lang() or ""
            asked = [
                (row.query_id, _wording(row, given.field), language)
                for row in data.queries_iter()
            ]
            ids = [row.doc_id for row in data.docs_iter()]
        except InputError:
            raise
        except Exception as error:  # the library raises many unrelated types
            raise InputError(
                f"ir_datasets: {name!r} could not be read: {type(error).__name__}:"
                f" {error}."
            ) from error
        return judged_task(
            name,
            Documents(ids, _Texts(data, len(ids))),
            asked,
            judged,
            metrics=given.metrics,
            data={"source": f"ir_datasets:{name}", "version": _version()},
            document_language=of_documents,
        )


def _collection(name: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise InputError(
            "The task 'ir_datasets' needs the package ir_datasets: pip install"
            " 'lsrjax[ir_datasets]'."
        ) from error
    try:
        data = ir_datasets.load(name)
    except KeyError as error:
        raise InputError(
            f"task.ids: ir_datasets has no {name!r}; ir-datasets.com lists its ids."
        ) from error
    for what in ("docs", "queries", "qrels"):
        if not getattr(data, f"has_{what}")():
            raise InputError(f"task.ids: {name!r} of ir_datasets has no {what}.")
    return data


def _version() -> str:
    import ir_datasets

    return ir_datasets.__version__


def _wording(row: Any, field: str) -> str:
    if not field:
        return row.default_text()
    if field not in row._fields:
        raise InputError(
            f"task.field is {field!r}; a query has {', '.join(row._fields)}."
        )
    return getattr(row, field)


class _Texts(Sequence[str]):
    """The documents' texts, read on demand; reading them in order is fast."""

    def __init__(self, data: Any, count: int):
        self._data, self._count = data, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, chosen: int) -> str: ...
    @overload
    def __getitem__(self, chosen: slice) -> list[str]: ...
    def __getitem__(self, chosen):
        if isinstance(chosen, slice):
            start, stop, step = chosen.indices(self._count)
            rows = itertools.islice(self._data.docs_iter()[start:stop], 0, None, step)
            return [row.default_text() for row in rows]
        return self[chosen : chosen + 1][0]

    def __iter__(self):
        for row in self._data.docs_iter():
            yield row.default_text()
