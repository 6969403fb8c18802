"""Retrievers written to and read from a stage's folder."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lsrjax import finite, json_files, paths
from lsrjax.checkpoint import digests
from lsrjax.checkpoint.names_on_disk import (
    CHECKPOINTS,
    DONE_FILE,
    ITEM,
    MODEL_FILE,
    PIVOT_TOKENIZER,
    TOKENIZER,
)
from lsrjax.checkpoint.set_damaged_aside import listing
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.models import low_rank, prompt_rows, retriever
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
    """A retriever with its weights and tokenizers, and what is known of its training.

    Attributes:
      spec: what it is; of a cross-encoder, a `CrossEncoderSpec`.
      params: nested dict of host arrays.
      tokenizer: folder of the tokenizer of the encoder's vocabulary; None where a plan
        has none.
      pivot_tokenizer: MILCO: folder of the English tokenizer.
      name: where it came from, for messages and the model card.
      query_length: tokens a query is cut to; 0: its files do not say.
      document_length: tokens a document is cut to; 0 as above.
      config: of the stage that trained it; None where that is not known.
      results: of the run's evaluation, by language and metric; None without one.
      evaluation: the same beside other systems, as Markdown; empty without one.
      factors: what it was adapted by, which its weights contain, see
        `low_rank.factors`; empty where all was trained.
      unused: tensors of its files that nothing here uses, by their names there, for an
        export to the same format.
      dev: metrics of these weights on the run's dev data; empty without.
      stages: configs of all stages of the run by name, which `stage:NAME` refers to.
    """

    spec: RetrieverSpec | Any
    params: dict[str, Any]
    tokenizer: pathlib.Path | Any
    pivot_tokenizer: pathlib.Path | None
    name: str
    query_length: int = 0
    document_length: int = 0
    config: Mapping[str, Any] | None = None
    results: Mapping[str, Any] | None = None
    evaluation: str = ""
    unused: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    dev: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stages: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    factors: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def digest(self) -> str:
        """Distinguishes weights: a resumed run has new ones under the same name."""
        found = hashlib.blake2b(digest_size=16)
        for leaf in jax.tree.leaves(self.params):
            found.update(np.ascontiguousarray(leaf).data)
        return found.hexdigest()

    def in_language(self, language: str) -> "SavedModel":
        """The model of texts in a language, see `EncoderConfig.with_language`."""
        encoder = self.spec.encoder.with_language(language)
        return dataclasses.replace(self, spec=self.spec.replaced(encoder=encoder))


# Kept with a model that is saved alone; those of a stage are in its run's config.
_LENGTHS = ("query_length", "document_length")


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
        # Once only, so that it stays the file that the digests are of.
        json_files.write_json(path, values)


def _differences(found: dict, wanted: dict) -> list[str]:
    there, asked = (
        trees.named(values, ".", is_leaf=lambda one: isinstance(one, list))
        for values in (found, wanted)
    )
    return trees.differences(there, asked, ("folder", "config"))


def load_model(
    folder: str | pathlib.Path, *, values: bool = True, step: int | None = None
) -> SavedModel:
    """Reads a stage's retriever from a checkpoint.

    Args:
      folder: a stage's folder, or a run's folder with a single stage.
      values: read the numbers; otherwise the parameters have shapes alone, and neither
        a checkpoint nor tokenizers need be there.
      step: of the checkpoint; None: the one that `checkpoint.use` has chosen, or the
        last.

    Raises:
      InputError: no model or no checkpoint there, a damaged one, or one with numbers
        that are not finite.
    """
    folder = _stage_folder(pathlib.Path(folder))
    done = _done(folder / DONE_FILE)
    used = done.pop("use", None)
    step = _checked_step(folder, used if step is None else step) if values else 0
    spec = load_spec(folder)
    _, abstract = retriever.split(spec)
    tokenizers = (folder / TOKENIZER, folder / PIVOT_TOKENIZER)
    own, pivot = (path if path.is_dir() else None for path in tokenizers)
    if not values:
        spec, kept = retriever.trained(spec, abstract)
        return SavedModel(spec, kept, own, pivot, str(folder), **done)
    # The optimizer's state stays on disk.
    path = folder / CHECKPOINTS / str(step)
    stored = _stored_params(path, abstract)
    restored = host_arrays(path, {"params": stored})["params"]
    finite.check_tree(restored, f"{folder}, checkpoint of step {step:,}")
    spec, kept = retriever.trained(spec, restored)
    return SavedModel(
        spec,
        prompt_rows.merged(low_rank.merged(kept)),
        own,
        pivot,
        str(folder),
        dev=digests.read(folder, step).dev,
        factors=low_rank.factors(kept),
        **done,
    )


def _done(path: pathlib.Path) -> dict[str, Any]:
    """What a finished stage's file says, if it does.

    Returns:
      `query_length` and `document_length`, as `save_model` kept them; `use`: the step
      of the checkpoint that stands for the stage.

    Raises:
      InputError: the file is damaged.
    """

    def parse(values: dict) -> dict[str, Any]:
        found = {name: values[name] for name in (*_LENGTHS, "use") if name in values}
        if any(type(number) is not int or number < 0 for number in found.values()):
            raise ValueError(f"it says {found}")
        return found

    if not path.is_file():  # of a stage that is trained
        return {}
    return json_files.read_json(path, "Save the model again.", parse)


def _stored_params(checkpoint: pathlib.Path, abstract: dict) -> dict:
    """The parameters of a checkpoint: a model's, with those of adapters."""
    # Of a checkpointer, it would warn of a file that orbax does not write here.
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata((checkpoint / ITEM).absolute()).tree
    names = trees.named(tree["params"])
    return prompt_rows.stored_as(low_rank.stored_as(abstract, names), names)


def host_arrays(checkpoint: pathlib.Path, part: dict | None = None) -> dict:
    """The arrays of a checkpoint as numpy's, whatever devices they were saved from.

    Args:
      checkpoint: folder of a step.
      part: a tree of what is wanted of them; None: all.
    """
    path = (checkpoint / ITEM).absolute()
    with ocp.PyTreeCheckpointer() as reader:
        tree = part or reader.metadata(path).item_metadata.tree
        to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(
            item=part, restore_args=to_host, partial_restore=part is not None
        )
        return reader.restore(path, args=args)


def _checked_step(folder: pathlib.Path, step: int | None) -> int:
    """The step, or the last one of a stage, after every byte of it was verified."""
    digests.check_has_digests(folder)
    steps = digests.recorded_steps(folder)
    if not steps:
        raise InputError(
            f"{folder}: no checkpoint was finished there. Train it first; a run that"
            " was stopped goes on with the command that started it."
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        raise InputError(f"{folder}: there is no checkpoint of step {step:,}.")
    if found := digests.damage(folder, step):
        which = "last checkpoint, of" if step == steps[-1] else "checkpoint of"
        raise InputError(
            f"{folder}: the {which} step {step:,}, is damaged:\n"
            f"{listing(found)}\nStart its run again: it sets the damaged files aside"
            " and trains on from the newest sound checkpoint. Or put a copy of them"
            " back."
        )
    return step


def save_model(folder: pathlib.Path, model: SavedModel) -> None:
    """Writes a retriever as the folder of a finished stage, for `load_model`.

    Args:
      folder: where to; it exists.
      model: the retriever.

    Raises:
      InputError: a number of its parameters is not finite.
    """
    finite.check_tree(model.params, model.name)
    write_model_files(folder, model.spec, model.tokenizer, model.pivot_tokenizer)
    manager = ocp.CheckpointManager((folder / CHECKPOINTS).absolute())
    state = {"params": jax.tree.map(np.asarray, model.params)}
    manager.save(0, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    manager.close()
    digests.write(folder, 0, dict(model.dev))
    lengths = {name: getattr(model, name) for name in _LENGTHS}
    json_files.write_json(folder / DONE_FILE, {"steps": 0} | lengths)


def load_spec(folder: str | pathlib.Path) -> RetrieverSpec:
    """A stage's architecture, without its weights.

    Raises:
      InputError: there is none, or its head is code that the user has not named;
        nothing is imported.
    """
    return _read_spec(_stage_folder(pathlib.Path(folder)) / MODEL_FILE)


def _read_spec(path: pathlib.Path) -> RetrieverSpec:
    """What `write_model_files` wrote.

    Raises:
      InputError: it is no retriever, or its head is code that the user has not named;
        says why.
    """

    def parse(values: dict) -> RetrieverSpec:
        head_class(values["head"])
        return RetrieverSpec.from_dict(values)

    return json_files.read_json(path, "Put back the file that the run wrote.", parse)


def holds_stages(folder: str | pathlib.Path) -> bool:
    """Whether a path, as users write it, is a stage's folder, or a run's."""
    return bool(stage_folders(pathlib.Path(paths.local(folder, "the model"))))


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
