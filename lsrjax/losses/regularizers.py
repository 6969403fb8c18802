"""Sparsity regularizers over representations, and the schedules of their weights.

To add one: write it here with its source, and add a line to the table. Weights of
terms are >= 0, so no absolute values are taken.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lsrjax.errors import InputError
from lsrjax.models.views import SPARSE, Bag, Vector, Views
from lsrjax.options import Chosen, Options, no_effect, option, resolve


def l1(view: Vector | Bag) -> jax.Array:
    """Mean over texts of the sum of a text's weights."""
    return view.row_sums().mean()


def flops(view: Vector | Bag) -> jax.Array:
    """FLOPS: sum over terms of the squared mean weight (Paria et al. 2020)."""
    return jnp.square(view.column_means()).sum()


def masked_flops(view: Vector | Bag, threshold: float) -> jax.Array:
    """FLOPS of the texts with more than `threshold` terms; others count as empty.

    Short texts are not made sparser, as they are found by their few terms (the l0 mask
    of Shen et al. 2025, arXiv 2504.14839). The mean is over all texts.
    """
    keep_B = view.active_terms() > threshold
    if isinstance(view, Vector):
        weights_BV = jnp.where(keep_B[:, None], view.weights_BV, 0)
        return flops(dataclasses.replace(view, weights_BV=weights_BV))
    weights_BK = jnp.where(keep_B[:, None], view.weights_BK, 0)
    return flops(dataclasses.replace(view, weights_BK=weights_BK))


# Terms of nearly every text, such as special tokens, count as if in 9 of 10 texts:
# their idf is about 0, and any of them would outweigh all other terms.
_LEAST_IDF = 0.1


def idf_flops(view: Vector | Bag, idf: jax.Array) -> jax.Array:
    """FLOPS of the weights divided by the terms' inverse document frequency.

    Penalizes frequent terms, which distinguish documents least and have the longest
    posting lists, more than rare ones (IDF-aware FLOPS, Geng et al. 2024, arXiv
    2411.04403v1, for retrievers without a query encoder). `idf` is [V].
    """
    means = view.column_means()
    # Vectors may be padded with zeros.
    idf = jnp.pad(idf, (0, len(means) - len(idf)), constant_values=1.0)
    return jnp.square(means / jnp.maximum(idf, _LEAST_IDF)).sum()


def joint_flops(query: Vector | Bag, document: Vector | Bag) -> jax.Array:
    """Sum over terms of the queries' mean weight times the documents'.

    This is the mean score of an unrelated query and document, and thus the work of an
    inverted index; FLOPS (Paria et al. 2020) is the same with one kind of text for
    both. Terms that only queries or only documents use cost nothing.
    """
    return (query.column_means() * document.column_means()).sum()


def anti_zero(view: Vector | Bag) -> jax.Array:
    """Mean over texts of 1 / (1 + s^2), s the sum of a text's weights.

    Keeps vectors from becoming empty. After the 1 / s^2 of naver/splade, where s is the
    sum of the whole batch; a sum per text shows a single empty vector, and the 1 keeps
    the term finite.
    """
    return (1 / (1 + jnp.square(view.row_sums()))).mean()


def constant(step: jax.Array) -> jax.Array:
    """Always 1."""
    return jnp.ones((), jnp.float32)


def linear(step: jax.Array, steps: int) -> jax.Array:
    """Rises linearly from 0 to 1 over `steps` steps."""
    return jnp.minimum(step / steps, 1.0)


def quadratic(step: jax.Array, steps: int) -> jax.Array:
    """(t / T)^2 up to 1 (SPLADE v2, Formal et al. 2021)."""
    return jnp.square(linear(step, steps))


@dataclasses.dataclass(frozen=True)
class WarmUp(Options):
    """Of a rising schedule."""

    steps: int = option(0, "up to the full lambda", above=0)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """An entry of `SCHEDULES`: `fn(step, **options)`, the share of the full lambdas."""

    fn: Callable[..., jax.Array]
    Options: type[Options] = Options


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(constant),
    "linear": Schedule(linear, WarmUp),
    "quadratic": Schedule(quadratic, WarmUp),
}
_SPARSE = ("ranking loss", "sparse views")  # what lambdas have an effect with
# The lambdas among the options, of the vocabulary view and of the source view.
LAMBDAS = ("query", "document", "source_query", "source_document")


@dataclasses.dataclass(frozen=True)
class OfDocuments(Options):
    """The options that every regularizer has."""

    because: ClassVar = {
        "lambdas": "every lambda is 0",
        "steered": "no lambda is steered",
        "document": "the lambda 'document', which it steers, is 0",
        "query": "the lambda 'query', which it steers, is 0",
    }

    document: float = option(
        0.0, "lambda of documents, vocabulary view", low=0, when=_SPARSE
    )
    source_document: float = option(
        0.0,
        "lambda of documents, source view",
        low=0,
        when=(*_SPARSE, "source view"),
    )
    schedule: Any = option(
        "constant", "of all lambdas", table=SCHEDULES, when="lambdas"
    )
    active_document: float = option(
        0.0,
        "steers a lambda of the vocabulary view, from its value here, until a text has"
        " this many active terms on average; 0: off",
        low=0,
        when=("lambdas", "document"),
    )
    active_gain: float = option(
        0.01,
        "the steered lambda moves by at most this power of e a step; lower it where the"
        " number of terms swings",
        above=0,
        when=("lambdas", "steered"),
    )
    anti_zero: float = option(
        0.0, "weight of what keeps vocabulary views from dying", low=0, when=_SPARSE
    )

    def check_stage(self, stage: Any, where: str) -> None:
        """Refuses another regularizer than the default without a lambda."""
        name = stage.regularizer.name
        if name != next(iter(REGULARIZERS)) and not self.lambdas:
            said = no_effect("name", name, "every lambda is 0")
            raise InputError(f"{where}.{said}")

    @property
    def lambdas(self) -> dict[str, float]:
        """The lambdas that are not 0, by name."""
        found = {name: getattr(self, name, 0.0) for name in LAMBDAS}
        return {name: value for name, value in found.items() if value}

    @property
    def steered(self) -> dict[str, float]:
        """Wanted number of active terms of a text, by the steered lambda."""
        return {"document": self.active_document} if self.active_document else {}


@dataclasses.dataclass(frozen=True)
class OfTexts(OfDocuments):
    """The options of a regularizer that treats each kind of text separately."""

    query: float = option(
        0.0,
        "lambda of queries, vocabulary view",
        low=0,
        when=(*_SPARSE, "learned queries"),
    )
    source_query: float = option(
        0.0, "lambda of queries, source view", low=0, when=(*_SPARSE, "source view")
    )
    active_query: float = option(
        0.0, "as active_document, of queries", low=0, when=("lambdas", "query")
    )

    @property
    def steered(self) -> dict[str, float]:
        """Wanted number of active terms of a text, by the steered lambda."""
        queries = {"query": self.active_query} if self.active_query else {}
        return queries | super().steered


@dataclasses.dataclass(frozen=True)
class MaskedOptions(OfTexts):
    """Of `masked_flops`."""

    threshold: int = option(0, "leaves texts of this many terms alone", above=0)


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """An entry of `REGULARIZERS`.

    Attributes:
      fn: `(view, **options) -> scalar`, for each kind of text with its own lambda; if
        joint `(the queries' view, the documents', **options)`, with the documents'. It
        receives its own options, not those that every regularizer has.
      joint: over queries and documents together.
      idf: it takes `idf`, [V], of the view's terms in the training documents.
      Options: a dataclass of its options, a subclass of `OfTexts` or, if joint,
        `OfDocuments`.
    """

    fn: Callable[..., jax.Array]
    joint: bool = False
    idf: bool = False
    Options: type[OfDocuments] = OfTexts


REGULARIZERS: dict[str, Regularizer] = {
    "l1": Regularizer(l1),
    "flops": Regularizer(flops),
    "masked_flops": Regularizer(masked_flops, Options=MaskedOptions),
    "idf_flops": Regularizer(idf_flops, idf=True),
    "joint_flops": Regularizer(joint_flops, joint=True, Options=OfDocuments),
}
_SHARED = {field.name for field in dataclasses.fields(OfTexts)}


def of(config: Any, where: str = "config.regularizer") -> Chosen:
    """The regularizer of a stage's `config.regularizer`, with its options."""
    return resolve(REGULARIZERS, config, where)


def _field(text: str, view: str) -> str:
    return f"source_{text}" if view == "source" else text


def penalties(
    regularizer: Chosen,
    views: dict[str, Views],
    lambdas: dict[str, jax.Array],
    idf: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The regularizer's terms of the loss, by name; scalars.

    Missing `lambdas` are 0; `idf` is [V] by view, if the regularizer needs it.
    """
    entry, chosen = regularizer.entry, regularizer.options
    options = {
        field.name: getattr(chosen, field.name)
        for field in dataclasses.fields(chosen)
        if field.name not in _SHARED
    }
    found = {}
    for text, by_view in views.items():
        for name, view in by_view.items():
            if not isinstance(view, SPARSE):
                continue
            field = _field(text, name)
            if field in lambdas:
                if entry.idf:
                    assert idf is not None
                    options["idf"] = idf[name]
                given = (views["query"][name], view) if entry.joint else (view,)
                penalty = lambdas[field] * entry.fn(*given, **options)
                found[f"{regularizer.name}_{text}_{name}"] = penalty
            if chosen.anti_zero and field == text:
                found[f"anti_zero_{text}_{name}"] = chosen.anti_zero * anti_zero(view)
    return found


def active_terms(views: dict[str, Views]) -> dict[tuple[str, str], jax.Array]:
    """Mean number of active terms of a text, as scalars by (lambda, view).

    For example, by `("source_query", "query_source")`.
    """
    return {
        (_field(text, name), f"{text}_{name}"): view.active_terms().mean()
        for text, by_view in views.items()
        for name, view in by_view.items()
        if isinstance(view, SPARSE)
    }


def by_lambda(active: Mapping[tuple[str, str], jax.Array]) -> dict[str, jax.Array]:
    """Of `active_terms`, those by which a lambda is steered.

    Where views share one, those of the first, the vocabulary's: of n-grams, a text has
    as many as it is long.
    """
    found: dict[str, jax.Array] = {}
    for (field, _), number in active.items():
        found.setdefault(field, number)
    return found
