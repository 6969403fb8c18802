"""The weighted sum of losses that a config names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lsrjax.errors import InputError
from lsrjax.losses.table import LOSSES
from lsrjax.models.masking import Masking
from lsrjax.models.views import Views, score_all
from lsrjax.options import Chosen, resolve_each


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses that a config names, with their options; their weighted sum."""

    losses: tuple[Chosen, ...]

    @property
    def weights(self) -> dict[str, float]:
        """The losses' weights, by name."""
        return {one.name: one.options.weight for one in self.losses}

    @property
    def name(self) -> str:
        """The losses' names, for messages."""
        return " + ".join(one.name for one in self.losses)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of a batch that the student encodes; all losses read the same."""
        return self.losses[0].entry.texts

    @property
    def targets(self) -> frozenset[str]:
        """All targets of the losses, from `loss.TARGETS`."""
        return frozenset(
            target
            for one in self.losses
            for target in (*one.entry.targets, *one.options.targets())
        )

    @property
    def compares_documents(self) -> bool:
        """Whether a loss compares the scores of a query's own documents."""
        return any(
            "scores" in (*one.entry.targets, *one.options.targets())
            and not one.entry.compares_queries
            for one in self.losses
        )

    @property
    def masking(self) -> Masking | None:
        """How tokens of the student's texts are masked, for one of the losses."""
        return next(
            (found for one in self.losses if (found := one.options.masking())), None
        )

    @property
    def kind(self) -> str:
        """The kind of examples that they need: "pair" or "group"."""
        return "group" if "document" in self.texts else "pair"

    @property
    def reads_views(self) -> bool:
        """Whether a frozen teacher encodes the batch's texts."""
        return not self.targets.isdisjoint(("views", "all_scores"))

    def of_teacher(self, views: dict[str, Views]) -> dict[str, Any]:
        """The targets that a teacher's views of the batch give, by text."""
        found: dict[str, Any] = {"teacher": views}
        if "all_scores" in self.targets:
            found["all_scores"] = score_all(views["query"], views["document"])
        return found

    def arrays(self, queries: int, group: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch's `targets` by name, for B queries of G documents."""
        shapes = {}
        if "scores" in self.targets:
            shapes["scores"] = jax.ShapeDtypeStruct((queries, group), jnp.float32)
        if "keys" in self.targets:
            key = jax.ShapeDtypeStruct((queries, 2), jnp.int32)
            keys = jax.ShapeDtypeStruct((queries, group, 2), jnp.int32)
            shapes |= {"query_key": key, "document_key": keys}
        return shapes

    def check_views(self, sizes: Mapping[str, int], where: str) -> None:
        """Refuses options that contradict the sizes of the student's views, by name.

        Raises:
          InputError: such as a prefix that is longer than the embedding.
        """
        for one in self.losses:
            one.options.check_views(sizes, f"{where}.{one.name}")

    def __call__(self, views: dict[str, Views], targets) -> dict[str, jax.Array]:
        """The weighted parts by name, scalars, which add up; see `by_query`."""
        return {k: v.mean() for k, v in self.by_query(views, targets).items()}

    def by_query(self, views: dict[str, Views], targets) -> dict[str, jax.Array]:
        """The weighted parts by name: [B], of each query, or scalars.

        Args:
          views: the student's, by text.
          targets: the batch's, those of `of_teacher`, and the numbers of "languages"
            and "positives".
        """
        parts: dict[str, jax.Array] = {}
        for one in self.losses:
            whole = ("", 1.0, views)
            for suffix, share, seen in (whole, *one.options.shorter(views)):
                found = one.entry.fn(seen, targets, one.options)
                weight = share * one.options.weight
                parts |= {f"{part}{suffix}": weight * of for part, of in found.items()}
        return parts


def of(config: Mapping[str, Any], where: str = "config.loss") -> Objective:
    """Parses a `config.loss`, as `{"kl": {}, "margin_mse": {"weight": 0.05}}`.

    Raises:
      InputError: no loss, an unknown loss or option, or losses of different texts.
    """
    found = resolve_each(LOSSES, config, where)
    if not found:
        known = ", ".join(map(repr, LOSSES))
        raise InputError(f"{where} names no loss. Known: {known}.")
    first, *others = found
    for other in others:
        if other.entry.texts != first.entry.texts:
            raise InputError(
                f"{where}: {first.name} reads the texts"
                f" {' and '.join(first.entry.texts)}, but {other.name}"
                f" {' and '.join(other.entry.texts)}. Train them in stages of their"
                " own."
            )
    masking = [one.name for one in found if one.options.masking()]
    if len(masking) > 1:
        raise InputError(
            f"{where}: {' and '.join(masking)} each mask the texts in their own way."
            " Keep one of them."
        )
    return Objective(tuple(found))
