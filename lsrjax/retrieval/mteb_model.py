"""A retriever for mteb, which then evaluates it on any of its retrieval tasks.

    import mteb
    from lsrjax.convert.open_model import open_portable
    from lsrjax.retrieval.mteb_model import MtebModel

    model = MtebModel(open_portable("runs/demo"))
    mteb.evaluate(model, mteb.get_tasks(["MIRACLRetrievalHardNegatives"]))

It searches exactly, with all views, in mteb's protocol for models that search. Needs
mteb 2.20 or newer: pip install 'lsrjax[mteb]'.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.reading.texts import with_title
from lsrjax.errors import InputError
from lsrjax.retrieval import rank
from lsrjax.retrieval.rank import Ranking, Searcher, Way
from lsrjax.retrieval.tasks.task import Task


class MtebModel:
    """Searches mteb's corpora with a model; see the module."""

    def __init__(
        self,
        model,
        *,
        batch_size: int = 64,
        dtype: str = "float32",
        lowercase: bool = False,
    ):
        """Loads nothing of mteb yet.

        Args:
          model: a `SavedModel`, as `open_portable` gives it.
          batch_size: texts encoded at once.
          dtype: of matrix products.
          lowercase: encode texts in lower case.
        """
        self._name = str(model.name).strip("/").split("/")[-1]
        self._searcher = Searcher.portable(model, batch_size=batch_size, dtype=dtype)
        self._lowercase = lowercase
        self._corpus: Any = None

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes down about the model."""
        from mteb.models import ModelMeta

        name = f"lsrjax/{self._name}"
        return ModelMeta.create_empty({"name": name, "revision": "no_revision"})

    def index(self, corpus, **kwargs) -> None:
        """Keeps the corpus; it is encoded while it is searched."""
        self._corpus = corpus

    def search(
        self,
        queries,
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **kwargs,
    ) -> dict[str, dict[str, float]]:
        """The best documents of each query, with scores, which fall strictly.

        mteb orders equal scores by the documents' names.

        Args:
          queries: mteb's data set of queries.
          top_k: documents of each query.
          top_ranked: of tasks that rerank, the documents of each query.
          **kwargs: what else mteb says; not needed.
        """
        ids = [str(key) for key in self._corpus["id"]]
        task = Task(
            queries=[_query(row) for row in queries],
            languages=["all"] * len(queries),
            corpus=_Documents(self._corpus),
            relevant=[],
        )
        # Documents that score higher, but are not asked for, must not push others out.
        depth = len(ids) if top_ranked else min(top_k, len(ids))
        ways = {"": Way()}
        found = rank.rank(task, self._searcher, ways, depth, lowercase=self._lowercase)
        keys = [str(key) for key in queries["id"]]
        allowed = {key: set(of) for key, of in (top_ranked or {}).items()}
        return {
            key: _falling(found[""], row, ids, allowed.get(key), top_k)
            for row, key in enumerate(keys)
        }


def _falling(
    found: Ranking, row: int, ids: Sequence[str], allowed: set[str] | None, count: int
) -> dict[str, float]:
    kept: dict[str, float] = {}
    last = np.float32(np.inf)
    for place, score in zip(found.hits[row], found.scores[row], strict=True):
        if place < 0 or len(kept) == count:
            break
        if allowed is None or ids[place] in allowed:
            last = min(np.float32(score), np.nextafter(last, np.float32(-np.inf)))
            kept[ids[place]] = float(last)
    return kept


class _Documents(Sequence[str]):
    """Titles and texts of mteb's data set, read on demand."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen):
        if isinstance(chosen, slice):
            places = range(*chosen.indices(len(self)))
            return [self[place] for place in places]
        row = self._rows[chosen]
        return with_title(row.get("title"), row["text"]).strip()


def _query(row: Mapping[str, Any]) -> str:
    text = row["text"]
    if not isinstance(text, str):
        raise InputError(
            f"The query {row['id']!r} is {type(text).__name__}, not a text: tasks with"
            " conversations are not supported."
        )
    return f"{text} {row['instruction']}" if row.get("instruction") else text
