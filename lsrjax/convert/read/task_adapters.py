"""Adapters for tasks that a checkpoint holds beside each weight, as Jina v3 does.

Its code keeps a weight as `parametrizations.weight.original`, and for all tasks t at
once the factors of what it adds for one: alpha / rank B[t] A[t] (LoRA, Hu et al., 2021,
arXiv:2106.09685), or A[t] B[t] of tables.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lsrjax.convert.read.tensors import CheckpointError, Stored

_PARTS = ".parametrizations.weight."
_ORIGINAL = f"{_PARTS}original"
_FACTORS = (f"{_PARTS}0.lora_A", f"{_PARTS}0.lora_B")
# The weights without an adapter.
NONE = "none"


def merged(
    stored: Mapping[str, Stored], raw: Mapping[str, Any], folder: Path, task: str
) -> Mapping[str, Stored]:
    """The tensors by the names of plain weights, with a task's adapter added.

    Args:
      raw: the content of config.json, which names the tasks.
      task: one of them; 'none': no adapter; empty: only a checkpoint without.

    Raises:
      CheckpointError: there are adapters and no task, a task and no adapters, or they
        do not fit the weights.
    """
    layers = [
        name.removesuffix(_ORIGINAL) for name in stored if name.endswith(_ORIGINAL)
    ]
    if not layers:
        if task:
            raise CheckpointError(
                f"{folder} holds no adapters for tasks, so --adapter {task} cannot be"
                " taken. Leave it out."
            )
        return stored
    tasks = raw.get("lora_adaptations")
    tasks = [str(one) for one in tasks] if isinstance(tasks, list) else []
    if task not in (*tasks, NONE):
        asked = f"--adapter {task} is none of them. " if task else ""
        raise CheckpointError(
            f"{folder} holds adapters (LoRA) for the tasks {', '.join(tasks) or '?'}."
            f" {asked}Merge one into the weights: lsrjax convert --from"
            " MODEL --to lsrjax --out converted --adapter TASK, or --adapter none for"
            " the weights without. Then name the folder 'converted'."
        )
    scale = 0.0
    if task != NONE:
        scale = _scale(raw, folder)
    found = {name: one for name, one in stored.items() if _PARTS not in name}
    for layer in layers:
        one = stored[f"{layer}{_ORIGINAL}"]
        if task != NONE:
            factors = [stored.get(f"{layer}{name}") for name in _FACTORS]
            one = _merged(one, factors, tasks.index(task), len(tasks), scale)
        found[f"{layer}.weight"] = one
    return found


def _scale(raw: Mapping[str, Any], folder: Path) -> float:
    alpha: Any = raw.get("lora_alpha")
    rank: Any = raw.get("lora_rank")
    if type(alpha) not in (int, float) or type(rank) is not int or rank < 1:
        raise CheckpointError(
            f"{folder / 'config.json'}: lora_alpha is {alpha!r} and lora_rank {rank!r},"
            " which have to be a number and a whole number above 0. Take the"
            " config.json of the weights."
        )
    return alpha / rank


def _merged(
    one: Stored, factors: list[Stored | None], task: int, tasks: int, scale: float
) -> Stored:
    """A weight that has its adapter added when it is read."""
    a, b = factors
    if a is None or b is None:
        raise CheckpointError(
            f"{one.path}: {one.name} has no adapter beside it ({' and '.join(_FACTORS)}"
            " behind its layer's name). Download or save the file again."
        )
    rows, columns = one.shape
    of_layer = (a.shape[0], b.shape[1:2], a.shape[2:]) == (tasks, (rows,), (columns,))
    of_table = (a.shape[0], a.shape[1:2], b.shape[2:]) == (tasks, (rows,), (columns,))
    left, right = (b, a) if of_layer else (a, b)
    if not (of_layer or of_table) or left.shape[2] != right.shape[1]:
        raise CheckpointError(
            f"{one.path}: {one.name} {list(one.shape)} has an adapter of the shapes"
            f" {list(a.shape)} and {list(b.shape)} for {tasks} tasks, which do not fit."
            " Take config.json and weights from the same checkpoint."
        )

    def read() -> np.ndarray:
        product = left.floats()[task] @ right.floats()[task]
        return one.floats() + np.float32(scale) * product

    return dataclasses.replace(one, dtype="float32", read=read)
