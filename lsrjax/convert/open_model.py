"""Opens a model by its name in a config, a command or a benchmark.

`open_model` opens a model to train with, `open_portable` one to export or encode with.
"""

import dataclasses
import pathlib
from typing import Any

from lsrjax import json_files
from lsrjax.checkpoint import names_on_disk, results_file, saved_model
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import flag_embedding
from lsrjax.convert.read import (
    expected_tensors,
    hub,
    huggingface,
    milco,
    peft,
    sentence_transformers,
)
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.read.modules import UnknownModuleError
from lsrjax.convert.read.presets import PRESETS, UNTIED, WHOLE
from lsrjax.convert.read.tensors import check_types
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.cross_encoder import CrossEncoderSpec
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import task_tables
from lsrjax.retrieval.results_file import ENGLISH_TEXTS

# For models that were not trained here.
_LENGTHS = {"query_length": 64, "document_length": 256}


def open_model(
    reference: str,
    workdir: pathlib.Path,
    *,
    cross_encoder: bool = False,
    allowed: Allowed = NOTHING,
) -> SavedModel:
    """The model that a config's reference names.

    Args:
      reference: `stage:NAME`, a stage's folder, or a Hugging Face folder or hub id of
        a MILCO (ours or the reference's), a masked LM, an encoder alone (then without
        a head), a model of sentence-transformers, ColBERT or FlagEmbedding (BGE-M3),
        or an export to `lsrjax`.
        Of a model of sentence-transformers that no head here can represent, only the
        encoder is opened, to start from.
      workdir: of the run, for `stage:`.
      cross_encoder: accept a cross-encoder, whose spec is a `CrossEncoderSpec`.
      allowed: relaxations for a Hugging Face model, and whether weights are read. If
        not, well-known checkpoints need no file.

    Raises:
      InputError: there is no such model, or it cannot be used.
    """
    if not allowed.values and reference in PRESETS:
        encoder, has_head = PRESETS[reference]
        if reference in WHOLE:
            head, options = WHOLE[reference]
            spec = RetrieverSpec.of(head, encoder, **options)
            return SavedModel(spec, retriever.split(spec)[1], None, None, reference)
        tied = reference not in UNTIED
        params = expected_tensors.promised(encoder, *("head",) * has_head, tied=tied)
        spec = RetrieverSpec.of("splade", encoder, tied=tied)
        return SavedModel(spec, params, None, None, reference)
    if reference.startswith("stage:"):
        stage = workdir / reference.removeprefix("stage:")
        return saved_model.load_model(stage, values=allowed.values)
    folder = stages_folder(reference, weights=allowed.values)
    if folder is not None:
        return _stage(folder, reference, values=allowed.values)
    model = _hugging_face(reference, allowed, whole=False)
    if isinstance(model.spec, CrossEncoderSpec) and not cross_encoder:
        raise _pairs_only(reference)
    return model


def open_portable(reference: str, allowed: Allowed = NOTHING) -> SavedModel:
    """A retriever with its training record, if known, and the lengths of texts.

    Args:
      reference: a run's folder (its last stage), a stage's folder, a Hugging Face
        folder or a hub id.
      allowed: relaxations for a Hugging Face model.

    Raises:
      InputError: there is no such model, or it cannot be used.
    """
    folder = stages_folder(reference)
    if folder is not None:
        if allowed != NOTHING:
            raise InputError(
                f"{reference} was trained here and lacks nothing: leave --allow_pickle,"
                " --allow_missing, --allow_left_over and --adapter out."
            )
        return _checked(_trained_here(folder, reference))
    model = _hugging_face(reference, allowed, whole=True)
    if isinstance(model.spec, CrossEncoderSpec):
        raise _pairs_only(reference)
    if model.spec.head == "splade" and "head" not in model.params:
        # An encoder alone is a retriever too: pooling needs no parameters.
        spec = model.spec.with_head("dense")
        model = dataclasses.replace(model, spec=spec)
    return _checked(model, TextTokenizer(model.tokenizer).max_length)


def _pairs_only(reference: str) -> InputError:
    return InputError(
        f"{reference} is a cross-encoder, which scores pairs of texts and represents"
        " none. It can be a teacher of scores: config.teacher.model with"
        " config.prepare.scores = 'teacher'."
    )


def _hugging_face(reference: str, allowed: Allowed, *, whole: bool) -> SavedModel:
    """The model of a Hugging Face folder or hub id.

    With `whole`, a model of sentence-transformers that no head here can represent is
    refused; else only its encoder is opened.
    """
    if (adapter := peft.find(reference, values=allowed.values)) is not None:
        if allowed.peft is not None:
            raise InputError(
                f"{allowed.peft.folder} names {reference} as its base model, which is"
                " an adapter of PEFT itself. Merge that one first: python -m"
                f" lsrjax.convert --from {reference} --to dense --out base."
            )
        within = dataclasses.replace(allowed, peft=adapter)
        base = _hugging_face(adapter.base, within, whole=whole)
        return dataclasses.replace(base, name=reference)
    if allowed.peft is None and (model := milco.read(reference, allowed)) is not None:
        return model
    if (model := flag_embedding.read(reference, allowed)) is not None:
        return model
    refused = None
    try:
        if (model := sentence_transformers.read(reference, allowed)) is not None:
            return model
    except UnknownModuleError as error:
        if whole:
            raise
        refused = error
    found = huggingface.load_checkpoint(reference, allowed)
    folder = tokenizer_folder(reference)
    if "classifier" in found.params:
        check_vocabulary(folder, found.config.vocab_size, reference)
        pairs = CrossEncoderSpec(found.config)
        return SavedModel(pairs, found.params, folder, None, reference)
    head = found.params.get("head")
    if refused and head is not None:
        raise refused
    # Of other models of sentence-transformers, take only the encoder, to start from.
    spec = RetrieverSpec.of(
        head="splade",
        encoder=found.config,
        tied=head is not None and "decoder" not in head["mlm"],
    )
    return SavedModel(spec, found.params, folder, None, reference)


def stages_folder(reference: str, *, weights: bool = True) -> pathlib.Path | None:
    """The folder of a run, of a stage, or of an export to `lsrjax` on the hub, or None.

    Fetches a hub id's files; without `weights`, only those that describe the retriever.
    """
    if saved_model.holds_stages(reference):
        return hub.local_folder(reference)
    if hub.is_local(reference):
        return None
    # Repositories of other programs may contain one of these file names.
    marks = (names_on_disk.MODEL_FILE, names_on_disk.DONE_FILE)
    folder = hub.fetch(reference, marks)
    if not all((folder / mark).is_file() for mark in marks):
        return None
    return hub.fetch(reference, saved_model.MODEL_FILES) if weights else folder


def _stage(folder: pathlib.Path, reference: str, *, values: bool = True) -> SavedModel:
    """The model in a folder of `stages_folder`, under the name that the user knows."""
    model = saved_model.load_model(folder, values=values)
    # A hub model's folder is in a cache.
    name = model.name if values and hub.is_local(reference) else reference
    return dataclasses.replace(model, name=name)


def _trained_here(folder: pathlib.Path, reference: str) -> SavedModel:
    """A stage, or the last stage of a run, with the config and results of the run."""
    config = _config(folder)
    if config is not None:  # a run: its last stage
        folder = folder / ([*(config.get("stages") or {})] or ["train"])[-1]
    config = _config(folder.parent) or {}
    stages = config.get("stages") or {}
    stage = stages.get(folder.name, config)
    tasks = task_tables.of_stage(results_file.read(folder.parent)["tasks"], folder.name)
    texts = tasks.get(ENGLISH_TEXTS, {}).get("results", {})
    model = _stage(folder, reference)
    return dataclasses.replace(
        model,
        **{
            name: getattr(model, name) or stage.get("data", {}).get(name, 0)
            for name in _LENGTHS
        },
        config=stage or None,
        results=texts.get(folder.name),
        evaluation=task_tables.markdown(tasks),
        stages=stages,
    )


def _config(folder: pathlib.Path) -> dict | None:
    """The config that a run stores in its folder; None for other folders."""
    path = folder / results_file.CONFIG_FILE
    if not path.is_file():
        return None
    # Not read like a model's files, since a config may contain infinite limits.
    values = json_files.read_json(path, "Put back the file that the run wrote.")
    check_types(path, values, {"stages": dict, "data": dict})
    return values


def _checked(model: SavedModel, longest: int | None = None) -> SavedModel:
    """Checks that a model's tokenizers fit, and sets lengths that it takes.

    `longest` is the tokenizer's limit in tokens, if it has one.
    """
    spec = model.spec
    check_vocabulary(model.tokenizer, spec.encoder.vocab_size, model.name)
    if model.pivot_tokenizer is not None:
        size = getattr(spec.options, "pivot_vocab_size", 0)
        check_vocabulary(model.pivot_tokenizer, size, f"{model.name}, pivot")
    lengths: dict[str, Any] = {
        name: min(
            getattr(model, name) or min(usual, longest or usual),
            spec.encoder.max_length,
        )
        for name, usual in _LENGTHS.items()
    }
    for name, length in lengths.items():
        if length <= 2:
            raise InputError(
                f"{model.name}: {name} is {length} tokens, by max_seq_length, {name} or"
                " model_max_length in the model's configs; it has to be at least 3."
            )
    return dataclasses.replace(model, **lengths)


def tokenizer_folder(reference: str) -> pathlib.Path:
    """The local folder with the tokenizer of a folder, hub id or `embedded:` name."""
    if reference.startswith("embedded:"):
        from lsrjax.data.debian_texts import embedded

        known = {
            "english": embedded.ENGLISH_TOKENIZER,
            "multilingual": embedded.MULTILINGUAL_TOKENIZER,
        }
        name = reference.removeprefix("embedded:")
        if name not in known:
            raise InputError(
                f"config.tokenizer is {reference!r}; the embedded ones are"
                f" {', '.join(f'embedded:{k}' for k in known)}."
            )
        return pathlib.Path(known[name])
    return huggingface.tokenizer_folder(reference)


def check_vocabulary(folder, vocab_size: int, name: str) -> None:
    """Refuses a tokenizer with more tokens than the model has embeddings."""
    if folder is None:
        return
    tokenizer = TextTokenizer(folder)
    size, added = tokenizer.vocab_size, ", ".join(tokenizer.added)
    if size > vocab_size:
        added = f" (with {added}, which tokenizer.json lacks)" if added else ""
        raise InputError(
            f"The tokenizer in {folder} has {size} tokens{added}, but the model"
            f" {name} has embeddings for {vocab_size}. Use the tokenizer that the model"
            " was trained with (config.tokenizer)."
        )
