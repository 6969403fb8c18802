"""Signs of a sparse model's health for the log, and detection of a collapse."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsrjax.data.batching.drawing import QUERIES, STUDENT, TEACHER
from lsrjax.distributed import sharding
from lsrjax.losses import regularizers
from lsrjax.losses.regularizers import LAMBDAS
from lsrjax.models.batch import tokens_of
from lsrjax.models.views import SPARSE, Views
from lsrjax.training.batch_contents import Contents

# Steps in a row with all vectors empty before a run stops: no gradient can bring the
# terms back.
_PATIENCE = 50
_EMPTY, _ACTIVE = "empty_", "active_"
# Texts that losses see only through their weights. The alignment loss compares raw
# values, so an empty vector of a pair still has a gradient, and gets more time.
_SCORED = ("query", "document")
_PATIENCE_OF_PAIRS = 1000
# Steps of empty vectors in a row that make a stage useless if it ends with them.
_AT_THE_END = 10
# A text with more than this share of all terms is hardly sparse, and one with fewer
# terms than this hardly found; reported after 500 steps.
_DENSE, _FEWEST, _ODD_STEPS = 0.1, 1.0, 500
# Texts in any other language.
_OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Signs:
    """What the log shows of a step's batch.

    Attributes:
      sizes: of the views' vocabularies, by view.
      compared: by (text, view), the text whose tokens do not count as expansion.
    """

    contents: Contents
    sizes: Mapping[str, int]
    compared: Mapping[tuple[str, str], str]

    @classmethod
    def of(cls, contents: Contents, spec, teacher) -> "Signs":
        """The signs of a student; `teacher` is a spec, or None."""
        texts = contents.texts
        compared = {(text, view): text for text in texts for view in spec.expands(text)}
        if teacher is not None and contents.kind == "pair" and "pivot" in spec.views:
            # Both texts of a pair are compared with the teacher's English text.
            compared |= {(text, "pivot"): TEACHER for text in texts}
        return cls(contents, spec.views, compared)

    def __call__(self, views: dict[str, Views], targets: dict, batch: dict) -> dict:
        """Scalars; "by_language" holds what `active_by_language` returns."""
        if not self.contents.config.log.health:
            return signs(views)
        seen: dict = signs(views, self.sizes)
        tokens = tokens_of(batch[STUDENT], queries=batch.get(QUERIES))
        if TEACHER in self.compared.values():
            tokens |= tokens_of(batch[TEACHER])
        compared = {view: tokens[text] for view, text in self.compared.items()}
        seen |= expansion(views, compared)
        if languages := self.contents.languages:
            shown = {text: targets[f"{text}_language"].reshape(-1) for text in views}
            found = active_by_language(views, shown, len(languages))
            # Replicated, so that each process can read them.
            seen["by_language"] = {
                name: sharding.constrain(sums, None, None)
                for name, sums in found.items()
            }
        return seen


def signs(
    views: dict[str, Views], sizes: Mapping[str, int] | None = None
) -> dict[str, jax.Array]:
    """Shares of a batch, as scalars.

    Args:
      sizes: of the views' vocabularies, since vectors may be padded with zeros; enables
        the slower signs.

    Returns:
      `empty_{text}`: the share of texts without a weight in any sparse view; and with
      `sizes`, `unused_{text}_{view}`: the share of the vocabulary without a weight in
      any text.
    """
    found = {}
    for text, by_view in views.items():
        sparse = {n: v for n, v in by_view.items() if isinstance(v, SPARSE)}
        if len(sparse) < len(by_view):
            continue
        sums_B = [abs(view.row_sums()) for view in sparse.values()]
        empty_B = jnp.asarray(sum(sums_B) == 0)
        # A mean of ones may round to less than 1.
        share = jnp.where(empty_B.all(), 1.0, empty_B.mean(dtype=jnp.float32))
        found[f"{_EMPTY}{text}"] = share
        for name, size in (sizes or {}).items():
            if name in sparse:
                used = (sparse[name].column_means() != 0).sum()
                found[f"unused_{text}_{name}"] = (size - used) / size
    return found


def expansion(
    views: Mapping[str, Mapping[str, Any]],
    tokens: Mapping[tuple[str, str], tuple[jax.Array, jax.Array]],
) -> dict[str, jax.Array]:
    """The share of the weights on terms that are not in the text.

    Args:
      tokens: (ids_BL, mask_BL) of the text to compare with, by (text, view). Special
        tokens count as the text's own.

    Returns:
      `expansion_{text}_{view}`: the share of the batch's total weight on terms that are
      not among their text's tokens; 0 if all vectors are empty.
    """
    return {
        f"expansion_{text}_{name}": _share_outside(views[text][name].weights_BV, *own)
        for (text, name), own in tokens.items()
    }


def _share_outside(weights_BV, ids_BL, mask_BL) -> jax.Array:
    V = weights_BV.shape[1]
    # Sorted, a token's repeats are adjacent, and padding is last.
    ids_BL = jnp.sort(jnp.where(mask_BL.astype(bool), ids_BL, V), axis=1)
    before_BL = jnp.pad(ids_BL, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    first_BL = (ids_BL != before_BL) & (ids_BL < V)
    found_BL = jnp.take_along_axis(weights_BV, jnp.minimum(ids_BL, V - 1), axis=1)
    inside, total = jnp.where(first_BL, found_BL, 0.0).sum(), weights_BV.sum()
    outside = jnp.maximum(total - inside, 0.0)
    return outside / jnp.where(total == 0, 1.0, total)


def active_by_language(
    views: dict[str, Views], languages: Mapping[str, jax.Array], count: int
) -> dict[str, jax.Array]:
    """Active terms by the language that a text is shown in.

    Args:
      languages: of the texts, [B] by text, in 0..count; `count` stands for all others.
      count: number of named languages.

    Returns:
      `active_{text}_{view}`: [2, count + 1], the sum of active terms over each
      language's texts, and the number of texts; see `by_name`.
    """
    found = {}
    for text, language_B in languages.items():
        is_KB = language_B[None, :] == jnp.arange(count + 1)[:, None]
        for name, view in views[text].items():
            if isinstance(view, SPARSE):
                sums_K = (is_KB * view.active_terms()[None, :]).sum(axis=1)
                found[f"active_{text}_{name}"] = jnp.stack([sums_K, is_KB.sum(axis=1)])
    return found


def as_floats(metrics: Mapping, languages: Sequence[str]) -> dict[str, float]:
    """A step's metrics from the device, with those by language under its name."""
    found = jax.device_get(metrics)
    by_language = found.pop("by_language", {})
    values = {name: float(value) for name, value in found.items()}
    return values | by_name(languages, by_language)


def by_name(
    languages: Sequence[str], found: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Means by language, as `active_query_terms/da`, of languages that have texts."""
    return {
        f"{name}/{language}": float(total / count)
        for name, sums in found.items()
        for language, total, count in zip((*languages, _OTHER), *sums, strict=True)
        if count
    }


@dataclasses.dataclass
class Watch:
    """Counts the steps in a row in which vectors of a text have too few or many terms.

    Attributes:
      sizes: of the views' vocabularies.
      lambdas: those of the config, by name; a step's own are among its numbers.
      coupled: a lambda of queries can empty documents too, and the reverse: one encoder
        is trained with both, or the regularizer is of both together.
    """

    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    lambdas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    coupled: bool = True
    empty: dict[str, int] = dataclasses.field(default_factory=dict)
    odd: dict[tuple[str, bool], int] = dataclasses.field(default_factory=dict)
    _reported: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def of(cls, spec, config) -> "Watch":
        """Of a student's spec and its stage's config."""
        chosen = regularizers.of(config.regularizer)
        coupled = chosen.entry.joint or not spec.roles_apart
        return cls(spec.views, chosen.options.lambdas, coupled)

    def look(self, numbers: dict[str, float], last: bool = False) -> str:
        """Why the run is lost, or an empty string; pops shares of 0 from `numbers`."""
        ends = ""
        for name in [name for name in numbers if name.startswith(_EMPTY)]:
            text, share = name.removeprefix(_EMPTY), numbers[name]
            steps = self.empty[text] = self.empty.get(text, 0) + 1 if share == 1 else 0
            if not share:
                del numbers[name]
            most = _PATIENCE if text in _SCORED else _PATIENCE_OF_PAIRS
            if not ends and (steps == most or (last and steps >= _AT_THE_END)):
                ends = text
        return self._collapsed(ends, numbers) if ends else ""

    def empty_now(self, numbers: Mapping[str, float]) -> str:
        """A warning, given once, that all vectors of a role are empty; or nothing.

        Not about pairs, whose empty vectors often come back (`_PATIENCE_OF_PAIRS`).
        """
        texts = self._empty_roles
        if not texts or _EMPTY in self._reported:
            return ""
        self._reported.add(_EMPTY)
        return (
            f"every {' and '.join(texts)} vector is empty, and the run stops after"
            f" {_PATIENCE} such steps in a row. {self._remedy(texts, numbers)}"
        )

    @property
    def _empty_roles(self) -> list[str]:
        """The roles without a term in the latest step."""
        return [text for text in _SCORED if self.empty.get(text)]

    def _collapsed(self, text: str, numbers: Mapping[str, float]) -> str:
        said = f"every {text} vector has been empty for {self.empty[text]:,} steps"
        if text not in _SCORED:
            return (
                f"{said}: the model has collapsed, and gives texts no terms. Lower"
                " config.optim.lr, lengthen the warm-up, or look at what it starts from"
                " (init.head, init.encoder): another stage would have nothing to go on"
                " from."
            )
        roles = self._empty_roles
        for other in roles:
            if other != text:
                said += f", and every {other} vector for {self.empty[other]:,}"
        return (
            f"{said}: the model has collapsed, and no gradient is left to bring it"
            f" back. {self._remedy(roles, numbers)}"
        )

    def _remedy(self, texts: Sequence[str], numbers: Mapping[str, float]) -> str:
        """Which lambdas could have emptied the roles, and what else to change."""
        values = {
            name: numbers[f"lambda_{name}"]
            for name in LAMBDAS
            if f"lambda_{name}" in numbers
            and (self.coupled or name.removeprefix("source_") in texts)
        }
        if not values:
            return (
                "No lambda is set that could have emptied them: lower config.optim.lr,"
                " lengthen its warm-up (config.optim.warmup_fraction), look at what the"
                " model starts from (init.head, init.encoder), or set"
                " config.regularizer.anti_zero."
            )
        largest = [name for name in values if values[name] == max(values.values())]
        others = [name for name in values if name not in largest]
        s, verb, them = ("s", "are", "them") if largest[1:] else ("", "is", "it")
        beside = f" (beside {self._valued(others, values)})" if others else ""
        return (
            f"The largest lambda{s} at this step {verb}"
            f" {self._valued(largest, values)}{beside}: lower {them} or"
            " config.optim.lr, let either rise longer (config.regularizer.schedule,"
            " config.optim.warmup_fraction), or set config.regularizer.anti_zero."
        )

    def _valued(self, names: Sequence[str], values: Mapping[str, float]) -> str:
        """Lambdas with their values, and where those differ with the config's."""
        found = []
        for name in names:
            value, whole = values[name], self.lambdas.get(name, values[name])
            same = abs(value - whole) <= 1e-3 * whole
            of = "" if same else f" ({whole:.3g} in the config)"
            found.append(f"config.regularizer.{name} = {value:.3g}{of}")
        return " and ".join(found)

    def odd_now(self, numbers: Mapping[str, float], last: bool = False) -> list[str]:
        """Warnings about vectors with too few or many terms, each given once."""
        found = []
        for name, value in numbers.items():
            text, _, view = name.removeprefix(_ACTIVE).partition("_")
            size = self.sizes.get(view)
            if not name.startswith(_ACTIVE) or not size:
                continue
            for dense in (True, False):
                odd = value > _DENSE * size if dense else value < _FEWEST
                steps = self.odd.get((name, dense), 0) + 1 if odd else 0
                self.odd[name, dense] = steps
                due = steps == _ODD_STEPS or (last and steps >= _AT_THE_END)
                if due and name not in self._reported:
                    self._reported.add(name)
                    said = _dense if dense else _nearly_empty
                    found.append(said(text, view, value, size))
        return found


def _dense(text: str, view: str, value: float, size: int) -> str:
    return (
        f"a {text} has {value:,.0f} active terms of {size:,} on average ({view}),"
        f" {value / size:.0%}: such vectors are not sparse, and an index of them is"
        " large and slow. A higher config.regularizer lambda, or longer training, makes"
        " them sparse."
    )


def _nearly_empty(text: str, view: str, value: float, size: int) -> str:
    return (
        f"a {text} has {value:.2g} active terms of {size:,} on average ({view}): most"
        " have none, and neither find nor are found by this view. A lower"
        " config.regularizer lambda, or a longer warm-up of it, leaves them terms."
    )
