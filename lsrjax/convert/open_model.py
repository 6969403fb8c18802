"""The models and tokenizers that a config names, read from where they are."""

import dataclasses
import json
import pathlib

from lsrjax.checkpoint import files, results, saved_model
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.portable import Portable
from lsrjax.convert.read import hub, huggingface, milco, promises, sentence_transformers
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.read.modules import UnknownModuleError
from lsrjax.convert.read.presets import PRESETS
from lsrjax.convert.read.tensors import check_types
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import CrossEncoderSpec
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import result_tables

# Of models that were not trained here.
_LENGTHS = {"query": 64, "document": 256}


def open_model(
    reference: str,
    workdir: pathlib.Path,
    *,
    cross_encoder: bool = False,
    allowed: huggingface.Allowed = huggingface.NOTHING,
    whole: bool = False,
) -> SavedModel:
    """The model that a config's reference names.

    Args:
      reference: `stage:NAME`, a stage's folder, or a Hugging Face folder or hub id of
        a MILCO (ours or the reference's), a masked LM, an encoder alone (then without
        a head), a model of sentence-transformers or ColBERT, or an export to `lsrjax`.
      workdir: of the run, for `stage:`.
      cross_encoder: one may be named, too; its spec is a `CrossEncoderSpec` then.
      allowed: what is put up with in a Hugging Face model, and whether the numbers of
        weights are read. Without them, of well-known checkpoints no file is needed.
      whole: a model of sentence-transformers that does something no head here does is
        refused; otherwise its encoder alone is given, to start from.
    """
    if not allowed.values and reference in PRESETS:
        return preset(reference)
    if reference.startswith("stage:"):
        folder = workdir / reference.removeprefix("stage:")
        return load_stage(folder, str(folder), values=allowed.values)
    if (folder := stages_folder(reference, weights=allowed.values)) is not None:
        return load_stage(folder, reference, values=allowed.values)
    return open_hugging_face(
        reference, cross_encoder=cross_encoder, allowed=allowed, whole=whole
    )


def open_hugging_face(
    reference: str,
    *,
    cross_encoder: bool = False,
    allowed: huggingface.Allowed = huggingface.NOTHING,
    whole: bool = False,
) -> SavedModel:
    """The model of a Hugging Face folder or hub id; see `open_model`."""
    if milco.is_milco(reference):
        *parts, lengths, unused = milco.read(reference, allowed)
        return SavedModel(*parts, reference, lengths, unused)
    refused = None
    try:
        if (other := sentence_transformers.read(reference, allowed)) is not None:
            lengths = {"query": other.query_length, "document": other.document_length}
            params = dict(other.params)
            parts = other.spec, params, other.tokenizer, None, other.name
            return SavedModel(*parts, lengths)
    except UnknownModuleError as error:
        if whole:
            raise
        refused = error
    found = huggingface.load_checkpoint(reference, allowed)
    folder = tokenizer_folder(reference)
    if "classifier" in found.params:
        if not cross_encoder:
            raise InputError(
                f"{reference} is a cross-encoder, which scores pairs of texts and"
                " represents none. It can be a teacher of scores: config.teacher.model"
                " with config.prepare.scores = 'teacher'."
            )
        check_vocabulary(folder, found.config.vocab_size, reference)
        spec = CrossEncoderSpec(found.config)
        return SavedModel(spec, found.params, folder, None, reference)
    head = found.params.get("head")
    if refused and head is not None:
        raise refused
    # Of other models of sentence-transformers, the encoder alone can be started from.
    spec = RetrieverSpec(
        head="splade",
        encoder=found.config,
        tied=head is not None and "decoder" not in head["mlm"],
    )
    return SavedModel(spec, found.params, folder, None, reference)


def stages_folder(reference: str, *, weights: bool = True) -> pathlib.Path | None:
    """The folder of a run, of a stage, or of an export to `lsrjax` on the hub.

    Args:
      reference: a folder or hub id. The hub's files are fetched.
      weights: all of them, and not what the retriever is alone.

    Returns:
      None if it is of another kind.
    """
    if saved_model.holds_stages(reference):
        return pathlib.Path(reference)
    if hub.is_local(reference):
        return None
    # Repositories of other programs may have a file of one of these names, too.
    marks = (files.MODEL_FILE, files.DONE_FILE)
    folder = hub.fetch(reference, marks)
    if not all((folder / mark).is_file() for mark in marks):
        return None
    return hub.fetch(reference, saved_model.MODEL_FILES) if weights else folder


def preset(reference: str) -> SavedModel:
    """A well-known checkpoint as `PRESETS` has it, without weights or tokenizer."""
    encoder, has_head = PRESETS[reference]
    parts = ("head",) if has_head else ()
    spec = RetrieverSpec("splade", encoder, tied=True)
    params = promises.promised(encoder, *parts)
    return SavedModel(spec, params, None, None, reference)


def load_stage(
    folder: pathlib.Path, reference: str, *, values: bool = True
) -> SavedModel:
    """The model of what `stages_folder` gave, by the name that its reader knows.

    Args:
      folder: of the stage, or of a run with a single one.
      reference: that name.
      values: read the numbers of its weights; see `Allowed`.
    """
    if not values:
        return saved_model.load_shapes(folder, reference)
    model = saved_model.load_model(folder)
    # Of the hub's files, the folder is one of a cache.
    return (
        model if hub.is_local(reference) else dataclasses.replace(model, name=reference)
    )


def tokenizer_folder(reference: str) -> pathlib.Path:
    """The folder that holds the tokenizer of a folder, hub id or `embedded:`."""
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
    """Refuses a tokenizer with more tokens than the model has embeddings.

    Raises:
      InputError: it has.
    """
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


def open_portable(reference: str, allowed: Allowed = NOTHING) -> Portable:
    """A model with what is known of how it was trained.

    Args:
      reference: a run's folder (its last stage), a stage's folder, a Hugging Face
        folder or a hub id.
      allowed: what is put up with in a Hugging Face model.

    Raises:
      InputError: there is no such model, or it cannot be used.
    """
    folder = stages_folder(reference)
    if folder is not None and allowed != NOTHING:
        raise InputError(
            f"{reference} was trained here and lacks nothing: leave --allow_pickle,"
            " --allow_missing and --allow_left_over out."
        )
    if folder is None:
        model = open_hugging_face(reference, allowed=allowed, whole=True)
        if model.spec.head == "splade" and "head" not in model.params:
            # An encoder alone is a retriever too: an embedding needs no parameters.
            spec = dataclasses.replace(model.spec, head="dense", pooling="cls")
            model = dataclasses.replace(model, spec=spec)
        longest = TextTokenizer(model.tokenizer).max_length
        return _portable(model, {}, None, longest)
    config = _json(folder / results.CONFIG_FILE, "stages", "data")
    if config is not None:  # a run: its last stage
        folder = folder / ([*(config.get("stages") or {})] or ["train"])[-1]
    config = _json(folder.parent / results.CONFIG_FILE, "stages", "data") or {}
    stage = (config.get("stages") or {}).get(folder.name, config)
    found = results.read(folder.parent)
    model = load_stage(folder, reference)
    model = _portable(model, stage, found.get(folder.name))
    evaluation = result_tables.markdown(found, folder.name)
    stages = config.get("stages") or {}
    return dataclasses.replace(model, evaluation=evaluation, stages=stages)


def _portable(
    model: SavedModel, config: dict, found, longest: int | None = None
) -> Portable:
    spec = model.spec
    check_vocabulary(model.tokenizer, spec.encoder.vocab_size, model.name)
    if model.pivot_tokenizer is not None:
        size = spec.pivot_vocab_size
        check_vocabulary(model.pivot_tokenizer, size, f"{model.name}, pivot")
    limit = spec.encoder.max_length
    lengths = {
        f"{role}_length": min(
            config.get("data", {}).get(
                f"{role}_length",
                model.lengths.get(role, min(length, longest or length)),
            ),
            limit,
        )
        for role, length in _LENGTHS.items()
    }
    return Portable(
        model.spec,
        model.params,
        model.tokenizer,
        model.pivot_tokenizer,
        model.name,
        **lengths,
        config=config or None,
        results=found,
        unused=model.unused,
        dev=model.dev,
    )


def _json(path: pathlib.Path, *objects: str) -> dict | None:
    """An object that a run wrote, some of whose values are objects; None: no file."""
    if not path.is_file():
        return None
    # Not as a model's files are read: a config may have limits that are infinite.
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON: {error}. Put back the file that the run wrote."
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no object. Put back the file of the run.")
    check_types(path, values, dict.fromkeys(objects or values, dict))
    return values
