"""BERT, DistilBERT and XLM-RoBERTa encoders: one implementation, told apart by config.

The computation is that of `BertModel` (Devlin et al., 2019, arXiv:1810.04805) and
`XLMRobertaModel` (Conneau et al., 2020, arXiv:1911.02116) in Hugging Face transformers,
without the pooler; DistilBERT (Sanh et al., 2019, arXiv:1910.01108) is a BERT without
token types. In array names C is the width of one attention head and M a second
token axis, the attended one.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax import sharding
from lsrjax.errors import InputError
from lsrjax.models.encoder_config import EncoderConfig
from lsrjax.models.layers import DType, dropout, gelu, layer_norm, linear


def _subkeys(keys_B: jax.Array | None, index: int) -> jax.Array | None:
    if keys_B is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys_B)


class Embeddings(nnx.Module):
    """Sum of word, position and token type embeddings, normalised."""

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
        self.norm = layer_norm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        ids_BL: jax.Array,
        mask_BL: jax.Array,
        *,
        types_BL: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds token ids, of type 0 where none are given; returns [B, L, D]."""
        positions_BL = self._positions(ids_BL, mask_BL)
        embedded_BLD = self.word(ids_BL) + self.position(positions_BL)
        if types_BL is not None:
            embedded_BLD += self.token_type(types_BL)
        elif self.config.type_vocab_size:
            embedded_BLD += self.token_type.embedding[...][0][None, None]
        embedded_BLD = sharding.constrain(embedded_BLD, sharding.DATA, None, None)
        embedded_BLD = self.norm(embedded_BLD).astype(self.dtype)
        return dropout(embedded_BLD, self.config.hidden_dropout, dropout_keys_B)

    def _positions(self, ids_BL, mask_BL):
        """Rows of the position table: [1, L] for (Distil)BERT, [B, L] for XLM-R."""
        if self.config.family != "xlm-roberta":
            return jnp.arange(ids_BL.shape[1])[None]
        # transformers looks at the ids alone; with the mask besides, what stands in
        # the padding cannot shift the tokens behind it.
        pad = self.config.pad_token_id
        real_BL = ((ids_BL != pad) & mask_BL).astype(jnp.int32)
        return jnp.cumsum(real_BL, axis=1) * real_BL + pad


class Attention(nnx.Module):
    """Multi-head self-attention in both directions."""

    def __init__(self, config: EncoderConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config

        def projection() -> nnx.Linear:
            return linear(
                config.hidden_size,
                config.hidden_size,
                initializer_range=config.initializer_range,
                dtype=dtype,
                rngs=rngs,
            )

        self.query = projection()
        self.key = projection()
        self.value = projection()
        self.out = projection()

    def __call__(
        self,
        hidden_BLD: jax.Array,
        mask_BL: jax.Array,
        *,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Mixes the hidden states of each text; returns [B, L, D]."""
        split = (*hidden_BLD.shape[:2], self.config.num_heads, -1)
        query_BLHC = self.query(hidden_BLD).reshape(split)
        key_BMHC = self.key(hidden_BLD).reshape(split)
        value_BMHC = self.value(hidden_BLD).reshape(split)
        rate = self.config.attention_dropout
        if dropout_keys_B is None or rate == 0.0:
            mixed_BLHC = _attention(query_BLHC, key_BMHC, value_BMHC, mask_BL)
        else:
            mask_B11M = mask_BL[:, None, None, :]
            mixed_BLHC = _attention_with_dropout(
                query_BLHC, key_BMHC, value_BMHC, mask_B11M, rate, dropout_keys_B
            )
        return self.out(mixed_BLHC.reshape(hidden_BLD.shape))


def suits_cudnn(device: jax.Device, dtype: DType, width: int) -> bool:
    """Whether cuDNN has a fused attention for the device, and heads of this width."""
    return (
        device.platform == "gpu"
        and "cuda" in device.client.platform_version.lower()
        and float(device.compute_capability) >= 8.0
        and dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and width <= 128
    )


def _attention(query_BLHC, key_BMHC, value_BMHC, mask_BM):
    """Attention without dropout; cuDNN's, which keeps no weights, where it is."""
    if not suits_cudnn(jax.devices()[0], query_BLHC.dtype, query_BLHC.shape[-1]):
        return jax.nn.dot_product_attention(
            query_BLHC, key_BMHC, value_BMHC, mask=mask_BM[:, None, None, :]
        )
    # Padding as a number of tokens; as a mask, cuDNN would want it for every pair of
    # tokens. One at least, so that a text without a token gives numbers and not NaN.
    lengths_B = jnp.maximum(mask_BM.sum(axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query_BLHC,
        key_BMHC,
        value_BMHC,
        # All of them, since a token that others do not see may still see them.
        query_seq_lengths=jnp.full_like(lengths_B, query_BLHC.shape[1]),
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    )


def _attention_with_dropout(query_BLHC, key_BMHC, value_BMHC, mask_B11M, rate, keys_B):
    """As `jax.nn.dot_product_attention`, which has no dropout on the weights."""
    B, L, H, _ = query_BLHC.shape
    logits_BHLM = jnp.einsum(
        "blhc,bmhc->bhlm", query_BLHC, key_BMHC, preferred_element_type=jnp.float32
    )
    logits_BHLM /= query_BLHC.shape[-1] ** 0.5
    # Finite, so that a text without a single token gives numbers and not NaN.
    lowest = -0.7 * float(jnp.finfo(jnp.float32).max)
    weights_BHLM = jax.nn.softmax(jnp.where(mask_B11M, logits_BHLM, lowest), axis=-1)
    # Drawn token by token, so that what a text loses does not hang on its padding.
    keys_BL = jax.vmap(
        lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(L))
    )(keys_B)
    weights_BLMH = dropout(
        weights_BHLM.transpose(0, 2, 3, 1).reshape(B * L, L, H),
        rate,
        keys_BL.reshape(B * L),
    ).reshape(B, L, L, H)
    weights_BHLM = weights_BLMH.transpose(0, 3, 1, 2).astype(value_BMHC.dtype)
    return jnp.einsum("bhlm,bmhc->blhc", weights_BHLM, value_BMHC)


class Layer(nnx.Module):
    """Attention and feed-forward block, each normalised after its residual sum."""

    def __init__(self, config: EncoderConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        size, inner = config.hidden_size, config.intermediate_size
        kwargs = {
            "initializer_range": config.initializer_range,
            "dtype": dtype,
            "rngs": rngs,
        }
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(size, config.layer_norm_eps, rngs=rngs)
        self.up = linear(size, inner, **kwargs)
        self.down = linear(inner, size, **kwargs)
        self.output_norm = layer_norm(size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        hidden_BLD: jax.Array,
        mask_BL: jax.Array,
        *,
        dropout_keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [B, L, D]."""
        rate = self.config.hidden_dropout
        mixed_BLD = self.attention(
            hidden_BLD, mask_BL, dropout_keys_B=_subkeys(dropout_keys_B, 0)
        )
        mixed_BLD = dropout(mixed_BLD, rate, _subkeys(dropout_keys_B, 1))
        hidden_BLD = self.attention_norm(hidden_BLD + mixed_BLD).astype(self.dtype)
        fed_BLD = self.down(gelu(self.up(hidden_BLD)))
        fed_BLD = dropout(fed_BLD, rate, _subkeys(dropout_keys_B, 2))
        return self.output_norm(hidden_BLD + fed_BLD).astype(self.dtype)


class Encoder(nnx.Module):
    """Transformer encoder over token ids, BERT, DistilBERT or XLM-RoBERTa.

    Parameters are float32 whatever `dtype`, the type the layers compute in; softmax and
    LayerNorm are float32 always. Parameter tree: `embeddings/{word,position,
    token_type}/embedding`, `embeddings/norm/{scale,bias}` and, for layer i,
    `layers/{i}/attention/{query,key,value,out}/{kernel,bias}`,
    `layers/{i}/attention_norm/{scale,bias}`, `layers/{i}/{up,down}/{kernel,bias}`,
    `layers/{i}/output_norm/{scale,bias}`; kernels are [in, out].
    """

    def __init__(
        self, config: EncoderConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )

    def __call__(
        self,
        ids_BL: jax.Array,
        mask_BL: jax.Array,
        *,
        attended_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        remat: str = "none",
    ) -> jax.Array:
        """Encodes texts.

        Args:
          ids_BL: token ids, integers.
          mask_BL: true or 1 where a token is, false or 0 where padding is, which
            comes after the tokens. Padding never changes the states of tokens; its own
            states are meaningless.
          attended_BL: which tokens others see; all by default.
          types_BL: of the tokens of pairs; all 0 by default.
          dropout_keys_B: a random key for each text; None computes without dropout.
          remat: what the backward pass computes again, a name in `REMAT`.

        Returns:
          Hidden states of the last layer [B, L, D], in `dtype`.

        Raises:
          InputError: L is above `config.max_length`.
          ValueError: the shapes differ.
        """
        if ids_BL.ndim != 2 or ids_BL.shape != mask_BL.shape:
            raise ValueError(
                f"Token ids of shape {ids_BL.shape} and mask of shape {mask_BL.shape}; "
                "both have to be [texts, tokens] and equal."
            )
        length, config = ids_BL.shape[1], self.config
        if length > config.max_length:
            raise InputError(
                f"Texts of {length} tokens, but this {config.family} encoder takes at "
                f"most {config.max_length} (its position table has "
                f"{config.max_positions} rows). Cut the texts to {config.max_length} "
                "tokens or choose a checkpoint with a longer table."
            )
        mask_BL = mask_BL.astype(bool)
        attended_BL = mask_BL if attended_BL is None else attended_BL.astype(bool)
        hidden_BLD = self.embeddings(
            ids_BL,
            mask_BL,
            types_BL=types_BL,
            dropout_keys_B=_subkeys(dropout_keys_B, 0),
        )
        graphdef, _ = nnx.split(self.layers[0], nnx.Param)
        params = [
            nnx.to_pure_dict(nnx.split(layer, nnx.Param)[1]) for layer in self.layers
        ]

        def run(params, hidden_BLD, index):
            # Gathered in here, so that the backward pass does not keep them.
            params = sharding.gathered(params, config.num_heads)
            hidden_BLD = nnx.merge(graphdef, params)(
                hidden_BLD, attended_BL, dropout_keys_B=_subkeys(dropout_keys_B, index)
            )
            return sharding.constrain(hidden_BLD, sharding.DATA, None, None)

        indices = range(1, len(params) + 1)
        if remat != "none":
            run = jax.checkpoint(run, policy=REMAT[remat])
            return _run_as_loop(run, params, hidden_BLD, indices)
        for layer_params, index in zip(params, indices, strict=True):
            hidden_BLD = run(layer_params, hidden_BLD, index)
        return hidden_BLD


# What the backward pass computes again instead of keeping it: nothing; all but the
# results of matrix products with parameters; all but the layers' inputs.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layer": jax.checkpoint_policies.nothing_saveable,
}


def _run_as_loop(run, params: list[dict], hidden_BLD, indices) -> jax.Array:
    """The layers one after the other in a loop of the compiled program.

    In line, the compiler may find that the backward pass repeats the forward pass, and
    keep what it was told not to; XLA on CPU does. A loop also compiles in the time of
    one layer, and holds the gathered parameters of one at a time. It costs a copy of
    the layers' parameters.
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

    def body(hidden_BLD, layer):
        return run(layer[0], hidden_BLD, layer[1]), None

    hidden_BLD, _ = jax.lax.scan(body, hidden_BLD, (stacked, jnp.asarray(indices)))
    return hidden_BLD
