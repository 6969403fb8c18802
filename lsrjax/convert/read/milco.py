"""Reads MILCO from Hugging Face: our exports, and checkpoints of the reference."""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lsrjax.checkpoint.names_on_disk import PIVOT_TOKENIZER
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import layouts
from lsrjax.convert.names import by_layer, import_names, import_tree
from lsrjax.convert.read import expected_tensors, hub, huggingface, modules
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.read.tensors import CheckpointError, Stored, check_types
from lsrjax.convert.write.milco import ENGLISH, MULTILINGUAL, OPTIONS, POOLER
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.backbones import table
from lsrjax.models.heads import MilcoHead
from lsrjax.models.lookups import CLASS, MARK
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.tokenizer import reading
from lsrjax.tokenizer.files import TOKENIZER, holds_tokenizer


def read(path_or_id: str, allowed: Allowed = NOTHING) -> SavedModel | None:
    """Reads a MILCO that `write_hf`, `write_reference` or the reference wrote.

    Returns:
      The retriever; None for a folder of another kind.

    Raises:
      CheckpointError: something is missing, left over, or does not fit the config.
    """
    # A Router of sentence-transformers has no config.json.
    if not (hub.fetch(path_or_id, huggingface.CONFIG_FILES) / "config.json").is_file():
        return None
    raw = huggingface.read_raw_config(path_or_id)
    if raw.get("model_type") != "milco":
        return None
    folder = hub.fetch(
        path_or_id,
        (
            *huggingface.CONFIG_FILES,
            *huggingface.WEIGHT_FILES * allowed.values,
            *huggingface.TOKENIZER_FILES,
            modules.MODEL,
            *(f"{PIVOT_TOKENIZER}/{name}" for name in huggingface.TOKENIZER_FILES),
            f"{MULTILINGUAL}/*.json",
            f"{ENGLISH}/*.json",
        ),
    )
    check_types(
        folder / "config.json",
        raw,
        {
            "multilingual_encoder_checkpoint": str,
            "lsr_encoder_checkpoint": str,
            "multilingual_config": dict,
            "english_config": dict,
            PIVOT_TOKENIZER: str,
            "special_ids": list,
            "query_length": int,
            "document_length": int,
        },
    )
    spec, tokenizer, pivot = _read_spec(folder, raw)
    fields = ("query_length", "document_length")
    lengths: dict[str, Any] = {field: raw.get(field) or 0 for field in fields}
    model = SavedModel(spec, {}, tokenizer, pivot, path_or_id, **lengths)
    _, ours = retriever.split(spec)
    if not allowed.values:
        return dataclasses.replace(
            model, params=expected_tensors.stand_ins(trees.shapes(ours))
        )
    stored = huggingface.open_weights(path_or_id, folder, raw, allowed)
    layout = layouts.milco(spec.encoder.family)
    split = functools.partial(by_layer, layout=layout)
    ours["encoder"] = jax.eval_shape(split, ours["encoder"])
    shapes = trees.shapes(ours)
    try:
        names = import_names(
            stored, layout, missing=allowed.missing, left_over=allowed.left_over
        )
        found = {path: stored[name] for path, name in names.items()}
        found |= _tables(found, spec)
        absent = expected_tensors.check_shapes(found, shapes, layout, allowed.missing)
    except ValueError as error:
        raise CheckpointError(f"Weights in {folder}: {error}") from error
    values = {path: one.floats() for path, one in found.items()}
    values |= huggingface.fresh(absent, spec.encoder)
    params = import_tree(values, layout)
    unused = {name: stored[name].floats() for name in POOLER if name in stored}
    return dataclasses.replace(model, params=params, unused=unused)


def _tables(found: Mapping[str, Stored], spec: RetrieverSpec) -> dict[str, Stored]:
    """The tables whose numbers stand for terms or characters, by path."""
    limits = {
        "head/dictionary/terms": spec.options.pivot_vocab_size,
        "head/stems/terms": spec.options.pivot_vocab_size,
        "head/stems/characters": (MARK + 1) * CLASS,
        "head/ngrams/characters": sys.maxunicode + 1,
    }

    def checked(one: Stored, limit: int) -> Stored:
        def read() -> np.ndarray:
            values = one.read()
            whole = np.issubdtype(values.dtype, np.integer)
            if not whole or values.min() < 0 or values.max() >= limit:
                raise CheckpointError(
                    f"{one.path}: {one.name} is to hold whole numbers from 0 to"
                    f" {limit - 1:,}, and has {one.dtype} from {values.min()} to"
                    f" {values.max()}. Export the model again."
                )
            return values.astype(np.float32)

        return dataclasses.replace(one, dtype="float32", read=read)

    return {
        path: checked(found[path], limit)
        for path, limit in limits.items()
        if path in found
    }


def _read_spec(
    folder: pathlib.Path, raw: Mapping[str, Any]
) -> tuple[RetrieverSpec, pathlib.Path, pathlib.Path]:
    """The spec, and the folders of the tokenizers."""
    path = folder / "config.json"
    if raw.get("model_variant", "bert") != "bert" or raw.get("prompt"):
        raise CheckpointError(
            f"{path}: model_variant is {raw.get('model_variant')!r} and prompt"
            f" {raw.get('prompt')!r}, but only encoders like BERT ('bert') without a"
            " prompt are implemented. Use a MILCO on XLM-R or BERT."
        )
    if "multilingual_config" in raw:
        own = str(folder)
        pivot = str(modules.inside(folder, raw.get(PIVOT_TOKENIZER), path))
        try:
            encoder = table.read_config(raw["multilingual_config"])
            english = raw["english_config"]
            sizes = [
                english[key] for key in ("vocab_size", "hidden_size", "layer_norm_eps")
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: multilingual_config or english_config cannot be used:"
                f" {error!r}. Export the model again."
            ) from error
    else:
        own = _part(folder, raw, "multilingual_encoder_checkpoint")
        pivot = _part(folder, raw, "lsr_encoder_checkpoint")
        encoder = huggingface.read_config(own)
        # MILCO uses none of its layers, and `write_reference` writes none.
        values = huggingface.read_raw_config(pivot) | {"num_hidden_layers": 1}
        try:
            head = table.read_config(values)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"config.json of {pivot}: {error}") from error
        sizes = [head.vocab_size, head.hidden_size, head.layer_norm_eps]
        if holds_tokenizer(folder):
            own = str(folder)
    folders = [huggingface.tokenizer_folder(one) for one in (own, pivot)]
    special_ids = _check_vocabulary(folders[0], encoder.vocab_size, path)
    _check_vocabulary(folders[1], sizes[0], path)
    # Defaults of the reference.
    options: dict[str, Any] = {"pool_mask": "multiply", "special_ids": special_ids}
    options |= {name: raw[name] for name in OPTIONS if raw.get(name) is not None}
    options |= _of_sparse_encoder(folder)
    options["special_ids"] = tuple(options["special_ids"])
    options[MilcoHead.source_option] = bool(raw.get("echo"))
    try:
        spec = RetrieverSpec.of(
            head="milco",
            encoder=encoder,
            pivot_vocab_size=sizes[0],
            pivot_hidden_size=sizes[1],
            pivot_layer_norm_eps=sizes[2],
            **options,
        )
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return spec, folders[0], folders[1]


def _of_sparse_encoder(folder: pathlib.Path) -> dict[str, Any]:
    """The options of a `SparseEncoder`, which its user may have changed."""
    path = folder / modules.MODEL
    if not path.is_file():
        return {}
    model = modules.read_model(path)
    prompts = modules.prompts(model)
    return {f"{role}_prompt": prompt for role, prompt in prompts.items()} | {
        "most_active": modules.most_active(path, model)
    }


def _part(folder: pathlib.Path, raw: Mapping[str, Any], field: str) -> str:
    """A checkpoint that the reference's config names: a subfolder, folder or hub id."""
    name = raw.get(field)
    if not name:
        raise CheckpointError(
            f"{folder / 'config.json'} has no {field}, which the reference's MILCO"
            " takes its sizes and tokenizer from. Add it: a folder or a hub id."
        )
    return str(folder / name) if (folder / name).is_dir() else name


def _check_vocabulary(
    folder: pathlib.Path, size: int, config: pathlib.Path
) -> tuple[int, ...]:
    """The ids of a tokenizer's special tokens; all its ids must be below `size`."""
    read = reading.read(folder)
    tokenizer = read.tokenizer()
    found = max(tokenizer.get_vocab().values()) + 1
    if found > size:
        more = f"with those that other files add {found}, " if read.added else ""
        raise CheckpointError(
            f"{folder / TOKENIZER} has {found - len(read.added)} tokens, {more}but"
            f" {config} says that the model knows {size}. Use the tokenizer that the"
            " model was trained with."
        )
    added = tokenizer.get_added_tokens_decoder()
    return tuple(sorted(i for i, token in added.items() if token.special))
