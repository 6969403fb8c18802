"""Searches documents in memory, or an index on disk, with a model."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lsrjax import paths
from lsrjax.api.model import Model, load, several
from lsrjax.errors import InputError
from lsrjax.retrieval.index_folder import Index, open_index
from lsrjax.retrieval.text_search import Hit, Plan, TextSearch


def search(
    model: str | Model,
    documents: Sequence[str] | Mapping[str, str] | Index | str | pathlib.Path,
    queries: Sequence[str],
    *,
    depth: int = 10,
    plan: Plan = Plan(),  # noqa: B008
) -> list[list[Hit]]:
    """The best documents of each query, with the terms that matched.

    Args:
      model: a name as of `lsrjax.load`, or what it returns.
      documents: texts, or ids to texts; what `Model.index` made of them, to search more
        than once; or the folder of an index of `lsrjax index`.
      queries: texts.
      depth: documents of a query at most; those without a shared term are none.
      plan: fusion with BM25 or views, pruning, feedback; by default the model alone.

    Returns:
      For each query its hits, best first: `id`, `score`, `text`, and `matches` as of
      `Model.explain`.

    Raises:
      InputError: a model or an index that cannot be used, or do not belong together.
    """
    queries = several(queries)
    model = load(model) if isinstance(model, str) else model
    if isinstance(documents, str | pathlib.Path):
        opened = open_search(documents, model, plan)
        with opened.index:
            return opened.search(queries, depth)
    index = documents if isinstance(documents, Index) else model.index(documents)
    _check_weights(index, model)
    return TextSearch(index, model.searcher, plan).search(queries, depth)


def open_search(
    folder: str | pathlib.Path,
    model: str | Model,
    plan: Plan = Plan(),  # noqa: B008
    *,
    max_length: int = 0,
    batch_size: int = 8,
    language: str = "",
    engine: Mapping[str, Any] = {},  # noqa: B006
    verify: bool = True,
) -> TextSearch:
    """An index with its model, to search with texts.

        hits = open_search("docs.index", "runs/demo/contrast").search(["boot loader"])

    Args:
      model: a run's or stage's folder, a Hugging Face folder or hub id; or open.
      max_length: tokens a query is cut to; 0: as in training, else 64.
      batch_size: queries encoded at once, if the model is not open; fewer are filled
        up.
      language: of the queries, if the model is not open, as of `lsrjax.load`.
      engine: options of the index that only affect searches.
      verify: compare the digests of the index's files.

    Raises:
      InputError: the index is damaged, another model made it, or the plan does not fit.
    """
    index = open_index(paths.local(folder, "--index"), engine, verify=verify)
    try:
        if isinstance(model, str):
            model = load(model, batch_size=batch_size, language=language)
        _check_weights(index, model)
        limit = model.searcher.encoder.spec.encoder.max_length
        length = max_length or model.searcher.query_length
        if not 2 < length <= limit:
            raise InputError(f"--max_length is {length}; the model takes 3 to {limit}.")
        searcher = dataclasses.replace(
            model.searcher,
            query_length=length,
            document_length=index.made_of.get("max_length") or 0,
        )
        return TextSearch(index, searcher, plan)
    except BaseException:
        index.close()
        raise


def _check_weights(index: Index, model: Model) -> None:
    made_of = index.made_of
    if made_of.get("role") == "query":
        raise InputError(
            f"{index.name} is of vectors that were encoded as queries. Encode documents"
            " with --role document, and index those."
        )
    if "weights" not in made_of:
        print(
            f"{index.name} does not say which model made its vectors: look whether it"
            f" is {model.name}.",
            file=sys.stderr,
        )
    elif made_of["weights"] != model.digest:
        raise InputError(
            f"--model {model.name} has weights of digest {model.digest}, but the"
            f" vectors of {index.name} come from {made_of.get('model')!r}, digest"
            f" {made_of['weights']}. Search with that model, or index with this one."
        )
