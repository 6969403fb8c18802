"""Encodes the texts of a batch: in parts, in chunks and over devices."""

import math
from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.models.masking import Masking
from lsrjax.models.retriever import QUERY, apply
from lsrjax.models.texts import Texts
from lsrjax.models.views import Views


def apply_batch(
    graphdef: nnx.GraphDef,
    params: dict,
    texts: dict,
    *,
    queries: dict | None = None,
    chunk: int = 0,
    remat: str = "none",
    dropout_key: jax.Array | None = None,
    masking: Masking | None = None,
    masking_key: jax.Array | None = None,
) -> dict[str, Views]:
    """Encodes the texts of a batch, cut as `data.batching.length_shapes` does.

    Args:
      texts: `{"parts", "place"}` of every device, end to end.
      queries: the texts named "query" of a model whose `RetrieverSpec.roles_apart` is
        true: cut on their own and not among `texts`.
      chunk: texts that a device encodes at a time. The backward pass encodes chunks
        again. 0: all at once, without recomputation.
      remat: what the backward pass recomputes, see `lsrjax.models.backbones.bert`.
      dropout_key: what is dropped of a text depends on its number in the batch, not on
        how the batch is cut. None: no dropout.
      masking: masks tokens of the texts, as drawn by `masking_key` and a text's number.

    Returns:
      The views by name of text, in the order of the examples.
    """

    # A function of its own for each role: JAX keeps what it has traced by the function
    # and the shapes, which those of two roles may share.
    def encoder_of(role):
        def encode(parts):
            keys = _keys(dropout_key, parts)
            masked = {"masking": masking, "masking_keys": _keys(masking_key, parts)}
            # Where all texts have one role, no array is needed for it.
            if role is not None:
                parts = [{k: of for k, of in p.items() if k != "query"} for p in parts]
            options = {"role": role, "dropout_keys": keys, "remat": remat}
            return apply(graphdef, params, parts, **options, **masked)

        return encode

    views: dict[str, Views] = {}
    for own in _sets(texts, queries):
        names = own["place"].keys()
        mixed = QUERY in names and len(names) > 1
        role = None if mixed else QUERY if QUERY in names else "document"
        views |= _named(_in_chunks(encoder_of(role), own["parts"], chunk), own["place"])
    return views


def _keys(key: jax.Array | None, parts) -> tuple[jax.Array, ...] | None:
    """A key for each text, by its number in the batch: [B] for each part."""
    if key is None:
        return None
    shards = sharding.axis_size(sharding.DATA)
    numbers = [part["number"].reshape(shards, -1) for part in parts]
    # At once, since the program holds the generator for each shape.
    fold = jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))
    keys = fold(jnp.concatenate(numbers, axis=1))
    ends = accumulate(own.shape[1] for own in numbers)
    return tuple(
        keys[:, end - own.shape[1] : end].reshape(-1)
        for own, end in zip(numbers, ends, strict=True)
    )


def tokens_of(
    texts: dict, *, queries: dict | None = None
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The token ids and masks of texts (see `apply_batch`), [B, L] each, by name."""
    found: dict[str, tuple[jax.Array, jax.Array]] = {}
    for own in _sets(texts, queries):
        parts = Texts.of(own["parts"])
        tokens = parts.padded(parts.ids), parts.padded(parts.mask)
        found |= _named(tokens, own["place"])
    return found


def _sets(texts: dict, queries: dict | None) -> list[dict]:
    return [texts] if queries is None else [queries, texts]


def _named(rows, places: dict[str, jax.Array]) -> dict:
    """The rows of each name, out of those of all parts end to end."""
    shards = sharding.axis_size(sharding.DATA)

    def chosen(place_B):
        place_SB = place_B.reshape(shards, -1)

        def of(x_T):
            x_ST = x_T.reshape(shards, -1, *x_T.shape[1:])
            x_SB = jax.vmap(_rows)(x_ST, place_SB)
            return x_SB.reshape(-1, *x_T.shape[1:])

        return jax.tree.map(of, rows)

    return {name: chosen(place_B) for name, place_B in places.items()}


def _rows(x, place):
    # The places are distinct, so the gradient needs no order.
    return x.at[place].get(unique_indices=True, mode="promise_in_bounds")


def _in_chunks(encode, parts, chunk: int) -> Views:
    """`encode(parts)`, with about `chunk` texts per device at a time."""
    shards = sharding.axis_size(sharding.DATA)
    counts = [len(part["ids"]) // shards for part in parts]
    chunks = math.ceil(sum(counts) / chunk) if chunk else 1
    if chunks == 1:
        return encode(parts)
    sizes = [math.ceil(count / chunks) for count in counts]

    def divide(x, size):
        """[shards * count, ...] to [chunks, shards * size, ...], padded."""
        x = x.reshape(shards, -1, *x.shape[1:])
        extra = chunks * size - x.shape[1]
        # The padding is copies of a device's first text; `join` cuts it off.
        x = jnp.concatenate([x, jnp.repeat(x[:, :1], extra, axis=1)], axis=1)
        x = x.reshape(shards, chunks, size, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(chunks, shards * size, *x.shape[3:])

    def join(x):
        """The inverse; the parts end to end."""
        x = x.reshape(chunks, shards, sum(sizes), *x.shape[2:]).swapaxes(0, 1)
        found, first = [], 0
        for count, size in zip(counts, sizes, strict=True):
            own = x[:, :, first : first + size]
            found.append(own.reshape(shards, -1, *x.shape[3:])[:, :count])
            first += size
        whole = jnp.concatenate(found, axis=1)
        return whole.reshape(-1, *whole.shape[2:])

    divided = tuple(
        jax.tree.map(lambda x, size=size: divide(x, size), part)
        for part, size in zip(parts, sizes, strict=True)
    )
    return jax.tree.map(join, jax.lax.map(jax.checkpoint(encode), divided))
