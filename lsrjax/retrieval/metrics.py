"""Ranking metrics, computed by ir_measures, and the size of representations."""

from collections.abc import Collection, Mapping, Sequence

import ir_measures
import numpy as np

from lsrjax.errors import nearest

Relevant = int | Collection[int] | Mapping[int, int]

# Ranks used by a measure without cut-off, as in TREC.
_UNCUT_DEPTH = 1000
_LARGEST_CUTOFF = 2**20
# trec_eval counts documents by grade, in memory that grows with the largest one.
LARGEST_GRADE = 10**6
METRICS = ("nDCG@10", "R@100")


def evaluate(
    hits: np.ndarray,
    relevant: Sequence[Relevant],
    metrics: Sequence[str] = METRICS,
) -> dict[str, float]:
    """Averages ranking metrics over all queries.

    A query without hits counts as 0; it does not drop out of the mean.

    Args:
        hits: [Q, depth] document indices, best first; -1 stands for no hit.
        relevant: of each query, its relevant document, a collection of them, or a
            mapping from judged documents to whole grades (above 0: relevant).
        metrics: names of ir_measures, such as nDCG@10, R@100, RR@10.

    Returns:
        The mean of each metric, in the order of `metrics`.

    Raises:
        ValueError: an unknown metric, one that needs more hits than `depth`, a query
            without a relevant document, or a document twice in a ranking.
    """
    values = per_query(hits, relevant, metrics)
    return {name: float(value.mean()) for name, value in values.items()}


def per_query(
    hits: np.ndarray,
    relevant: Sequence[Relevant],
    metrics: Sequence[str] = METRICS,
) -> dict[str, np.ndarray]:
    """The values [Q] float64 of each metric; arguments and errors as of `evaluate`."""
    hits = np.asarray(hits)
    measures = {name: _parse(name) for name in metrics}
    _check_hits(hits, len(relevant))
    needed = required_depth(metrics)
    if needed > hits.shape[1]:
        raise ValueError(
            f"metrics: {', '.join(metrics)} look at {needed} hits, but the rankings "
            f"hold {hits.shape[1]}; search with depth={needed}."
        )
    # Two names may stand for one measure (RR and MRR). Queries without hits, which
    # trec_eval omits, keep the measure's default.
    values = {
        measure: np.full(len(relevant), measure.DEFAULT, np.float64)
        for measure in measures.values()
    }
    evaluator = ir_measures.evaluator(list(values), _qrels(relevant))
    for result in evaluator.iter_calc(_run(hits)):
        values[result.measure][int(result.query_id)] = result.value
    return {name: values[measure] for name, measure in measures.items()}


def required_depth(metrics: Sequence[str]) -> int:
    """The depth to search: the largest cut-off, or 1,000 for metrics without one.

    A cut-off is part of a metric's name: nDCG@10. Metrics without one (AP, RR, nDCG)
    use the whole ranking, of which TREC keeps 1,000; so do those with `judged_only`,
    which count ranks after hits without a judgement are left out.
    """
    return max((_depth(_parse(name)) for name in metrics), default=1)


def _depth(measure: ir_measures.Measure) -> int:
    cutoff = measure.params.get("cutoff", _UNCUT_DEPTH)
    judged_only = measure.params.get("judged_only", False)
    return max(cutoff, _UNCUT_DEPTH) if judged_only else cutoff


def _parse(name: str) -> ir_measures.Measure:
    try:
        measure = ir_measures.parse_measure(name)
        measure.validate_params()
    # ir_measures has no exception of its own: names, syntax, parameters and cut-offs
    # each fail differently.
    except (NameError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(_unknown(name, str(error))) from error
    if measure.params.get("cutoff", 1) < 1:  # trec_eval ends the process on these
        raise ValueError(_unknown(name, "the cut-off is below 1"))
    if measure.params.get("cutoff", 1) > _LARGEST_CUTOFF:
        raise ValueError(_unknown(name, f"the cut-off is above {_LARGEST_CUTOFF:,}"))
    if not ir_measures.DefaultPipeline.supports(measure):
        raise ValueError(_unknown(name, "no installed package computes it"))
    try:
        ir_measures.evaluator([measure], {"0": {"0": 1}})
    # Packages refuse parameters, such as rel=0, that ir_measures takes.
    except Exception as error:
        raise ValueError(_unknown(name, str(error))) from error
    return measure


def _unknown(name: str, reason: str) -> str:
    known = sorted(
        {
            measure.NAME
            for provider in ir_measures.DefaultPipeline.providers
            if provider.is_available()
            for measure in provider.SUPPORTED_MEASURES
        }
    )
    base, at, cutoff = name.partition("@")
    by_lower = {one.lower(): one for one in known}
    near = nearest(base.lower(), by_lower)
    meant = f" Did you mean {by_lower[near]}{at}{cutoff}?" if near else ""
    if base in known:
        meant = ""
        reason = reason if at else f"it needs a cut-off, such as {base}@100"
    return (
        f"cannot compute {name!r}: {reason}.{meant} A metric is a name and, for "
        f"most, a cut-off, such as nDCG@10, R@100 or RR@10. Known names: "
        f"{', '.join(known)}."
    )


def _check_hits(hits: np.ndarray, queries: int) -> None:
    if queries == 0:
        raise ValueError("metrics: there are no queries, so there is no mean.")
    if hits.ndim != 2 or hits.shape[0] != queries:
        raise ValueError(
            f"metrics: hits of shape {hits.shape} do not fit {queries} queries with "
            "relevant documents; one row of hits for each query is needed."
        )
    ordered = np.sort(hits, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        query, place = np.argwhere(repeated)[0]
        raise ValueError(
            f"metrics: the ranking of query {query} holds document "
            f"{ordered[query, place]} more than once."
        )


def _qrels(relevant: Sequence[Relevant]) -> dict[str, dict[str, int]]:
    qrels = {}
    for query, docs in enumerate(relevant):
        docs = [docs] if isinstance(docs, int | np.integer) else docs
        grades = docs if isinstance(docs, Mapping) else dict.fromkeys(docs, 1)
        if not grades:
            raise ValueError(
                f"metrics: query {query} has no relevant document, so no metric is "
                "defined for it; leave it out of the queries."
            )
        if min(grades) < 0:
            raise ValueError(
                f"metrics: the relevant document of query {query} is {min(grades)}; "
                "it has to be a row of the corpus, counted from 0."
            )
        qrels[str(query)] = {str(doc): int(grade) for doc, grade in grades.items()}
    return qrels


def _run(hits: np.ndarray) -> dict[str, dict[str, float]]:
    # The rank alone determines the score: trec_eval breaks ties by the document's name.
    depth = hits.shape[1]
    return {
        str(query): {
            str(doc): float(depth - rank) for rank, doc in enumerate(row) if doc >= 0
        }
        for query, row in enumerate(hits.tolist())
        if max(row, default=-1) >= 0
    }
