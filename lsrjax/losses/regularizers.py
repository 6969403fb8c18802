"""Sparsity regularizers over representations, and the schedules of their weights.

To add one: write it here with its source, and add a line to the table. Weights of
terms are >= 0, so that none needs an absolute value.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lsrjax.models.views import SPARSE, Bag, Vector, Views


def l1(view: Vector | Bag) -> jax.Array:
    """Mean over texts of the sum of a text's weights (weights are >= 0)."""
    return view.row_sums().mean()


def flops(view: Vector | Bag) -> jax.Array:
    """FLOPS: sum over terms of the squared mean weight (Paria et al. 2020)."""
    return jnp.square(view.column_means()).sum()


def masked_flops(view: Vector | Bag, threshold: float) -> jax.Array:
    """FLOPS of the texts with many terms; the others count as empty.

    Short texts are not pressed any further, as their terms are what they are found by
    (the l0 mask of Shen et al. 2025, arXiv 2504.14839).

    Args:
      view: of the texts; the mean goes over all of them.
      threshold: texts of so many active terms, or fewer, are left alone.
    """
    keep_B = view.active_terms() > threshold
    name = "weights_BV" if isinstance(view, Vector) else "weights_BK"
    weights = jnp.where(keep_B[:, None], getattr(view, name), 0)
    return flops(dataclasses.replace(view, **{name: weights}))


# Terms of nearly every text, such as special tokens, count as if of 9 texts in 10:
# their idf is about 0, and one of them would outweigh all other terms.
_LEAST_IDF = 0.1


def idf_flops(view: Vector | Bag, idf: jax.Array) -> jax.Array:
    """FLOPS of the weights divided by the terms' inverse document frequency.

    Presses frequent terms, which tell documents apart least and have the longest
    posting lists, harder than rare ones (IDF-aware FLOPS, Geng et al. 2024, arXiv
    2411.04403v1, for retrievers without a query encoder).

    Args:
      view: of the texts.
      idf: of the terms of the view's vocabulary, [V].
    """
    means = view.column_means()
    # Behind the vocabulary there may stand zeros.
    idf = jnp.pad(idf, (0, len(means) - len(idf)), constant_values=1.0)
    return jnp.square(means / jnp.maximum(idf, _LEAST_IDF)).sum()


def joint_flops(query: Vector | Bag, document: Vector | Bag) -> jax.Array:
    """Sum over terms of the queries' mean weight times the documents'.

    It is the mean score of a query and a document that have nothing to do with each
    other, and so what an inverted index has to read for it; FLOPS (Paria et al. 2020)
    is the same with one kind of text for both. Terms that only queries or only
    documents use cost nothing.
    """
    return (query.column_means() * document.column_means()).sum()


def anti_zero(view: Vector | Bag) -> jax.Array:
    """Mean over texts of 1 / (1 + s^2), s the sum of a text's weights.

    Keeps vectors from dying. After the 1 / s^2 of naver/splade, there with the sum of
    the whole batch; a text's own shows one that dies alone, and the 1 keeps an empty
    one finite.
    """
    return (1 / (1 + jnp.square(view.row_sums()))).mean()


def constant(step: jax.Array, steps: int) -> jax.Array:
    """1 from the first step on."""
    return jnp.ones((), jnp.float32)


def linear(step: jax.Array, steps: int) -> jax.Array:
    """Rises from 0 to 1 over `steps` steps in a straight line."""
    return jnp.minimum(step / max(steps, 1), 1.0)


def quadratic(step: jax.Array, steps: int) -> jax.Array:
    """(t / T)^2 up to 1 (SPLADE v2, Formal et al. 2021)."""
    return jnp.square(linear(step, steps))


@dataclasses.dataclass(frozen=True)
class Regularizer:
    """An entry of `REGULARIZERS`.

    Attributes:
      fn: `(view, **options) -> scalar`, for each kind of text with its own lambda; if
        joint `(the queries' view, the documents', **options)`, with the documents'.
      joint: over queries and documents together.
      idf: it takes the option `idf`, of the view's terms in the training documents.
      options: the fields of `config.regularizer` that it reads.
    """

    fn: Callable[..., jax.Array]
    joint: bool = False
    idf: bool = False
    options: tuple[str, ...] = ()


REGULARIZERS: dict[str, Regularizer] = {
    "l1": Regularizer(l1),
    "flops": Regularizer(flops),
    "masked_flops": Regularizer(masked_flops, options=("threshold",)),
    "idf_flops": Regularizer(idf_flops, idf=True),
    "joint_flops": Regularizer(joint_flops, joint=True),
}
SCHEDULES: dict[str, Callable] = {
    "constant": constant,
    "linear": linear,
    "quadratic": quadratic,
}


def _field(text: str, view: str) -> str:
    return f"source_{text}" if view == "source" else text


def penalties(
    config,
    views: dict[str, Views],
    lambdas: dict[str, jax.Array],
    idf: Mapping[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """What a stage's regularizers add to the loss, by name; scalars.

    Args:
      config: `config.regularizer`.
      views: by text.
      lambdas: by field; those left out are 0.
      idf: of the terms of each view, where the regularizer takes it.
    """
    entry = REGULARIZERS[config.name]
    options = {option: config[option] for option in entry.options}
    found = {}
    for text, by_view in views.items():
        for name, view in by_view.items():
            field = _field(text, name)
            if field in lambdas:
                if entry.idf:
                    options["idf"] = idf[name]
                given = (views["query"][name], view) if entry.joint else (view,)
                penalty = lambdas[field] * entry.fn(*given, **options)
                found[f"{config.name}_{text}_{name}"] = penalty
            if config.anti_zero and field == text:
                found[f"anti_zero_{text}_{name}"] = config.anti_zero * anti_zero(view)
    return found


def active_terms(views: dict[str, Views]) -> dict[tuple[str, str], jax.Array]:
    """Mean number of active terms of a text.

    Args:
      views: by text.

    Returns:
      Scalars by the lambda's field and the view: `("source_query", "query_source")`.
    """
    return {
        (_field(text, name), f"{text}_{name}"): view.active_terms().mean()
        for text, by_view in views.items()
        for name, view in by_view.items()
        if isinstance(view, SPARSE)
    }
