"""A batch of texts in parts of one length each, and their tokens end to end.

Computation per token (products with parameters, LayerNorm, GELU) runs over the tokens
of all parts at once, [T, ...]: the compiled program contains it once, whatever the
number of parts. Only computation across the tokens of a text (attention, pooling) goes
part by part.

Parts are [B, L, ...], with B and L their own. Over a mesh, texts are divided over
`data`; T is ordered by device, then by part. So is the text axis of `together`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from lsrjax.distributed import sharding


@dataclasses.dataclass(frozen=True)
class Texts:
    """Token ids of a batch.

    Attributes:
      ids: of each part, [B, L].
      mask: of each part, [B, L] bool: true at tokens, false at padding.
      query: of each part, [B] bool: true for queries; None: no queries.
      language: of each part, [B] int32: each text's place in the languages that the
        encoder knows; None: its own default.
    """

    ids: tuple[jax.Array, ...]
    mask: tuple[jax.Array, ...]
    query: tuple[jax.Array, ...] | None = None
    language: tuple[jax.Array, ...] | None = None

    @classmethod
    def of(cls, parts: Sequence[Mapping[str, jax.Array]]) -> "Texts":
        """From `{"ids": [B, L], "mask": [B, L], "query": [B], "language": [B]}`.

        The latter two are optional.
        """
        query = tuple(part["query"] for part in parts if "query" in part)
        language = tuple(part["language"] for part in parts if "language" in part)
        return cls(
            tuple(part["ids"] for part in parts),
            tuple(part["mask"].astype(bool) for part in parts),
            query or None,
            language or None,
        )

    def join(self, parts: Iterable[jax.Array]) -> jax.Array:
        """[B, L, ...] of each part, end to end: [T, ...]."""
        return _together(x.reshape(-1, *x.shape[2:]) for x in parts)

    def split(self, x_T: jax.Array) -> tuple[jax.Array, ...]:
        """The inverse of `join`."""
        shards = sharding.axis_size(sharding.DATA)
        x_ST = x_T.reshape(shards, -1, *x_T.shape[1:])
        # The gradient of one split is one concatenation; of slices, sums of padding.
        parts = jax.lax.split(x_ST, [ids.size // shards for ids in self.ids], axis=1)
        return tuple(
            part.reshape(*ids_BL.shape, *x_T.shape[1:])
            for part, ids_BL in zip(parts, self.ids, strict=True)
        )

    def together(self, parts: Iterable[jax.Array]) -> jax.Array:
        """[B, ...] of each part, end to end."""
        return _together(parts)

    def padded(self, parts: Iterable[jax.Array]) -> jax.Array:
        """[B, L, ...] of each part, end to end, with zeros up to the longest part."""
        parts = list(parts)
        widest = max(x.shape[1] for x in parts)
        return _together(
            jnp.pad(x, ((0, 0), (0, widest - x.shape[1]), *[(0, 0)] * (x.ndim - 2)))
            for x in parts
        )

    def keys_of_tokens(self, keys: Iterable[jax.Array]) -> jax.Array:
        """A random key for each token, [T], of keys of texts, [B] for each part.

        It depends on the text's key and the token's place, and not on the padding.
        """
        of_text = (key_B[:, None] for key_B in keys)
        places = (jnp.arange(ids_BL.shape[1]) for ids_BL in self.ids)
        shapes = [ids_BL.shape for ids_BL in self.ids]
        # For all parts at once: the program holds the generator for each shape.
        return jax.vmap(jax.random.fold_in)(
            self.join(map(jnp.broadcast_to, of_text, shapes)),
            self.join(map(jnp.broadcast_to, places, shapes)),
        )

    def first_tokens(self, x_TD: jax.Array) -> tuple[jax.Array, "Texts"]:
        """What an array has of each text's first token within the mask.

        Returns:
          It, and texts of that token alone, without one where the mask is empty.
        """
        first, masks = [], []
        for x_BLD, mask_BL in zip(self.split(x_TD), self.mask, strict=True):
            place_B11 = jnp.argmax(mask_BL, axis=1)[:, None, None]
            first.append(jnp.take_along_axis(x_BLD, place_B11, axis=1))
            masks.append(mask_BL.any(axis=1, keepdims=True))
        return self.join(first), dataclasses.replace(self, mask=tuple(masks))

    def each(self, function: Callable, *arrays: jax.Array) -> list:
        """`function` of each part of arrays that `split` accepts."""
        return [function(*part) for part in zip(*map(self.split, arrays), strict=True)]


def _together(parts: Iterable[jax.Array]) -> jax.Array:
    """Arrays [S x, ...] of S devices each, end to end on every device."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    shards = sharding.axis_size(sharding.DATA)
    rows = [x.reshape(shards, -1, *x.shape[1:]) for x in parts]
    whole = jnp.concatenate(rows, axis=1)
    return whole.reshape(-1, *whole.shape[2:])
