"""What a batch of a stage contains, by the stage's config."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsrjax.data.batching import mixing
from lsrjax.data.batching.drawing import QUERIES, STUDENT
from lsrjax.errors import InputError
from lsrjax.losses import objective
from lsrjax.losses.group_weights import Groups
from lsrjax.models.backbones.encoder_config import STATED


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a batch of a stage contains.

    Attributes:
      languages: those that the log or the groups distinguish, if any.
      repeats: of each example in a batch: once per language with round robin.
    """

    config: Any
    objective: objective.Objective
    languages: tuple[str, ...]
    repeats: int

    @classmethod
    def of(cls, config) -> "Contents":
        """Parses a stage's config."""
        data, loss = config.data, objective.of(config.loss)
        repeats = 1
        if data.mixing == "round_robin":
            repeats = len(data.document_languages)
        languages = mixing.languages(data) if _told_apart(config, loss) else ()
        return cls(config, loss, languages, repeats)

    def of_sets(self, sets: Sequence) -> "Contents":
        """With the languages that the rows of the data sets name."""
        if not _told_apart(self.config, self.objective):
            return self
        named = [name for one in sets for name in getattr(one, "languages", ())]
        known = dict.fromkeys((*self.languages, *named))
        return dataclasses.replace(self, languages=tuple(known))

    @property
    def kind(self) -> str:
        """The kind of examples: "pair" or "group"."""
        return self.objective.kind

    @property
    def has_views(self) -> bool:
        """Whether a frozen teacher encodes the batch's texts, too."""
        return self.objective.reads_views

    @property
    def states_languages(self) -> bool:
        """Whether the student encodes each text in its own language."""
        return self.config.model.language == STATED

    @property
    def entries(self) -> int:
        """Distinct examples in a batch."""
        return self.config.batch_size // self.repeats

    @property
    def group_size(self) -> int:
        """Documents of a query, of the data set with the most."""
        return max(mixing.group_sizes(self.config.data))

    @property
    def texts(self) -> dict[str, int]:
        """Number of texts per example that the student encodes, at most, by name."""
        group = self.group_size
        return {
            name: group if name == "document" else 1 for name in self.objective.texts
        }

    @property
    def length_fields(self) -> list[str]:
        """The fields of `config.data` that limit the texts' lengths."""
        return ["document_length"] if self.kind == "pair" else list(_LENGTHS)

    @property
    def targets(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The largest shapes of a batch's other arrays, by name."""
        B, G = self.config.batch_size, self.group_size
        shapes = self.objective.arrays(B, G)
        if self.languages or self.config.dro.groups == "languages":
            shapes["query_language"] = jax.ShapeDtypeStruct((B,), jnp.int32)
            shapes["document_language"] = jax.ShapeDtypeStruct((B, G), jnp.int32)
        if self.config.dro.groups in ("sets", "topics"):
            shapes["set"] = jax.ShapeDtypeStruct((B,), jnp.int32)
        return shapes

    @property
    def groups(self) -> Groups:
        """The groups of queries that are weighed; none: their count is 0."""
        counts = {
            "": 0,
            "languages": len(self.languages) + 1,  # and all others
            "sets": len(self.config.data.sets),
            "topics": self.config.data.topics,
        }
        return Groups(counts[self.config.dro.groups], self.config.dro.rate)

    def group_of(self, targets: dict) -> jax.Array:
        """The group of each query of a batch, [B]."""
        by_language = self.config.dro.groups == "languages"
        return targets["query_language" if by_language else "set"]

    def steps(self, examples: int) -> int:
        """Optimizer steps of a stage: `steps`, or `epochs` over `examples`."""
        config = self.config
        if config.steps:
            return config.steps
        shown = config.batch_size // self.entries * examples
        return max(int(np.ceil(config.epochs * shown / config.batch_size)), 1)


_LENGTHS = ("query_length", "document_length")


def _told_apart(config, loss: objective.Objective) -> bool:
    """Whether the log or the groups distinguish languages."""
    asked = config.log.health or config.dro.groups == "languages"
    return asked and "document" in loss.texts


def check_batch(config, devices: int) -> None:
    """Raises an `InputError` unless the batch divides over the mesh's `data` axis."""
    size = config.batch_size
    if size % devices:
        near = sorted(
            {size // devices * devices or devices, -(-size // devices) * devices}
        )
        raise InputError(
            f"config.batch_size is {size}, which does not divide over the {devices}"
            f" devices of config.mesh.data. Take {' or '.join(map(str, near))}."
        )


def slots_of(batch: dict) -> int:
    """Tokens of the student's texts in a batch, including padding."""
    return sum(part["ids"].size for part in parts_of(batch))


def parts_of(batch: dict) -> list[dict]:
    """The parts of the student's texts in a batch, including separate queries."""
    cuts = [batch[name] for name in (QUERIES, STUDENT) if name in batch]
    return [part for cut in cuts for part in cut["parts"]]
