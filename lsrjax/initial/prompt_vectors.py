"""Prompt vectors at the start: tokens for them, and these tokens' rows of tables.

A prompt vector is the word embedding of a special token of its own, in front of all
queries or all documents. It is no term: heads over the encoder's vocabulary are silent
at its column.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.models import prompt_rows, retriever
from lsrjax.models.backbones.table import backbone
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.ops.vocab_logsumexp import SILENT
from lsrjax.tokenizer import prompt_tokens
from lsrjax.tokenizer.writing import temporary_folder

WHERE = "config.adapt.prompt"


def tokenizer_with(
    folder: pathlib.Path, counts: Mapping[str, int], name: str
) -> pathlib.Path:
    """The folder of a tokenizer with tokens for prompt vectors.

    The same one if it has them, as that of an earlier stage, whose vectors are trained
    on. Another one is removed when the process ends.

    Args:
      folder: of a tokenizer.
      counts: vectors by role.
      name: of its model, for errors.

    Raises:
      InputError: it has another number of them, or cannot have them.
    """
    there = prompt_tokens.names_in(TextTokenizer(folder).vocabulary())
    found = {role: len(names) for role, names in there.items()}
    if any(found.values()):
        if found == {role: counts[role] for role in found}:
            return folder
        raise InputError(
            f"{WHERE}: {name} has {found['query']} prompt vectors for queries and"
            f" {found['document']} for documents. Set queries and documents to these"
            " numbers, to train them on, or leave the adapter out, to keep them."
        )
    made = temporary_folder()
    prompt_tokens.add(made, folder, counts)
    return made


def with_tokens(model: SavedModel, counts: Mapping[str, int]) -> SavedModel:
    """A model whose vocabulary has tokens for prompt vectors; their rows are 0.

    The same one if it has them. `counts` are vectors by role.

    Raises:
      InputError: see `tokenizer_with`.
    """
    spec, size, total = model.spec, model.spec.encoder.vocab_size, sum(counts.values())
    if model.tokenizer is None:  # in a plan
        first, folder = size, None
        if len(spec.prompt_ids) == total:
            return model
    else:
        folder = tokenizer_with(model.tokenizer, counts, model.name)
        if folder == model.tokenizer:
            return model
        first = TextTokenizer(folder).vocab_size - total
    params = _untied(model)
    if params is not model.params:
        spec = spec.replaced(tied=False)
    # A vocabulary may have rows to spare, which no token uses.
    extra = max(first + total - size, 0)
    axes = _token_axes(spec)

    def longer(path, leaf):
        axis = axes.get(trees.path_name(path))
        if axis is None or not extra:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape = list(leaf.shape)
            shape[axis] += extra
            return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
        widths = [(0, extra * (i == axis)) for i in range(leaf.ndim)]
        return np.pad(leaf, widths)

    encoder = dataclasses.replace(spec.encoder, vocab_size=size + extra)
    return dataclasses.replace(
        model,
        spec=dataclasses.replace(
            spec, encoder=encoder, prompt_ids=tuple(range(first, first + total))
        ),
        params=jax.tree_util.tree_map_with_path(longer, params),
        tokenizer=folder,
    )


def started(spec: RetrieverSpec, params: dict, seed: int) -> dict:
    """Parameters with vectors to start from, which are no terms.

    Each is the embedding of a random token (Lester et al. 2021), and all else that
    belongs to its token is 0, or silent.

    Args:
      spec: with `prompt_ids`.
      params: of all towers.
      seed: of the stage.
    """
    ids, axes = list(spec.prompt_ids), _token_axes(spec)
    rng = np.random.default_rng((seed, len(ids)))
    ordinary = np.setdiff1d(np.arange(min(ids)), spec.special_ids)
    drawn = rng.choice(ordinary, len(ids), replace=len(ordinary) < len(ids))

    def rows(path, leaf):
        name = trees.path_name(path)
        if name not in axes:
            return leaf
        leaf = jnp.moveaxis(jnp.asarray(leaf), axes[name], 0)
        if name.endswith(f"word/{prompt_rows.TABLE}"):
            new: Any = leaf[drawn]
        else:
            new = SILENT if name.endswith("mlm/bias") else 0.0
        return jnp.moveaxis(leaf.at[jnp.asarray(ids)].set(new), 0, axes[name])

    return jax.tree_util.tree_map_with_path(rows, params)


def check(config, spec: RetrieverSpec, folder: pathlib.Path | None) -> None:
    """Refuses heads that cannot be silent at a token, and texts without room.

    Args:
      config: of the stage.
      spec: with `prompt_ids`.
      folder: of the encoder's tokenizer; None in a plan without.
    """
    if _is_never_silent(spec):
        raise InputError(
            f"{WHERE}: the decoder of the head {spec.head} is the word table, and a"
            f" {spec.encoder.family} has no bias that would keep the tokens of the"
            " vectors from becoming terms. Set config.model.head.tied = False."
        )
    if folder is None:
        return
    tokenizer = TextTokenizer(folder)
    for role in prompt_tokens.ROLES:
        length = config.data[f"{role}_length"]
        (ids,) = tokenizer.ids([getattr(spec, f"{role}_prompt")], 2**20)
        if set(ids) & set(spec.prompt_ids) and len(ids) >= length:
            raise InputError(
                f"{WHERE}: config.data.{role}_length is {length}, of which the prompt"
                f" with its vectors takes {len(ids)}, so no text is left. Raise it by"
                " the number of vectors, or use fewer."
            )


def _is_never_silent(spec: RetrieverSpec) -> bool:
    """Whether the decoder is the word table, and has no bias."""
    tied = bool(getattr(spec.options, "tied", False))
    return tied and not backbone(spec.encoder.family).head_bias


def _untied(model: SavedModel) -> Any:
    """The parameters, with a decoder of its own where one without bias is tied."""
    if not _is_never_silent(model.spec):
        return model.params

    def untied(tower: dict) -> dict:
        words = tower["encoder"]["embeddings"]["word"][prompt_rows.TABLE]
        head = tower.get("head", {})  # a tied decoder can be all of it
        mlm = head.get("mlm", {}) | {"decoder": words}
        return tower | {"head": head | {"mlm": mlm}}

    document, query = retriever.towers_of(model.params)
    document = untied(document)
    if query is None:
        return document
    return document | {retriever.QUERY_TOWER: untied(query)}


def _token_axes(spec: RetrieverSpec) -> dict[str, int]:
    """The axis that a parameter has for the encoder's tokens, by path."""
    encoder = spec.encoder
    more = dataclasses.replace(encoder, vocab_size=encoder.vocab_size + 1)
    own, longer = (
        trees.shapes(retriever.split(one)[1])
        for one in (spec, dataclasses.replace(spec, encoder=more))
    )
    return {
        name: [a != b for a, b in zip(shape, longer[name], strict=True)].index(True)
        for name, shape in own.items()
        if shape != longer[name]
    }
