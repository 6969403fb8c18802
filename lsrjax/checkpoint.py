"""Checkpoints of a stage, and retrievers read back from a stage's folder.

A stage's folder holds `model.json` (its `RetrieverSpec`), `tokenizer/`,
`pivot_tokenizer/` (MILCO), `checkpoints/<step>/`, `metrics.jsonl` and, once the stage
is finished, `done.json`.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.trees import path_name

MODEL_FILE = "model.json"
DONE_FILE = "done.json"
TOKENIZER = "tokenizer"
PIVOT_TOKENIZER = "pivot_tokenizer"


class Checkpoints:
    """The last and the best train states of a stage, saved asynchronously."""

    def __init__(self, folder: pathlib.Path, *, keep: int, metric: str):
        """Opens the checkpoints in a stage's folder.

        Args:
          folder: the stage's folder.
          keep: last checkpoints to keep.
          metric: name of the dev metric whose best checkpoint is kept besides.
        """

        def value(dev):
            return dev.get(metric, -math.inf)

        best = BestN(n=1, get_metric_fn=value, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            (folder / "checkpoints").absolute(),
            # Without it, a manager that has saved nothing yet reads no metadata.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
                # Only with it are the metrics kept beside the checkpoint, so that a
                # run that goes on knows its best one.
                best_fn=value,
                # A writer that was killed leaves its unfinished step behind.
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: dict, dev: dict[str, float] | None) -> None:
        """Starts writing a state; the step is the state's.

        Args:
          state: as `lsrjax.train.init_state` makes it.
          dev: dev metrics of this step, if it was evaluated.
        """
        if jax.default_backend() == "cpu":
            # On CPU the writer reads the state's own buffers, which the next step is
            # given to overwrite.
            state = jax.tree.map(jnp.copy, state)
        self._manager.save(
            int(state["step"]), args=ocp.args.StandardSave(state), metrics=dev or {}
        )

    def latest_step(self) -> int | None:
        """The last step saved whole, or None."""
        return self._manager.latest_step()

    def restore(self, abstract_state: dict, step: int) -> dict:
        """The state of a step, as it was saved.

        Args:
          abstract_state: shapes and types that the state must have.
          step: one that was saved.

        Raises:
          InputError: the checkpoint is of another architecture (differences listed).
        """
        folder = self._manager.directory / str(step)
        _compare(folder, self._manager.item_metadata(step), abstract_state)
        return self._manager.restore(
            step, args=ocp.args.StandardRestore(abstract_state)
        )

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _compare(where, found, wanted) -> None:
    found = {path_name(p): v.shape for p, v in _leaves(found)}
    wanted = {path_name(p): v.shape for p, v in _leaves(wanted)}
    lines = [
        f"  {name}: checkpoint {found.get(name, 'has none')},"
        f" config {wanted.get(name, 'has none')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if lines:
        raise InputError(
            f"The checkpoint {where} is of another architecture than the config"
            f" describes:\n" + "\n".join(lines[:20]) + "\nUse the config it was made"
            " with, or another --workdir."
        )


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda x: x, _plain(tree)),
        is_leaf=lambda x: hasattr(x, "shape"),
    )


def _plain(tree):
    return tree.tree if hasattr(tree, "tree") else tree


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A retriever with its weights and tokenizers.

    Attributes:
      spec: what it is.
      params: nested dict of host arrays.
      tokenizer: folder of the tokenizer of the encoder's vocabulary.
      pivot_tokenizer: MILCO: folder of the English tokenizer.
      name: where it came from, for messages.
      lengths: tokens that texts are cut to, by role ("query", "document"), where the
        model's own files say so.
      unused: tensors of its files that nothing here uses, by their names there, for an
        export to the same format.
    """

    spec: RetrieverSpec
    params: dict[str, Any]
    tokenizer: pathlib.Path
    pivot_tokenizer: pathlib.Path | None
    name: str
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    unused: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def write_model_files(
    folder: pathlib.Path,
    spec: RetrieverSpec,
    tokenizer: pathlib.Path,
    pivot_tokenizer: pathlib.Path | None,
) -> None:
    """Writes what a stage's checkpoints need to be used alone.

    Raises:
      InputError: the folder already holds another architecture.
    """
    path = folder / MODEL_FILE
    values = json.loads(json.dumps(spec.to_dict()))
    if path.is_file():
        found = json.loads(path.read_text())
        if found != values:
            raise InputError(
                f"{folder} holds a model of another architecture:\n"
                + "\n".join(_differences(found, values))
                + "\nUse the config it was made with, or another --workdir."
            )
    for name, source in ((TOKENIZER, tokenizer), (PIVOT_TOKENIZER, pivot_tokenizer)):
        if source is not None and not (folder / name).exists():
            temporary = folder / f"{name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                if (source / file).is_file():
                    shutil.copy(source / file, temporary)
            temporary.rename(folder / name)
    write_json(path, values)


def _differences(found, wanted, prefix=""):
    for key in sorted(found.keys() | wanted.keys()):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"  {prefix}{key}: folder {a!r}, config {b!r}"


def write_json(path: pathlib.Path, values) -> None:
    """Writes JSON so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_model(folder: str | pathlib.Path) -> SavedModel:
    """Reads a stage's retriever from its last checkpoint.

    Args:
      folder: a stage's folder, or a run's folder with a single stage.

    Raises:
      InputError: no model or no checkpoint there.
    """
    folder = _stage_folder(pathlib.Path(folder))
    spec = load_spec(folder)
    manager = ocp.CheckpointManager(
        (folder / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(create=False),
    )
    step = manager.latest_step()
    if step is None:
        raise InputError(f"{folder}: no checkpoint was finished there. Train it first.")
    _, abstract = retriever.split(spec)
    # The optimizer's state stays on disk.
    restored = manager.restore(
        step,
        args=ocp.args.PyTreeRestore(
            item={"params": abstract},
            # To the host: whoever uses them knows the devices.
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), {"params": abstract}
            ),
            partial_restore=True,
        ),
    )
    manager.close()
    pivot = folder / PIVOT_TOKENIZER
    return SavedModel(
        spec,
        restored["params"],
        folder / TOKENIZER,
        pivot if pivot.is_dir() else None,
        str(folder),
    )


def save_model(folder: pathlib.Path, model: SavedModel) -> None:
    """Writes a retriever as the finished folder of a stage, for `load_model`.

    Args:
      folder: where to; it exists.
      model: a `SavedModel`, or whatever has its attributes.
    """
    write_model_files(folder, model.spec, model.tokenizer, model.pivot_tokenizer)
    manager = ocp.CheckpointManager((folder / "checkpoints").absolute())
    state = {"params": jax.tree.map(np.asarray, model.params)}
    manager.save(0, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    manager.close()
    write_json(folder / DONE_FILE, {"steps": 0})


def load_spec(folder: str | pathlib.Path) -> RetrieverSpec:
    """What a stage's retriever is, without its weights.

    Args:
      folder: as in `load_model`.
    """
    folder = _stage_folder(pathlib.Path(folder))
    return RetrieverSpec.from_dict(json.loads((folder / MODEL_FILE).read_text()))


def holds_stages(folder: str | pathlib.Path) -> bool:
    """Whether a path is a stage's folder, or a run's."""
    return bool(_stage_folders(pathlib.Path(folder)))


def _stage_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / MODEL_FILE).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{MODEL_FILE}"))


def _stage_folder(folder: pathlib.Path) -> pathlib.Path:
    folders = _stage_folders(folder)
    if len(folders) != 1:
        found = ", ".join(path.name for path in folders) or "none"
        raise InputError(
            f"{folder} is not one trained stage (stages found: {found}). Give the"
            " folder of a stage, <workdir>/<stage>."
        )
    return folders[0]
