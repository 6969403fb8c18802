"""The models and tokenizers that a config names, read from where they are."""

import dataclasses
import pathlib

from lsrjax import checkpoint
from lsrjax.checkpoint import SavedModel
from lsrjax.convert import hub, huggingface, milco_in, promises, sentence_in
from lsrjax.convert.modules import UnknownModuleError
from lsrjax.convert.presets import PRESETS
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import CrossEncoderSpec
from lsrjax.models.retriever import RetrieverSpec


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
    if milco_in.is_milco(reference):
        *parts, lengths, unused = milco_in.read(reference, allowed)
        return SavedModel(*parts, reference, lengths, unused)
    refused = None
    try:
        if (other := sentence_in.read(reference, allowed)) is not None:
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
    if checkpoint.holds_stages(reference):
        return pathlib.Path(reference)
    if hub.is_local(reference):
        return None
    # Repositories of other programs may have a file of one of these names, too.
    marks = (checkpoint.MODEL_FILE, checkpoint.DONE_FILE)
    folder = hub.fetch(reference, marks)
    if not all((folder / mark).is_file() for mark in marks):
        return None
    return hub.fetch(reference, checkpoint.MODEL_FILES) if weights else folder


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
        return checkpoint.load_shapes(folder, reference)
    model = checkpoint.load_model(folder)
    # Of the hub's files, the folder is one of a cache.
    return (
        model if hub.is_local(reference) else dataclasses.replace(model, name=reference)
    )


def tokenizer_folder(reference: str) -> pathlib.Path:
    """The folder that holds the tokenizer of a folder, hub id or `embedded:`."""
    if reference.startswith("embedded:"):
        from lsrjax.data import embedded

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
