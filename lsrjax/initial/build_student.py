"""Builds a stage's student: its spec, tokenizers and initial weights."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.open_model import check_vocabulary, tokenizer_folder
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.initial import fit_to_data, term_statistics, warm_start
from lsrjax.models import heads, retriever
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.options import carried


@dataclasses.dataclass(frozen=True)
class Student:
    """A retriever before training.

    Attributes:
      tokenizer: folder of the encoder's tokenizer, None in a plan without one.
      pivot_tokenizer: folder of MILCO's English tokenizer, or None.
      params: makes the initial weights from the training source, which may provide term
        statistics and translations.
    """

    spec: RetrieverSpec
    tokenizer: pathlib.Path
    pivot_tokenizer: pathlib.Path | None
    params: Callable[[Sequence], dict]


def student(config, opened: Callable[[str], SavedModel]) -> Student:
    """The retriever that a stage's config describes.

    Args:
      config: the stage's.
      opened: opens a model by its reference, as `open_model` does. For a plan, its
        parameters may be abstract and its tokenizers missing.

    Raises:
      InputError: parts that do not fit each other, named with their sizes.
    """
    if config.init.model:
        made = _from_stage(config, opened(config.init.model))
    elif config.model.head.name == "splade":
        made = _splade(config, opened)
    elif config.model.head.name == "milco":
        made = _milco(config, opened)
    else:
        made = _on_an_encoder(config, opened)
    return made if config.model.towers == "shared" else _with_towers(made)


def _with_towers(made: Student) -> Student:
    """The student with separate towers, both starting from the shared one."""
    if not made.spec.encodes_queries:
        raise InputError(
            "config.model.towers is 'separate', but queries of the head"
            f" {made.spec.head} need no encoder, so there is nothing to separate. Use"
            " 'shared'."
        )

    def params(source):
        values = made.params(source)
        document, query = retriever.towers_of(values)
        return values if query else retriever.with_query_tower(document)

    spec = dataclasses.replace(made.spec, towers="separate")
    return dataclasses.replace(made, spec=spec, params=params)


def _one_tower(model: SavedModel, field: str) -> SavedModel:
    if model.spec.towers == "separate":
        raise InputError(
            f"config.{field}: {model.name} has separate towers for queries and"
            " documents, and it is not said which one is meant. Start from all of it"
            " with config.init.model and config.model.towers = 'separate', or name a"
            " model with shared towers."
        )
    return model


def _with_dropout(config, encoder: EncoderConfig) -> EncoderConfig:
    """An encoder with the config's dropout, or its own."""
    rate = config.model.dropout
    if rate < 0:
        return encoder
    return encoder.with_dropout(rate)


def settled(config, spec: RetrieverSpec):
    """A stage's config with its student's dropout filled in."""
    if config.model.dropout >= 0:
        return config
    encoder = spec.encoder
    config = config.copy_and_resolve_references()
    config.model.dropout = max(encoder.hidden_dropout, encoder.attention_dropout)
    return config


def _encoder(config, opened) -> tuple[EncoderConfig, SavedModel | None, pathlib.Path]:
    """The encoder's config, its model (None: random weights) and its tokenizer."""
    if config.init.encoder:
        model = _one_tower(opened(config.init.encoder), "init.encoder")
        folder = (
            tokenizer_folder(config.tokenizer) if config.tokenizer else model.tokenizer
        )
        encoder = _with_dropout(config, model.spec.encoder)
        check_vocabulary(folder, encoder.vocab_size, config.init.encoder)
        return encoder, model, folder
    if not config.tokenizer:
        raise InputError(
            "config.tokenizer is empty and so is config.init.encoder: random weights"
            " need a tokenizer, which fixes the vocabulary."
        )
    folder = tokenizer_folder(config.tokenizer)
    tokenizer = TextTokenizer(folder)
    m = config.model
    encoder = backbone(m.family).config.fresh(
        m.family,
        tokenizer.pad_id,
        m.max_length,
        vocab_size=tokenizer.vocab_size,
        hidden_size=m.hidden_size,
        num_layers=m.num_layers,
        num_heads=m.num_heads,
        intermediate_size=m.intermediate_size,
    )
    encoder = encoder.with_dropout(max(m.dropout, 0.0))
    return encoder, None, folder


def _spec(config, encoder: EncoderConfig, folder, decided=None, **fields):
    """The spec that a config describes.

    Args:
      folder: of the tokenizer; None in a plan without one.
      decided: sets the head's options that its weights determine.
      **fields: of the spec.
    """
    head = heads.chosen(config.model.head)
    options = decided(head.options) if decided else head.options
    fields |= {
        "query_prompt": config.model.query_prompt,
        "document_prompt": config.model.document_prompt,
    }
    if folder:
        tokenizer = TextTokenizer(folder)
        options = head.entry.settled(options, tokenizer)
        fields |= {"special_ids": tokenizer.special_ids} | {
            field: _token_id(tokenizer, config.model[field], field)
            for field in ("query_marker", "document_marker")
        }
    return RetrieverSpec(head.name, encoder, options, **fields)


def _token_id(tokenizer: TextTokenizer, token: str, field: str) -> int:
    """The id of a token; -1 for an empty one."""
    found = tokenizer.vocabulary().get(token, -1)
    if token and found < 0:
        raise InputError(
            f"config.model.{field} is {token!r}, which is not in the vocabulary of"
            f" {tokenizer.folder}. Name a token that it has, such as [unused0] of BERT."
        )
    return found


def _on_an_encoder(config, opened) -> Student:
    """A retriever with a new head on an encoder."""
    encoder, model, folder = _encoder(config, opened)
    spec = _spec(config, encoder, folder)

    def params(source):
        values = retriever.init_params(spec, config.seed)
        return values if model is None else _with_encoder(values, model)

    return Student(spec, folder, None, params)


def _with_encoder(values: dict, model: SavedModel) -> dict:
    return _overlaid(values, {"encoder": model.params["encoder"]}, model.name)


def _splade(config, opened) -> Student:
    encoder, model, folder = _encoder(config, opened)
    if model is not None and "head" not in model.params:
        raise InputError(
            f"config.init.encoder: {model.name} has no masked-LM head, which a SPLADE"
            " starts from. Use a masked language model."
        )
    most_active = 0 if model is None else model.spec.most_active
    spec = _spec(
        config,
        encoder,
        folder,
        lambda options: heads.as_trained(options, model) if model else options,
        most_active=most_active,
    )

    def params(source):
        values = retriever.init_params(spec, config.seed)
        if model is not None:
            values = _overlaid(values, model.params, model.name)
        if config.init.lexical or config.init.static == "idf":
            texts = term_statistics.texts_by_language(source)
            idf = term_statistics.least_idf(
                TextTokenizer(folder), texts, encoder.vocab_size
            )
            if config.init.lexical:
                values = warm_start.lexical(values, idf, config.seed)
            if config.init.static == "idf":
                idf = idf.astype(np.float32)
                idf[list(spec.special_ids)] = 0
                values = _merge(values, {"head": {"static": idf}})
        return values

    return Student(spec, folder, None, params)


def _milco(config, opened) -> Student:
    encoder, model, folder = _encoder(config, opened)
    pivot = _one_tower(opened(config.init.head), "init.head")
    if "head" not in pivot.params:
        raise InputError(
            f"config.init.head: {config.init.head} has no masked-LM head to copy."
        )
    spec = _spec(
        config, encoder, folder, lambda options: heads.on_pivot(options, pivot)
    )

    def params(source):
        values = retriever.init_params(spec, config.seed)
        values = _overlaid(values, {"head": {"mlm": _untied(pivot)}}, pivot.name)
        if model is not None:
            values = _with_encoder(values, model)
        if config.init.from_pivot:
            values = fit_to_data.from_pivot(config, values, spec, folder, pivot, source)
        return fit_to_data.with_echo(config, values, spec, folder, source)

    return Student(spec, folder, pivot.tokenizer, params)


def _from_stage(config, model: SavedModel) -> Student:
    if config.model.head.name != model.spec.head:
        raise InputError(
            f"config.init.model: {model.name} has the head {model.spec.head!r}, but"
            f" config.model.head is {config.model.head.name!r}."
        )
    if config.model.towers == "shared":
        _one_tower(model, "init.model")
    learned_echo = "echo" in model.params.get("head", {})
    if learned_echo and config.init.echo != "random":
        raise InputError(
            f"config.init.echo = {config.init.echo!r} would have no effect:"
            f" {model.name} has a source view that was trained. Remove it."
        )
    folder = tokenizer_folder(config.tokenizer) if config.tokenizer else model.tokenizer
    check_vocabulary(folder, model.spec.encoder.vocab_size, model.name)
    encoder = _with_dropout(config, model.spec.encoder)
    spec = _spec(
        config,
        encoder,
        folder,
        lambda options: carried(options, model.spec.options),
        most_active=model.spec.most_active,
    )

    def tower(weights, source):
        values = retriever.init_params(spec, config.seed)
        values = _overlaid(values, weights, model.name)
        if learned_echo:
            return values
        return fit_to_data.with_echo(config, values, spec, folder, source)

    def params(source):
        document, query = retriever.towers_of(model.params)
        values = tower(document, source)
        if query is None:
            return values
        return retriever.with_query_tower(values, tower(query, source))

    return Student(spec, folder, model.pivot_tokenizer, params)


def _untied(pivot: SavedModel) -> dict:
    mlm = dict(pivot.params["head"]["mlm"])
    mlm.setdefault(
        "decoder", pivot.params["encoder"]["embeddings"]["word"]["embedding"]
    )
    return mlm


def _overlaid(params: dict, weights: dict, name: str) -> dict:
    """`params` overlaid with `weights`, whose names and shapes must fit."""
    found, wanted = trees.shapes(weights), trees.shapes(params)
    wanted = {path: shape for path, shape in wanted.items() if path in found}
    if wrong := trees.differences(found, wanted, (name, "config")):
        raise InputError(
            f"The weights of {name} do not fit the model of the config:\n"
            + "\n".join(wrong[:20])
        )
    return _merge(params, weights)


def _merge(params, weights):
    if not isinstance(weights, dict):
        return jnp.asarray(weights)
    return params | {key: _merge(params[key], weights[key]) for key in weights}
