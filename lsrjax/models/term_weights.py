"""Modules of heads that turn hidden states into weights of terms."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.models.masking import Masked, Predicted
from lsrjax.models.texts import Texts
from lsrjax.models.views import Bag, Vector
from lsrjax.ops.positive_pool import positive_pool
from lsrjax.ops.vocab_logsumexp import SILENT, vocab_logsumexp
from lsrjax.ops.vocab_pool import vocab_pool
from lsrjax.ops.vocab_sum import vocab_sum


class MLMHead(nnx.Module):
    """A masked-LM head as a bag of words, pooled over tokens."""

    def __init__(
        self,
        transform: nnx.Module,
        hidden_size: int,
        vocab_size: int,
        *,
        silent_terms: int = 0,
        begins: int = -1,
        capped: bool = False,
        cap: float = 0.0,
        bias: bool = True,
        tied: bool,
        pool_mask: str,
        pooling: str = "max",
        activation: str = "relu",
        rngs: nnx.Rngs,
    ):
        """Adds the parameters.

        Args:
          transform: maps hidden states to the decoder's input.
          silent_terms: the first terms, which are never active.
          begins: a token's state gives the logits of the next token, and the first
            one's are 1 at this id, else 0 (NorBERT4); -1: each gives its own.
          capped: a logit x is 30 sigmoid(x / 7.5).
          cap: c, where a logit x is c tanh(x / c) (Gemma 2); 0: it stays.
          bias: the decoder has one.
        """
        self.begins, self.capped, self.cap = begins, capped, cap
        self.transform = transform
        self.silent_terms = silent_terms
        if not tied:
            self.decoder = nnx.Param(
                0.02 * jax.random.normal(rngs.params(), (vocab_size, hidden_size))
            )
        self.bias = nnx.Param(jnp.zeros(vocab_size)) if bias else None
        self.size = vocab_size
        self.tied = tied
        self.pool_mask = pool_mask
        self.pooling = pooling
        self.activation = activation
        self.weights_only = False

    def factors(self, hidden_TD, word_embeddings_VD) -> tuple[jax.Array, ...]:
        """What the logits are made of: the states, the decoder and its bias."""
        decoder_VD = word_embeddings_VD if self.tied else self.decoder[...]
        bias_V = jnp.zeros(self.size) if self.bias is None else self.bias[...]
        if self.silent_terms:
            bias_V = bias_V.at[: self.silent_terms].set(SILENT)
        return self.transform(hidden_TD), decoder_VD, bias_V

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Vector:
        """SPLADE (Formal et al. 2021).

        `log1p(relu(max over tokens of the logits))`, or with the pooling "sum"
        `sum over tokens of log1p(relu(logits))`, which then also serves as the raw
        values, or with "cls" `log1p(relu(logits of the first token))`. With
        `weights_only`, negative raw values are replaced by 0, and there is
        no gradient. With the activation "log1p_relu", log1p is applied to the weights
        once more (Shen et al. 2025, OpenSearch's v3).
        """
        if self.pooling == "cls":
            hidden_TD, texts = texts.first_tokens(hidden_TD)
        mask = texts.mask
        if self.begins >= 0:
            # A state counts if there is a token behind it.
            mask = tuple(jnp.pad(m[:, 1:], ((0, 0), (0, 1))) for m in mask)
        h_TD, w_VD, b_V = self.factors(hidden_TD, word_embeddings_VD)
        factors = h_TD, w_VD, b_V, mask
        twice = self.activation == "log1p_relu"
        if self.pooling == "sum":
            pool = functools.partial(vocab_sum, twice=twice)
            sums_BV = sharding.over_vocabulary(pool, *factors)
            return Vector(sums_BV, sums_BV)
        if self.weights_only and not self.capped:
            # A padded 0 (`pool_mask`) is not positive either.
            raw_BV = sharding.over_vocabulary(positive_pool, *factors)
        else:
            largest = functools.partial(vocab_pool, pool_mask=self.pool_mask)
            raw_BV, _ = sharding.over_vocabulary(largest, *factors)
        if self.cap:  # after the maximum, whose place it does not change
            raw_BV = self.cap * jnp.tanh(raw_BV / self.cap)
        if self.begins >= 0:
            raw_BV = self._begun(raw_BV, texts, mask)
        return Vector(_saturated(jax.nn.relu(raw_BV), twice), raw_BV)

    def predicted(
        self, hidden_TD, texts: Texts, word_embeddings_VD, masked: Masked
    ) -> Predicted:
        """How well masked tokens are predicted: their cross entropies."""
        states_TD = masked.states(hidden_TD, texts, self.begins >= 0)
        h_TD, decoder_VD, bias_V = self.factors(states_TD, word_embeddings_VD)
        ids_T = masked.tokens.join(masked.tokens.ids)
        kept_T = masked.tokens.join(masked.tokens.mask)
        # Even slices of the vocabulary, of which none has more than its terms.
        extra = -self.size % sharding.axis_size(sharding.MODEL)
        total = functools.partial(vocab_logsumexp, squash=self._squashed)
        parts_TM = sharding.over_vocabulary(
            total,
            h_TD,
            jnp.pad(decoder_VD, ((0, extra), (0, 0))),
            jnp.pad(bias_V, (0, extra), constant_values=SILENT),
            kept_T,
        )
        own_TD = decoder_VD[ids_T].astype(h_TD.dtype)
        own_T = jnp.einsum("td,td->t", h_TD, own_TD, preferred_element_type=jnp.float32)
        own_T = self._squashed(own_T + bias_V[ids_T])
        return masked.by_text(jax.nn.logsumexp(parts_TM, axis=1) - own_T)

    def _squashed(self, logits: jax.Array) -> jax.Array:
        if self.capped:
            return 30 * jax.nn.sigmoid(logits / 7.5)
        return self.cap * jnp.tanh(logits / self.cap) if self.cap else logits

    def _begun(self, raw_BV, texts: Texts, mask) -> jax.Array:
        """The largest logits with those of the first token, which are constant."""
        terms_V = jnp.arange(raw_BV.shape[1])
        if self.capped:  # after the maximum, whose place it does not change
            some_B = texts.together(m.any(axis=1) for m in mask)
            real_BV = some_B[:, None] & (terms_V < self.size)[None]
            raw_BV = jnp.where(real_BV, 30 * jax.nn.sigmoid(raw_BV / 7.5), 0)
        first_B = texts.together(m[:, 0] for m in texts.mask)
        begins_BV = first_B[:, None] & (terms_V == self.begins)[None]
        return jnp.where(begins_BV, jnp.maximum(raw_BV, 1), raw_BV)


def _saturated(positive_BV, twice: bool):
    once_BV = jnp.log1p(positive_BV)
    return jnp.log1p(once_BV) if twice else once_BV


class LexEcho(nnx.Module):
    """MILCO's source view: a weight for each input token, in its own column.

    `s = relu(x a + c) * mask * scale` over the hidden states x before the connector.
    """

    def __init__(self, spec, repeats: str, excluded=(), *, rngs: nnx.Rngs):
        """`excluded` tokens get no weight; `repeats` of a token are "sum" or "max"."""
        D = spec.encoder.hidden_size
        bound = D**-0.5  # torch.nn.Linear's default initialisation
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (D,), minval=-bound, maxval=bound)
        )
        self.bias = nnx.Param(
            jax.random.uniform(rngs.params(), (), minval=-bound, maxval=bound)
        )
        self.scale = nnx.Param(jnp.ones(()))
        self.size = spec.encoder.vocab_size
        self.special_ids = excluded
        self.repeats = repeats

    def __call__(self, hidden_TD, texts: Texts) -> Bag:
        """The tokens' ids with their weights."""
        x_TD = hidden_TD.astype(jnp.float32)
        s_T = jax.nn.relu(x_TD @ self.kernel[...] + self.bias[...])
        weights = map(self._kept, texts.split(s_T), texts.ids, texts.mask)
        weights_BL = texts.padded(weights) * self.scale[...]
        return Bag(texts.padded(texts.ids), weights_BL, self.size)

    def _kept(self, s_BL, ids_BL, mask_BL) -> jax.Array:
        """The weights, set to 0 for tokens that get none."""
        keep_BL = mask_BL
        for special in self.special_ids:
            keep_BL = keep_BL & (ids_BL != special)
        s_BL = jnp.where(keep_BL, s_BL, 0.0)
        return strongest_repeat(ids_BL, s_BL) if self.repeats == "max" else s_BL


def strongest_repeat(ids_BL, weights_BL):
    """Zeroes all but the strongest occurrence of each id (the first if equal)."""
    L = ids_BL.shape[1]
    same_BLL = ids_BL[:, :, None] == ids_BL[:, None, :]
    stronger_BLL = weights_BL[:, None, :] > weights_BL[:, :, None]
    earlier_LL = jnp.tril(jnp.ones((L, L), bool), k=-1)
    ties_BLL = (weights_BL[:, None, :] == weights_BL[:, :, None]) & earlier_LL
    beaten_BL = (same_BLL & (stronger_BLL | ties_BLL)).any(axis=2)
    return jnp.where(beaten_BL, 0.0, weights_BL)
