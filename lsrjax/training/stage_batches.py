"""Builds a stage's training batches from its config."""

import dataclasses
import functools

import jax

from lsrjax.data.batching import loader, mixing
from lsrjax.data.batching.drawing import GroupBatches, PairBatches, Reader
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.batching.turns import Turns
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
    make: PairBatches | GroupBatches
    if contents.kind == "pair":
        make = PairBatches(
            _text_field(data, "document_length", student),
            _text_field(data, "document_length", teacher),
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
