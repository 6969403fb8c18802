"""Mines a stage's negatives again with its own model, at regular intervals.

Xiong et al., "Approximate Nearest Neighbor Negative Contrastive Learning" (ANCE, 2021);
with frozen documents, Zhan et al., "Optimizing Dense Retrieval Model Training with Hard
Negatives" (ADORE, 2021).

What is mined at step k depends on the parameters at step k only. `mined/<k>.npz` is
written before step k + 1, with a fingerprint of those parameters: a run that resumes
between two such steps reads it, and one that comes to step k again mines again unless
the fingerprint is the same.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lsrjax.checkpoint import digests
from lsrjax.data.batching import loader
from lsrjax.distributed import processes, sharding, trees
from lsrjax.training.left_out import left_out

FOLDER = "mined"


@dataclasses.dataclass
class MinedAgain:
    """The sources with negatives of a stage's own model, by the step they are from.

    Attributes:
      make: parameters, the file to keep and its number to a source.
      read: such a file to a source; InputError if it cannot be used.
    """

    every: int
    folder: pathlib.Path
    make: Callable[[dict, pathlib.Path, str, int], object]
    read: Callable[[pathlib.Path], object]

    def __post_init__(self):
        self._number = itertools.count()

    def path(self, step: int) -> pathlib.Path:
        """The file of what was mined at a step."""
        return self.folder / FOLDER / f"{step}.npz"

    def due(self, step: int) -> bool:
        """Whether negatives are mined at a step, before the next one."""
        return step > 0 and step % self.every == 0

    def at(self, params: dict, step: int):
        """Mines at a step, or reads what was mined of the same parameters."""
        number, path = next(self._number), self.path(step)
        if processes.is_first():
            path.parent.mkdir(exist_ok=True)
            self._remove_unneeded(step)
        return self.make(params, path, fingerprint(params), number)

    def before(self, step: int):
        """What was mined last before a step; None if nothing was."""
        last = (step - 1) // self.every * self.every
        return self.read(self.path(last)) if last > 0 else None

    def _remove_unneeded(self, step: int) -> None:
        """Removes files that no checkpoint from which the run may resume reads."""
        resumed = [*digests.recorded_steps(self.folder), step]
        needed = {self.path((s - 1) // self.every * self.every) for s in resumed}
        oldest = min(resumed)
        for path in (self.folder / FOLDER).glob("*.npz"):
            old = path.stem.isdecimal() and int(path.stem) < oldest
            if old and path not in needed:
                path.unlink()


def fingerprint(params) -> str:
    """Distinguishes parameters, however they are divided over devices.

    Integer sums of bits, weighted by place, are the same in any order.
    """

    def mixed(leaf: jax.Array, seed: int) -> jax.Array:
        kind = jnp.dtype(f"uint{leaf.dtype.itemsize * 8}")
        bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
        place = jnp.full(leaf.shape, seed, jnp.uint32)
        for axis in range(leaf.ndim):
            own = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            place = place * np.uint32(0x9E3779B1) + own
        mixed = (bits ^ (place * np.uint32(0x85EBCA6B))) * (2 * place + 1)
        return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)

    def sums(params):
        leaves = jax.tree.leaves(params)
        return jnp.stack(
            [
                sum(mixed(leaf, 7919 * i + seed) for i, leaf in enumerate(leaves))
                for seed in (1, 104_729)
            ]
        )

    mesh = jax.sharding.get_mesh()
    everywhere = None if mesh.empty else sharding.replicated(mesh)
    found = np.asarray(jax.jit(sums, out_shardings=everywhere)(params))
    return "".join(f"{int(part):08x}" for part in found)


def documents_frozen(frozen, separate: bool) -> bool:
    """Whether no parameter that encodes documents is trained.

    Args:
      frozen: tree of bools, as of `train_step.Step`.
      separate: queries have their own parameters.
    """
    named = trees.named(frozen)
    return separate and all(
        still for name, still in named.items() if not name.startswith("query_tower")
    )


class Feed(Iterator[dict]):
    """The batches of a stage's steps, from sources as they are mined."""

    def __init__(self, stage, first: int):
        """Starts before step `first`; reads what was mined before it."""
        self._stage, self._again = stage, stage.mined_again
        self._batches: Iterator[dict] = iter(())
        # What is due at `first` is mined when the loop comes to it.
        if not self.due(first):
            source = self._again.before(first) if self._again else None
            self._begin(source or stage.source, first)

    def due(self, step: int) -> bool:
        """Whether negatives are mined between a step and the next."""
        more = step < self._stage.total_steps
        return bool(self._again and more and self._again.due(step))

    def mine(self, params: dict, step: int) -> None:
        """Goes on with negatives of these parameters."""
        self.close()
        self._begin(self._again.at(params, step), step)

    def _begin(self, source, first: int) -> None:
        stage = self._stage
        data, mesh = stage.config.data, stage.layout.mesh
        batches = stage.batches if source is stage.source else stage.batches.on(source)
        stage.post_mortem.batches = batches
        stop = stage.total_steps
        if self._again:
            stop = min(stop, (first // self._again.every + 1) * self._again.every)
        stream = loader.stream(
            batches,
            first,
            stop,
            threads=data.threads,
            prefetch=data.prefetch,
            left_out=left_out(stage.folder),
        )
        rows = sharding.local_rows(mesh)
        self._batches = (sharding.to_global(batch, mesh, rows) for batch in stream)

    def __next__(self) -> dict:
        return next(self._batches)

    def close(self) -> None:
        """Stops reading ahead."""
        if hasattr(self._batches, "close"):
            self._batches.close()
