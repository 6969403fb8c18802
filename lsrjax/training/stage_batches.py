"""Builds a stage's training batches from its config."""

import dataclasses
import functools
from collections.abc import Sequence

import jax

from lsrjax.data import sources
from lsrjax.data.batching import loader, mixing
from lsrjax.data.batching.drawing import GroupBatches, PairBatches, Reader
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.batching.turns import Turns
from lsrjax.data.examples import ANY
from lsrjax.data.tokenization import TextField, TextTokenizer
from lsrjax.distributed import processes, sharding
from lsrjax.errors import InputError
from lsrjax.training.batch_contents import Contents


def batches(
    name: str,
    contents: Contents,
    source,
    order,
    student,
    teacher,
    mesh: jax.sharding.Mesh,
) -> loader.Batches | Turns:
    """The training batches, of the source's examples in an order.

    `student` and `teacher` (of views, or None) have a spec and a tokenizer.

    Raises:
      InputError: the config allows texts longer than the model takes.
    """
    config, data = contents.config, contents.config.data
    stated = contents.states_languages
    language_number = student.spec.encoder.language_number if stated else None
    make: PairBatches | GroupBatches
    if contents.kind == "pair":
        make = PairBatches(
            _text_field(data, "document_length", student),
            _text_field(data, "document_length", teacher),
            language_number,
        )
    else:
        targets = contents.objective.targets
        make = GroupBatches(
            query=_text_field(data, "query_length", student),
            document=_text_field(data, "document_length", student),
            group_size=mixing.group_sizes(data)[0],
            mixing=data.mixing,
            query_languages=data.query_languages,
            document_languages=data.document_languages,
            with_scores="scores" in targets,
            with_keys="keys" in targets,
            choice=choice_of(data),
            roles_apart=student.spec.roles_apart,
            languages=contents.languages,
            teacher=teacher and _reader(data, teacher),
            language_number=language_number,
        )
    made = functools.partial(
        loader.Batches,
        source,
        order,
        apart=data.unique_texts,
        sets="set" in contents.targets,
        devices=mesh.shape[sharding.DATA],
        rows=sharding.local_rows(mesh),
        parts=data.length_parts,
        multiple=data.length_multiple,
        chunk=config.memory.encode_chunk,
        agree=functools.partial(processes.largest, f"shapes of {name}"),
    )
    sizes = mixing.group_sizes(data)
    if isinstance(make, PairBatches) or len(set(sizes)) == 1:
        return made(make)
    groups = make
    return Turns(
        order,
        sizes,
        lambda size, own: made(dataclasses.replace(groups, group_size=size), own=own),
    )


def _reader(data, model) -> Reader:
    return Reader(
        _text_field(data, "query_length", model),
        _text_field(data, "document_length", model),
        model.spec.roles_apart,
    )


def _text_field(data, length: str, model) -> TextField:
    check_length(data, length, model.spec.encoder.max_length)
    tokenizer, role = TextTokenizer(model.tokenizer), length.removesuffix("_length")
    return TextField.of(model.spec, tokenizer, role, data[length])


def check_length(data, field: str, limit: int) -> None:
    """Refuses texts of more tokens than a model takes, by a field of `data`."""
    if data[field] > limit:
        raise InputError(
            f"config.data.{field} is {data[field]}, but the model takes at most"
            f" {limit} tokens. Lower it."
        )


def check_languages(contents: Contents, sets: Sequence, encoder) -> None:
    """Refuses texts that may be drawn in a language the encoder does not know.

    Args:
      sets: the data sets; none: only what the config says of them is checked.

    Raises:
      InputError: names the languages.
    """
    if not contents.states_languages:
        return
    data = contents.config.data
    weights = {"queries": data.query_languages, "corpus": data.document_languages}
    found = [
        ("queries", name) for one in sets for name in getattr(one, "languages", ())
    ]
    for own in mixing.named_sets(data).values():
        found += [(of, name) for of in weights for name in sources.languages(own, of)]
    drawn = {
        name for of, name in found if weights[of].get(name, weights[of].get(ANY, 0)) > 0
    }
    unknown = {}
    for name in sorted(drawn - {ANY}):
        try:
            encoder.language_number(name)
        except InputError as error:
            unknown[name] = error
    if unknown:
        raise InputError(
            f"config.data has texts in {', '.join(unknown)}, and config.model.language"
            f" is 'stated'. {next(iter(unknown.values()))} To leave languages out, give"
            " them the weight 0 in config.data.query_languages and document_languages."
        )
