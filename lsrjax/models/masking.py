"""Masks tokens of a batch's texts, which a masked language model is to predict."""

import dataclasses

import jax
import jax.numpy as jnp

from lsrjax.models.texts import Texts


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which tokens are masked, and what stands in their places.

    Attributes:
      rate: share of a text's tokens without special ones, rounded; at least one.
      hidden: share of these that the mask token replaces.
      random: share that any token replaces; the rest stays as it is.
      mask_id: the mask token.
    """

    rate: float
    hidden: float
    random: float
    mask_id: int = 0

    def __call__(
        self,
        texts: Texts,
        keys: tuple[jax.Array, ...],
        special_ids: tuple[int, ...],
        size: int,
    ) -> tuple[Texts, "Masked"]:
        """The texts with masked tokens, and the tokens that were there.

        What is drawn for a token depends on its text's key and its place alone.

        Args:
          keys: of each text, [B] for each part.
          special_ids: tokens that are never masked.
          size: of the vocabulary.
        """
        shown, places, ids, kept = [], [], [], []
        draws = _uniform(texts, keys)
        for ids_BL, mask_BL, draws_BL3 in zip(
            texts.ids, texts.mask, draws, strict=True
        ):
            words_BL = mask_BL
            for special in special_ids:
                words_BL = words_BL & (ids_BL != special)
            place_BK, kept_BK = self._chosen(words_BL, draws_BL3[..., 0])
            rows_B1 = jnp.arange(len(ids_BL))[:, None]
            chosen_BL = jnp.zeros(ids_BL.shape, bool)
            chosen_BL = chosen_BL.at[rows_B1, place_BK].set(kept_BK)
            other_BL = (draws_BL3[..., 2] * size).astype(ids_BL.dtype)
            other_BL = jnp.minimum(other_BL, size - 1)
            kind_BL = draws_BL3[..., 1]
            changed_BL = jnp.where(
                kind_BL < self.hidden + self.random, other_BL, ids_BL
            )
            changed_BL = jnp.where(kind_BL < self.hidden, self.mask_id, changed_BL)
            shown.append(jnp.where(chosen_BL, changed_BL, ids_BL))
            places.append(place_BK)
            ids.append(jnp.take_along_axis(ids_BL, place_BK, axis=1))
            kept.append(kept_BK)
        masked = Masked(Texts(tuple(ids), tuple(kept)), tuple(places))
        return dataclasses.replace(texts, ids=tuple(shown)), masked

    def _chosen(self, words_BL, order_BL) -> tuple[jax.Array, jax.Array]:
        """Distinct places [B, K], the chosen ones first, and which these are."""
        most = max(int(self.rate * words_BL.shape[1] + 0.5), 1)
        words_B = words_BL.sum(axis=1)
        count_B = jnp.floor(self.rate * words_B + 0.5).astype(jnp.int32)
        count_B = jnp.clip(count_B, jnp.minimum(words_B, 1), most)
        # Padding and special tokens come last.
        place_BL = jnp.argsort(jnp.where(words_BL, order_BL, 2.0), axis=1)
        return place_BL[:, :most], jnp.arange(most)[None] < count_B[:, None]


@dataclasses.dataclass(frozen=True)
class Masked:
    """The tokens of a batch that are to be predicted.

    Attributes:
      tokens: of each text, filled up, as texts of their own.
      places: of each token in its text, [B, K] for each part.
    """

    tokens: Texts
    places: tuple[jax.Array, ...]

    def states(self, hidden_TD: jax.Array, texts: Texts, before: bool) -> jax.Array:
        """The states that predict the tokens, end to end.

        They are those at the tokens or, with `before`, of the tokens before these;
        zeros where there is none.
        """
        hidden = texts.split(hidden_TD)
        parts = zip(hidden, self.places, self.tokens.mask, strict=True)

        def of(hidden_BLD, place_BK, kept_BK):
            place_BK1 = jnp.maximum(place_BK - before, 0)[:, :, None]
            found_BKD = jnp.take_along_axis(hidden_BLD, place_BK1, axis=1)
            # A selection, since a padded state may be NaN.
            return jnp.where(kept_BK[:, :, None], found_BKD, 0)

        return self.tokens.join(of(*part) for part in parts)

    def by_text(self, error_T: jax.Array) -> "Predicted":
        """The sums over each text's tokens."""
        parts = zip(self.tokens.split(error_T), self.tokens.mask, strict=True)
        sums = (jnp.where(kept, error, 0.0).sum(axis=1) for error, kept in parts)
        counts = (kept.sum(axis=1) for kept in self.tokens.mask)
        together = self.tokens.together
        return Predicted(together(sums), together(counts))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Predicted:
    """How well the masked tokens of each text are predicted.

    Attributes:
      error_B: sum of their cross entropies.
      count_B: their number.
    """

    error_B: jax.Array
    count_B: jax.Array


PREDICTED = "predicted"  # its place beside the views of a text


def taken_out(views: dict[str, dict]) -> tuple[dict[str, dict], dict[str, Predicted]]:
    """The views by text, and what is predicted of each text, if anything."""
    others = {
        text: {name: view for name, view in by_view.items() if name != PREDICTED}
        for text, by_view in views.items()
    }
    return others, {
        text: by_view[PREDICTED]
        for text, by_view in views.items()
        if PREDICTED in by_view
    }


def _uniform(texts: Texts, keys: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Three numbers for each token, [B, L, 3], independent of the padding."""
    keys_T = texts.keys_of_tokens(keys)
    return texts.split(jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys_T))
