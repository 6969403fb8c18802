"""The weighted sum of losses that a config names."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lsrjax.errors import InputError
from lsrjax.lookup import entry
from lsrjax.losses import losses
from lsrjax.models.views import Views


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weighted sum of losses that a config names.

    Attributes:
      config: `config.loss`.
      weights: of the losses, by name.
    """

    config: Any
    weights: Mapping[str, float]

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of a batch that the student encodes; all losses read the same."""
        return _loss(next(iter(self.weights))).texts

    @property
    def targets(self) -> frozenset[str]:
        """All that any of the losses compares them with, of `losses.TARGETS`."""
        found = set()
        for name in self.weights:
            found |= set(_loss(name).targets)
            for option, target in _loss(name).options.items():
                if target and self.config[option]:
                    found.add(target)
        return frozenset(found)

    @property
    def kind(self) -> str:
        """Of the examples that they are computed of: "pair" or "group"."""
        return "pair" if "views" in self.targets else "group"

    @property
    def options(self) -> frozenset[str]:
        """The fields of `config.loss` that any of them reads."""
        return frozenset(o for name in self.weights for o in _loss(name).options)

    def arrays(self, queries: int, group: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch's `targets`, by name.

        Args:
          queries: B.
          group: G, documents of each.
        """
        shapes = {}
        if "scores" in self.targets:
            shapes["scores"] = jax.ShapeDtypeStruct((queries, group), jnp.float32)
        if "keys" in self.targets:
            key = jax.ShapeDtypeStruct((queries, 2), jnp.int32)
            keys = jax.ShapeDtypeStruct((queries, group, 2), jnp.int32)
            shapes |= {"query_key": key, "document_key": keys}
        return shapes

    def __call__(self, views: dict[str, Views], targets) -> dict[str, jax.Array]:
        """The weighted parts by name, which add up; scalars.

        Args:
          views: the student's, by text.
          targets: the batch's; a teacher's views under "teacher", and the number of
            "languages".
        """
        parts = {}
        for name, weight in self.weights.items():
            options = {option: self.config[option] for option in _loss(name).options}
            found = _loss(name).fn(views, targets, **options)
            parts |= {part: weight * value for part, value in found.items()}
        return parts


def of(config, where: str = "config.loss") -> Objective:
    """What a stage's `config.loss` names: a loss, or `"kl:1,margin_mse:0.05"`.

    Args:
      config: `config.loss`; a loss without a weight has the weight 1.
      where: its name, for errors.

    Raises:
      InputError: an unknown loss, a weight that is no number > 0, a loss named twice,
        or losses of different texts.
    """
    weights = {}
    for part in config.name.split(","):
        name, colon, weight = part.partition(":")
        name = name.strip()
        if name not in losses.LOSSES and "." not in name:
            known = ", ".join(map(repr, losses.LOSSES))
            raise InputError(
                f"{where}.name is {config.name!r}; known: {known}, or the dotted name"
                " of one of your own. A sum is written 'kl:1,margin_mse:0.05'."
            )
        if name in weights:
            raise InputError(
                f"{where}.name is {config.name!r}: {name} stands there twice. Give it"
                " one weight."
            )
        weights[name] = _weight(weight, where, config.name, name) if colon else 1.0
    first, *others = weights
    for other in others:
        if _loss(other).texts != _loss(first).texts:
            raise InputError(
                f"{where}.name is {config.name!r}: {first} reads the texts"
                f" {' and '.join(_loss(first).texts)}, but {other}"
                f" {' and '.join(_loss(other).texts)}. Train them in stages of their"
                " own."
            )
    return Objective(config, weights)


def _loss(name: str) -> losses.Loss:
    found = entry(losses.LOSSES, name, "config.loss.name")
    if not isinstance(found, losses.Loss):
        raise InputError(
            f"config.loss.name is {name!r}, which is no lsrjax.losses.losses.Loss but"
            f" {type(found).__name__}. Wrap the function in one."
        )
    return found


def _weight(text: str, where: str, whole: str, name: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise InputError(
            f"{where}.name is {whole!r}: the weight of {name} is {text!r}; it must be a"
            " number > 0."
        )
    return weight
