"""Retrievers written to and read from a stage's folder."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lsrjax import finite
from lsrjax.checkpoint import digests
from lsrjax.checkpoint.files import (
    CHECKPOINTS,
    DONE_FILE,
    MODEL_FILE,
    PIVOT_TOKENIZER,
    TOKENIZER,
    write_json,
)
from lsrjax.checkpoint.set_damaged_aside import listing
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.heads import head_class
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.tokenizer.writing import write_tokenizer

# The files that `save_model` writes, as patterns relative to the folder.
MODEL_FILES = (MODEL_FILE, DONE_FILE) + tuple(
    f"{folder}/*"
    for folder in (TOKENIZER, PIVOT_TOKENIZER, CHECKPOINTS, digests.DIGESTS)
)


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A retriever with its weights and tokenizers.

    Attributes:
      params: nested dict of host arrays.
      tokenizer: folder of the tokenizer of the encoder's vocabulary.
      pivot_tokenizer: MILCO: folder of the English tokenizer.
      name: where it came from, for messages.
      lengths: limits of texts in tokens, by role, if the model's own files state them.
      unused: tensors of its files that nothing here uses, by their names there, for an
        export to the same format.
      dev: metrics of these weights on a run's dev data; may be empty.
    """

    spec: RetrieverSpec
    params: dict[str, Any]
    tokenizer: pathlib.Path
    pivot_tokenizer: pathlib.Path | None
    name: str
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    unused: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    dev: dict[str, float] = dataclasses.field(default_factory=dict)


def write_model_files(
    folder: pathlib.Path,
    spec: RetrieverSpec,
    tokenizer: pathlib.Path,
    pivot_tokenizer: pathlib.Path | None,
) -> None:
    """Writes the files that make a stage's checkpoints usable on their own.

    Raises:
      InputError: the folder already contains another architecture.
    """
    path = folder / MODEL_FILE
    values = json.loads(json.dumps(spec.to_dict()))
    if path.is_file():
        # A file of an earlier release lacks newer fields.
        found = json.loads(json.dumps(_read_spec(path).to_dict()))
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
            write_tokenizer(temporary, source)
            temporary.rename(folder / name)
    if not path.is_file():
        # Only once, so that the digests remain valid.
        write_json(path, values)


def _differences(found, wanted, prefix=""):
    for key in sorted(found.keys() | wanted.keys()):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"  {prefix}{key}: folder {a!r}, config {b!r}"


def load_model(folder: str | pathlib.Path) -> SavedModel:
    """Reads a stage's retriever from its last checkpoint.

    The folder may also be that of a run with a single stage.

    Raises:
      InputError: no model or no checkpoint there, a damaged one, or one with numbers
        that are not finite.
    """
    folder = _stage_folder(pathlib.Path(folder))
    step = _checked_step(folder)
    spec = load_spec(folder)
    manager = ocp.CheckpointManager(
        (folder / CHECKPOINTS).absolute(),
        options=ocp.CheckpointManagerOptions(create=False),
    )
    _, abstract = retriever.split(spec)
    # The optimizer's state is not read.
    restored = manager.restore(
        step,
        args=ocp.args.PyTreeRestore(
            item={"params": abstract},
            # To the host: the caller knows the devices.
            restore_args=jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), {"params": abstract}
            ),
            partial_restore=True,
        ),
    )
    manager.close()
    finite.check_tree(restored["params"], f"{folder}, checkpoint of step {step:,}")
    pivot = folder / PIVOT_TOKENIZER
    return SavedModel(
        spec,
        restored["params"],
        folder / TOKENIZER,
        pivot if pivot.is_dir() else None,
        str(folder),
        dev=digests.read(folder, step).dev,
    )


def _checked_step(folder: pathlib.Path) -> int:
    """The last step of a stage, after every byte of it was verified."""
    digests.check_has_digests(folder)
    steps = digests.recorded_steps(folder)
    if not steps:
        raise InputError(f"{folder}: no checkpoint was finished there. Train it first.")
    if found := digests.damage(folder, steps[-1]):
        raise InputError(
            f"{folder}: the last checkpoint, of step {steps[-1]:,}, is damaged:\n"
            f"{listing(found)}\nStart its run again: it sets the damaged files aside"
            " and trains on from the newest sound checkpoint. Or put a copy of them"
            " back."
        )
    return steps[-1]


def save_model(folder: pathlib.Path, model: SavedModel) -> None:
    """Writes a retriever as the folder of a finished stage, for `load_model`.

    The folder exists. InputError if a parameter is not finite.
    """
    finite.check_tree(model.params, model.name)
    write_model_files(folder, model.spec, model.tokenizer, model.pivot_tokenizer)
    manager = ocp.CheckpointManager((folder / CHECKPOINTS).absolute())
    state = {"params": jax.tree.map(np.asarray, model.params)}
    manager.save(0, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    manager.close()
    digests.write(folder, 0, dict(model.dev))
    write_json(folder / DONE_FILE, {"steps": 0})


def load_shapes(folder: str | pathlib.Path, name: str) -> SavedModel:
    """Like `load_model`, with the shapes of the parameters, without their numbers."""
    folder = _stage_folder(pathlib.Path(folder))
    spec = load_spec(folder)
    tokenizers = (folder / TOKENIZER, folder / PIVOT_TOKENIZER)
    own, pivot = (path if path.is_dir() else None for path in tokenizers)
    return SavedModel(spec, retriever.split(spec)[1], own, pivot, name)


def load_spec(folder: str | pathlib.Path) -> RetrieverSpec:
    """A stage's architecture, without its weights.

    Raises:
      InputError: there is none, or its head is code that the user has not named;
        nothing is imported.
    """
    return _read_spec(_stage_folder(pathlib.Path(folder)) / MODEL_FILE)


def _read_spec(path: pathlib.Path) -> RetrieverSpec:
    """Reads the spec that `write_model_files` wrote; errors as of `load_spec`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        head = values["head"]
    except (ValueError, TypeError, KeyError) as error:
        raise _no_retriever(path, error) from error
    try:
        head_class(head)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    try:
        return RetrieverSpec.from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _no_retriever(path, error) from error


def _no_retriever(path: pathlib.Path, error: Exception) -> InputError:
    problem = str(error).removesuffix(".")
    return InputError(
        f"{path} describes no retriever: {problem}. Put back the file that the run"
        " wrote."
    )


def holds_stages(folder: str | pathlib.Path) -> bool:
    """Whether a path is a stage's folder, or a run's."""
    return bool(stage_folders(pathlib.Path(folder)))


def stage_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders of the stages of a run; of a stage, itself."""
    if (folder / MODEL_FILE).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{MODEL_FILE}"))


def _stage_folder(folder: pathlib.Path) -> pathlib.Path:
    folders = stage_folders(folder)
    if len(folders) != 1:
        found = ", ".join(path.name for path in folders) or "none"
        raise InputError(
            f"{folder} is not one trained stage (stages found: {found}). Give the"
            " folder of a stage, <workdir>/<stage>."
        )
    return folders[0]
