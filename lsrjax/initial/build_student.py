"""Builds a stage's student: its spec, tokenizers and initial weights."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert.open_model import check_vocabulary, tokenizer_folder
from lsrjax.data.tokenization import TextField, TextTokenizer, unpooled
from lsrjax.errors import InputError
from lsrjax.initial import initialisations, prompt_vectors
from lsrjax.initial.start import Start
from lsrjax.losses import objective
from lsrjax.models import adapters, heads, retriever
from lsrjax.models.backbones import table
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.options import Chosen
from lsrjax.tokenizer import ends, prompt_tokens


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
    head = heads.chosen(config.model.head)
    starts = initialisations.of(config.init)
    models = {
        one.name: _fitting(config, one, opened(reference))
        for one in starts
        if (reference := getattr(one.options, "model", ""))
    }
    prompts = adapters.prompts(adapters.of(config.adapt))
    new = bool(prompts)  # vectors, which no model has
    given = [one.name for one in starts if one.entry.gives_encoder]
    for name in given:
        own = _with_tokenizer(config, models[name])
        models[name] = prompt_vectors.with_tokens(own, prompts) if prompts else own
        new = new and models[name] is not own
    found = [models[name] for name in given]
    encoder, folder = _given(config, *found) if found else _random(config, prompts)
    if config.model.language:
        encoder = encoder.with_language(config.model.language)
    fields: dict = {"options": head.options}
    pivot_tokenizer = None
    for one in starts:
        model = models.get(one.name)
        fields |= one.entry.spec_fields(head.entry, fields["options"], model)
        if model is not None:
            pivot_tokenizer = one.entry.pivot_tokenizer(model) or pivot_tokenizer
    if folder is None:
        (fields["prompt_ids"],) = (model.spec.prompt_ids for model in found)
    spec = _spec(config, head, encoder, folder, fields)
    if prompts:
        prompt_vectors.check(config, spec, folder)
    objective.of(config.loss).check_views(spec.views, "config.loss")
    for one in starts:
        one.entry.check(spec, models)
    _check_tables(head, starts, models)
    towers = config.model.towers
    if towers == "separate" and not spec.encodes_queries:
        raise InputError(
            "config.model.towers is 'separate', but queries of the head"
            f" {head.name} need no encoder, so there is nothing to separate. Use"
            " 'shared'."
        )

    def params(source):
        start = Start(spec, head.entry, folder, pivot_tokenizer, source, config.seed)
        document = _weights(starts, models, start)
        if new:
            document = prompt_vectors.started(spec, document, config.seed)
        if towers == "shared":
            return document
        queries = {
            name: dataclasses.replace(model, params=query)
            for name, model in models.items()
            if (query := retriever.towers_of(model.params)[1]) is not None
        }
        query = _weights(starts, models | queries, start) if queries else None
        if new and query is not None:
            query = prompt_vectors.started(spec, query, config.seed)
        return retriever.with_query_tower(document, query)

    spec_of_both = dataclasses.replace(spec, towers=towers)
    return Student(spec_of_both, folder, pivot_tokenizer, params)


def _weights(
    starts: Sequence[Chosen], models: Mapping[str, SavedModel], start: Start
) -> dict:
    """The parameters of one tower."""
    params = retriever.init_params(start.spec, start.seed)
    for one in starts:
        model = models.get(one.name)
        params = one.entry.weights(params, one.options, model, start)
    return params


def _check_tables(head: Chosen, starts, models: Mapping[str, SavedModel]) -> None:
    """Refuses tables that nothing fills: an empty one never learns."""
    given, whole = {one.name for one in starts}, False
    for one in starts:
        if one.entry.gives_head:
            whole = True
            given |= set(models[one.name].params.get("head", {}))
    for option, (name, part) in head.entry.tables.items():
        if getattr(head.options, option) and not given & {name, part}:
            add = "Add" if not whole else "In a stage without config.init.model, add"
            raise InputError(
                f"config.model.head.{option} is set, and nothing fills its table. {add}"
                f" config.init.{name}, or start from a whole retriever that has one."
            )


def _fitting(config, one: Chosen, model: SavedModel) -> SavedModel:
    """The model of an initialisation; refuses one of two towers for one."""
    both = one.entry.gives_head and config.model.towers == "separate"
    if model.spec.towers == "separate" and not both:
        raise InputError(
            f"config.init.{one.name}: {model.name} has separate towers for queries and"
            " documents, and it is not said which one is meant. Start from all of it"
            " with config.init.model and config.model.towers = 'separate', or name a"
            " model with shared towers."
        )
    return model


def _changed(config, encoder: EncoderConfig) -> EncoderConfig:
    """An encoder with the config's attention and dropout, or its own."""
    if config.model.attention:
        encoder = encoder.seeing(config.model.attention)
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


def _with_tokenizer(config, model: SavedModel) -> SavedModel:
    """A model with the config's tokenizer, or its own."""
    folder = tokenizer_folder(config.tokenizer) if config.tokenizer else model.tokenizer
    check_vocabulary(folder, model.spec.encoder.vocab_size, model.name)
    if folder is not None:
        folder = _with_ends(config, folder)
    return dataclasses.replace(model, tokenizer=folder)


def _with_ends(config, folder: pathlib.Path) -> pathlib.Path:
    m = config.model
    return ends.with_ends(folder, m.add_bos, m.add_eos, "config.model")


def _given(config, model: SavedModel) -> tuple[EncoderConfig, pathlib.Path]:
    """The encoder's config, from a model, and its tokenizer."""
    return _changed(config, model.spec.encoder), model.tokenizer


def _random(config, prompts: Mapping[str, int]) -> tuple[EncoderConfig, pathlib.Path]:
    """The encoder's config for random weights, and its tokenizer."""
    if not config.tokenizer:
        raise InputError(
            "config.tokenizer is empty and so is config.init.encoder: random weights"
            " need a tokenizer, which fixes the vocabulary."
        )
    folder = _with_ends(config, tokenizer_folder(config.tokenizer))
    if prompts:
        folder = prompt_vectors.tokenizer_with(folder, prompts, config.tokenizer)
    tokenizer = TextTokenizer(folder)
    m = config.model
    family = table.chosen(m.family)
    encoder = family.entry.config.fresh(
        family.name,
        tokenizer.pad_id,
        m.max_length,
        vocab_size=tokenizer.vocab_size,
        hidden_size=m.hidden_size,
        num_layers=m.num_layers,
        num_heads=m.num_heads,
        intermediate_size=m.intermediate_size,
        **vars(family.options),
    )
    return _changed(config, encoder.with_dropout(0.0)), folder


def _spec(
    config, head: Chosen, encoder: EncoderConfig, folder, fields: dict
) -> RetrieverSpec:
    """The spec of one tower.

    Args:
      config: the stage's.
      head: with the config's options.
      encoder: its config.
      folder: of the tokenizer; None in a plan without one.
      fields: of the spec, with the head's "options".
    """
    fields = fields | {
        "query_prompt": config.model.query_prompt,
        "document_prompt": config.model.document_prompt,
    }
    if folder:
        tokenizer = TextTokenizer(folder)
        fields["options"] = head.entry.settled(fields["options"], tokenizer)
        fields["special_ids"] = tokenizer.special_ids
        fields |= _prompts(fields, folder, tokenizer, head)
        for field in ("query_marker", "document_marker"):
            fields[field] = _token_id(tokenizer, config.model[field], field)
            if fields[field] >= 0:
                fields["marker_place"] = int(tokenizer.begins)
    spec = RetrieverSpec(head.name, encoder, **fields)
    if config.model.include_prompt or not folder:
        return spec
    return spec.replaced(**_unpooled(spec, tokenizer))


def _unpooled(spec: RetrieverSpec, tokenizer: TextTokenizer) -> dict[str, int]:
    """The fields of a pooling without prompts; refuses prompts that tear a word."""
    found = unpooled(spec, tokenizer)
    for role in prompt_tokens.ROLES:
        field = TextField.of(spec, tokenizer, role, 2**20)
        count = found[f"{role}_unpooled"]
        alone, *both = field.ids(["", "a", "The", "5%", "Ä", "你"])
        if count and any(ids[:count] != alone[:count] for ids in both):
            raise InputError(
                f"config.model.include_prompt is False, but the tokens of {role}_prompt"
                f" {field.prompt!r} alone are not those before a text: its last one"
                " merges with the text's first. End the prompt without a space, or with"
                f" a line break, or use {role}_marker."
            )
    return found


def _prompts(fields: dict, folder, tokenizer: TextTokenizer, head: Chosen) -> dict:
    """The prompts with the vectors of a vocabulary that has some in front."""
    vocabulary = tokenizer.vocabulary()
    names = prompt_tokens.names_in(vocabulary)
    ids = tuple(
        vocabulary[name] for role in prompt_tokens.ROLES for name in names[role]
    )
    if not head.entry.encodes_queries(fields["options"]):
        names["query"] = []  # bags of words
    return {"prompt_ids": ids} | {
        f"{role}_prompt": prompt_tokens.in_front(
            folder, names[role], fields[f"{role}_prompt"]
        )
        for role in prompt_tokens.ROLES
    }


def _token_id(tokenizer: TextTokenizer, token: str, field: str) -> int:
    """The id of a token; -1 for an empty one."""
    found = tokenizer.vocabulary().get(token, -1)
    if token and found < 0:
        raise InputError(
            f"config.model.{field} is {token!r}, which is not in the vocabulary of"
            f" {tokenizer.folder}. Name a token that it has, such as [unused0] of BERT."
        )
    return found
