"""Reports on steps whose numbers were bad."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lsrjax import json_files
from lsrjax.data.batching import loader
from lsrjax.data.batching.turns import Turns
from lsrjax.distributed import processes, sharding
from lsrjax.distributed.trees import path_name
from lsrjax.training import train_step
from lsrjax.training.bad_steps import BadNumbers
from lsrjax.training.left_out import left_out

FOLDER = "postmortem"
_BEGINNING = 100  # characters of a text


@dataclasses.dataclass
class PostMortem:
    """Writes files about a stage's bad steps, and notes their paths."""

    folder: pathlib.Path
    step: train_step.Step
    batches: loader.Batches | Turns
    teacher_params: dict | None
    mesh: jax.sharding.Mesh
    note: Callable[[str], None]

    def __post_init__(self):
        # Replicated, so that each process can read them.
        everywhere = sharding.replicated(self.mesh)
        self._examine = jax.jit(self._examined, out_shardings=everywhere)

    def write(self, state: dict, error: BadNumbers) -> None:
        """Writes `postmortem/<step>.json`.

        The step's batch runs again on `state`, from a checkpoint or a few steps later.
        If its gradient is sound there, the fault is in the step's own state rather than
        the batch.
        """
        number = loader.batch_of(error.step - 1, left_out(self.folder))
        batch = sharding.to_global(
            self.batches[number], self.mesh, sharding.local_rows(self.mesh)
        )
        seen = jax.device_get(self._examine(state, self.teacher_params, batch))
        path = self.folder / FOLDER / f"{error.step}.json"
        if processes.is_first():
            path.parent.mkdir(exist_ok=True)
            values = {
                "step": error.step,
                "why": str(error),
                "numbers": error.values,
                "batch": number,
                "examples": [
                    {"example": example, **_beginnings(self.batches.source[example])}
                    for example in self.batches.examples(number)
                ],
                "run_again_at_step": int(state["step"]),
                **seen,
            }
            json_files.write_json(path, _as_json(values))
        self.note(f"  {error} See {path}")

    def _examined(self, state: dict, teacher_params, batch: dict) -> dict:
        parts, grads = self.step.examined(state, teacher_params, batch)
        return {
            "loss": parts,
            "gradients": statistics(grads),
            "parameters": statistics(state["params"]),
        }


def statistics(tree) -> dict[str, dict[str, jax.Array]]:
    """Statistics that reveal bad tensors.

    Returns:
      By the tensor's path: `max_abs`, the largest absolute finite value; `mean` of the
      finite values; `not_finite`, the number of others.
    """
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        finite = jnp.isfinite(leaf)
        sound = jnp.where(finite, leaf, 0).astype(jnp.float32)
        found[path_name(path)] = {
            "max_abs": jnp.abs(sound).max(),
            "mean": sound.sum() / jnp.maximum(finite.sum(), 1),
            "not_finite": (~finite).sum(),
        }
    return found


def _beginnings(example) -> dict:
    return {
        field.name: _beginning(getattr(example, field.name))
        for field in dataclasses.fields(example)
        if field.repr
    }


def _beginning(value):
    if isinstance(value, str):
        return value[:_BEGINNING]
    if isinstance(value, Mapping):
        return {key: _beginning(text) for key, text in value.items()}
    if isinstance(value, list | tuple):
        return [_beginning(one) for one in value]
    return value


def _as_json(value):
    """Converts arrays to plain numbers, and numbers that JSON lacks to text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
