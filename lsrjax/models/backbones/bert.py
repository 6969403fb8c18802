"""BERT, DistilBERT and XLM-RoBERTa encoders in one implementation.

The computation is that of `BertModel` (Devlin et al., 2019, arXiv:1810.04805) and
`XLMRobertaModel` (Conneau et al., 2020, arXiv:1911.02116) in Hugging Face transformers,
without the pooler; DistilBERT (Sanh et al., 2019, arXiv:1910.01108) is a BERT without
token types. In array names T is all tokens of a batch, C the width of one attention
head and M a second token axis, the attended one.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.layers import DType, LayerNorm, dropout, gelu, linear, subkeys
from lsrjax.models.texts import Texts
from lsrjax.ops import hardware


class Embeddings(nnx.Module):
    """Sum of word, position and token type embeddings, normalized."""

    def __init__(self, config: EncoderConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(
                rows,
                config.hidden_size,
                embedding_init=nnx.initializers.normal(config.initializer_range),
                param_dtype=jnp.float32,
                rngs=rngs,
            )

        self.word = table(config.vocab_size)
        self.position = table(config.max_positions)
        if config.type_vocab_size:
            self.token_type = table(config.type_vocab_size)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        texts: Texts,
        *,
        types: tuple[jax.Array, ...] | None = None,
        keys_T: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds token ids, of type 0 if `types` is None; returns [T, D]."""
        embedded_TD = self.word(texts.join(texts.ids)) + self._at_positions(texts)
        if types is not None:
            embedded_TD += self.token_type(texts.join(types))
        elif self.config.type_vocab_size:
            embedded_TD += self.token_type.embedding[...][0][None]
        embedded_TD = sharding.constrain(embedded_TD, sharding.DATA, None)
        embedded_TD = self.norm(embedded_TD).astype(self.dtype)
        return dropout(embedded_TD, self.config.hidden_dropout, keys_T)

    def _at_positions(self, texts: Texts) -> jax.Array:
        """The position embeddings of all tokens, [T, D]."""
        if self.config.family == "xlm-roberta":
            rows = map(self._rows, texts.ids, texts.mask)
            return self.position(texts.join(rows))
        # One row for all texts of a part instead of a look-up for every token.
        table = self.position.embedding[...]
        return texts.join(
            jnp.broadcast_to(
                table[None, : ids_BL.shape[1]], (*ids_BL.shape, table.shape[1])
            )
            for ids_BL in texts.ids
        )

    def _rows(self, ids_BL, mask_BL) -> jax.Array:
        """Rows of XLM-R's position table, [B, L]."""
        # transformers uses the ids alone; with the mask as well, the content of the
        # padding cannot shift the tokens after it.
        pad = self.config.pad_token_id
        real_BL = ((ids_BL != pad) & mask_BL).astype(jnp.int32)
        return jnp.cumsum(real_BL, axis=1) * real_BL + pad


class Projections(nnx.Module):
    """Queries, keys and values: `kernel` [D, 3, D], `bias` [3, D]."""

    def __init__(self, config: EncoderConfig, *, dtype: DType, rngs: nnx.Rngs):
        size = config.hidden_size
        three = [
            linear(size, size, initializer_range=config.initializer_range, rngs=rngs)
            for _ in range(3)
        ]
        self.kernel = nnx.Param(jnp.stack([one.kernel[...] for one in three], axis=1))
        self.bias = nnx.Param(jnp.zeros((3, size)))
        self.dtype = dtype

    def __call__(self, hidden_TD: jax.Array) -> list[jax.Array]:
        """Queries, keys and values, [T, D] each."""
        kernel_D3D, bias_3D = (
            x[...].astype(self.dtype) for x in (self.kernel, self.bias)
        )
        # One product for all three would have to be copied into attention's layout.
        return [hidden_TD @ kernel_D3D[:, i] + bias_3D[i][None] for i in range(3)]


class Attention(nnx.Module):
    """Multi-head self-attention in both directions."""

    def __init__(self, config: EncoderConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.qkv = Projections(config, dtype=dtype, rngs=rngs)
        self.out = linear(
            config.hidden_size,
            config.hidden_size,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        hidden_TD: jax.Array,
        texts: Texts,
        seen: tuple[jax.Array, ...],
        *,
        keys_T: jax.Array | None = None,
    ) -> jax.Array:
        """Mixes the hidden states of each text; returns [T, D].

        Args:
          seen: for each part, the tokens that others attend to, [B, L] bool; or the
            length of each text, [B] int32, for cuDNN's attention.
          keys_T: a random key for each token; None: no dropout.
        """
        rate = self.config.attention_dropout
        keys: Sequence[jax.Array | None] = [None] * len(seen)
        if keys_T is not None and rate > 0.0:
            keys = texts.split(keys_T)
        parts = []
        for *qkv, seen_by, keys_BL in zip(
            *map(texts.split, self.qkv(hidden_TD)), seen, keys, strict=True
        ):
            shape = qkv[0].shape
            heads = (*shape[:2], self.config.num_heads, -1)
            q_BLHC, k_BMHC, v_BMHC = (x.reshape(heads) for x in qkv)
            if keys_BL is not None:
                mixed_BLHC = _attention_with_dropout(
                    q_BLHC, k_BMHC, v_BMHC, seen_by, rate, keys_BL
                )
            else:
                mixed_BLHC = _attention(q_BLHC, k_BMHC, v_BMHC, seen_by)
            parts.append(mixed_BLHC.reshape(shape))
        return self.out(texts.join(parts))


def suits_cudnn(device, dtype: DType, width: int) -> bool:
    """Whether cuDNN has a fused attention for a device and the width of a head."""
    return (
        # JAX cannot ask cuDNN for its version on an abstract device.
        hasattr(device, "client")
        and hardware.is_cuda(device, 8.0)
        and dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
    )


def _attention(query_BLHC, key_BMHC, value_BMHC, seen):
    """Attention without dropout; cuDNN, which stores no weights, if `seen` is [B]."""
    if seen.ndim == 2:
        return jax.nn.dot_product_attention(
            query_BLHC, key_BMHC, value_BMHC, mask=seen[:, None, None, :]
        )
    return jax.nn.dot_product_attention(
        query_BLHC,
        key_BMHC,
        value_BMHC,
        # All of them: a padded token may attend to others.
        query_seq_lengths=jnp.full_like(seen, query_BLHC.shape[1]),
        key_value_seq_lengths=seen,
        implementation="cudnn",
    )


def _numbers_of(mask_BM):
    """The length of each text, [B]: cuDNN takes no mask of tokens."""
    # At least 1, so that a text without a token gives numbers and not NaN.
    return jnp.maximum(mask_BM.sum(axis=1, dtype=jnp.int32), 1)


def _attention_with_dropout(query_BLHC, key_BMHC, value_BMHC, mask_BM, rate, keys_BL):
    """Like `jax.nn.dot_product_attention`, which lacks dropout on the weights."""
    B, L, H, _ = query_BLHC.shape
    logits_BHLM = jnp.einsum(
        "blhc,bmhc->bhlm", query_BLHC, key_BMHC, preferred_element_type=jnp.float32
    )
    logits_BHLM /= query_BLHC.shape[-1] ** 0.5
    # Finite, so that a text without a token gives numbers and not NaN.
    lowest = -0.7 * float(jnp.finfo(jnp.float32).max)
    mask_B11M = mask_BM[:, None, None, :]
    weights_BHLM = jax.nn.softmax(jnp.where(mask_B11M, logits_BHLM, lowest), axis=-1)
    # Drawn token by token, so that a text's dropout does not depend on its padding.
    weights_BLMH = dropout(
        weights_BHLM.transpose(0, 2, 3, 1).reshape(B * L, L, H),
        rate,
        keys_BL.reshape(B * L),
    ).reshape(B, L, L, H)
    weights_BHLM = weights_BLMH.transpose(0, 3, 1, 2).astype(value_BMHC.dtype)
    return jnp.einsum("bhlm,bmhc->blhc", weights_BHLM, value_BMHC)


class Layer(nnx.Module):
    """Attention and feed-forward block, each normalized after its residual sum."""

    def __init__(self, config: EncoderConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        dense = functools.partial(
            linear,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)
        self.up = dense(size, inner)
        self.down = dense(inner, size)
        self.output_norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        hidden_TD: jax.Array,
        texts: Texts,
        seen: tuple[jax.Array, ...],
        *,
        keys_T: jax.Array | None = None,
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        rate = self.config.hidden_dropout
        mixed_TD = self.attention(hidden_TD, texts, seen, keys_T=subkeys(keys_T, 0))
        mixed_TD = dropout(mixed_TD, rate, subkeys(keys_T, 1))
        hidden_TD = self.attention_norm(hidden_TD + mixed_TD)
        fed_TD = self.down(gelu(self.up(hidden_TD)))
        fed_TD = dropout(fed_TD, rate, subkeys(keys_T, 2))
        return self.output_norm(hidden_TD + fed_TD)


class Encoder(nnx.Module):
    """Transformer encoder over token ids: BERT, DistilBERT or XLM-RoBERTa.

    Parameters are float32; layers compute in `dtype`, softmax and LayerNorm in float32.
    Parameter tree: `embeddings/{word,position,
    token_type}/embedding`, `embeddings/norm/{scale,bias}` and, with a leading axis over
    the layers, `layers/attention/qkv/{kernel,bias}` ([D, 3, D], [3, D]),
    `layers/attention/out/{kernel,bias}`, `layers/attention_norm/{scale,bias}`,
    `layers/{up,down}/{kernel,bias}`, `layers/output_norm/{scale,bias}`; kernels are
    [in, out].
    """

    def __init__(
        self, config: EncoderConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        self.dtype = dtype
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        layers = [
            nnx.split(Layer(config, dtype=dtype, rngs=rngs))
            for _ in range(config.num_layers)
        ]
        states = [state for _, state in layers]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        self.layers = nnx.merge(layers[0][0], stacked)

    def __call__(
        self,
        ids_BL: jax.Array,
        mask_BL: jax.Array,
        *,
        types_BL: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        remat: str = "none",
    ) -> jax.Array:
        """Encodes texts of one length; see `encode`.

        Args:
          mask_BL: true or 1 at tokens, false or 0 at padding.
          types_BL: token types of pairs; all 0 by default.
          dropout_keys_B: a random key for each text; None: no dropout.
          remat: what the backward pass recomputes, a name in `REMAT`.

        Returns:
          Hidden states of the last layer [B, L, D], in `dtype`.

        Raises:
          ValueError: the shapes differ.
        """
        if ids_BL.ndim != 2 or ids_BL.shape != mask_BL.shape:
            raise ValueError(
                f"Token ids of shape {ids_BL.shape} and mask of shape {mask_BL.shape}; "
                "both have to be [texts, tokens] and equal."
            )
        hidden_TD = self.encode(
            Texts.of([{"ids": ids_BL, "mask": mask_BL}]),
            types=None if types_BL is None else (types_BL,),
            dropout_keys=None if dropout_keys_B is None else (dropout_keys_B,),
            remat=remat,
        )
        return hidden_TD.reshape(*ids_BL.shape, -1)

    def encode(
        self,
        texts: Texts,
        *,
        attended: tuple[jax.Array, ...] | None = None,
        types: tuple[jax.Array, ...] | None = None,
        dropout_keys: tuple[jax.Array, ...] | None = None,
        remat: str = "none",
    ) -> jax.Array:
        """Encodes a batch.

        Args:
          texts: the batch. Padding comes after the tokens and never changes their
            states; its own states are meaningless.
          attended: [B, L] bool of each part, tokens that others attend to; None: all.
          types: [B, L] of each part, token types of pairs; None: all 0.
          dropout_keys: a random key for each text, [B] of each part; None: no dropout.
          remat: what the backward pass recomputes, a name in `REMAT`.

        Returns:
          Hidden states of the last layer [T, D], in `dtype`.

        Raises:
          InputError: texts longer than `config.max_length`.
        """
        config = self.config
        length = max(ids_BL.shape[1] for ids_BL in texts.ids)
        if length > config.max_length:
            raise InputError(
                f"Texts of {length} tokens, but this {config.family} encoder takes at "
                f"most {config.max_length} (its position table has "
                f"{config.max_positions} rows). Cut the texts to {config.max_length} "
                "tokens or choose a checkpoint with a longer table."
            )
        seen = texts.mask if attended is None else attended
        width = config.hidden_size // config.num_heads
        dropping = dropout_keys is not None and config.attention_dropout > 0.0
        if not dropping and suits_cudnn(hardware.device(), self.dtype, width):
            seen = tuple(map(_numbers_of, seen))
        keys_T = None
        if dropout_keys is not None:
            keys_T = texts.join(map(_keys_of_tokens, dropout_keys, texts.ids))
        hidden_TD = self.embeddings(texts, types=types, keys_T=subkeys(keys_T, 0))
        graphdef, params = nnx.split(self.layers, nnx.Param)

        def run(hidden_TD, layer):
            params, index = layer
            # Gathered here, so that the backward pass does not keep them.
            params = sharding.gathered(params, config.num_heads)
            hidden_TD = nnx.merge(graphdef, params)(
                hidden_TD, texts, seen, keys_T=subkeys(keys_T, index)
            )
            return sharding.constrain(hidden_TD, sharding.DATA, None), None

        layers, count = nnx.to_pure_dict(params), config.num_layers
        if remat == "none":
            # Unrolled: a loop would copy everything saved for the backward pass.
            split = jax.tree.map(lambda x: jax.lax.split(x, [1] * count), layers)
            for i in range(count):
                layer = jax.tree.map(
                    lambda x, i=i: x[i][0],
                    split,
                    is_leaf=lambda x: isinstance(x, (list, tuple)),
                )
                hidden_TD, _ = run(hidden_TD, (layer, i + 1))
            return hidden_TD
        # The compiled program contains one layer, not all of them. Unrolled, the
        # compiler may notice that the backward pass repeats the forward pass and keep
        # its values after all; XLA on CPU does.
        run = jax.checkpoint(run, policy=REMAT[remat])
        return jax.lax.scan(run, hidden_TD, (layers, jnp.arange(1, count + 1)))[0]


def _keys_of_tokens(keys_B: jax.Array, ids_BL: jax.Array) -> jax.Array:
    """A random key for each token, [B, L], independent of the padding."""
    tokens_L = jnp.arange(ids_BL.shape[1])
    return jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, tokens_L))(
        keys_B
    )


# What the backward pass recomputes: nothing; all but the results of matrix products
# with parameters; all but the layers' inputs.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layer": jax.checkpoint_policies.nothing_saveable,
}
