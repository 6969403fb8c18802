"""BERT, DistilBERT and XLM-RoBERTa encoders: one implementation, told apart by config.

The computation is that of `BertModel` (Devlin et al., 2019, arXiv:1810.04805) and
`XLMRobertaModel` (Conneau et al., 2020, arXiv:1911.02116) in Hugging Face transformers,
without the pooler; DistilBERT (Sanh et al., 2019, arXiv:1910.01108) is a BERT without
token types. In array names C is the width of one attention head and M a second
token axis, the attended one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax import sharding
from lsrjax.errors import InputError
from lsrjax.models.layers import DType, dropout, gelu, layer_norm, linear

# RoBERTa differs from XLM-RoBERTa in vocabulary only.
_FAMILIES = {
    "bert": "bert",
    "distilbert": "distilbert",
    "xlm-roberta": "xlm-roberta",
    "roberta": "xlm-roberta",
}
_PAD_TOKEN_IDS = {"bert": 0, "distilbert": 0, "xlm-roberta": 1}

# Our field -> key of config.json. A key without a default must be in the file; the
# defaults are those of transformers' BertConfig and XLMRobertaConfig.
_HF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "pad_token_id": "pad_token_id",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_act": "hidden_act",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}
_DISTILBERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "pad_token_id": "pad_token_id",
    "hidden_act": "activation",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "intermediate_size",
)


def _hf_keys(family: str) -> Mapping[str, str]:
    return _DISTILBERT_KEYS if family == "distilbert" else _HF_KEYS


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape and constants of an encoder.

    Attributes:
      family: 'bert', 'distilbert' or 'xlm-roberta'; decides how positions are numbered.
      vocab_size: rows of the word table.
      hidden_size: width D of the hidden states.
      num_layers: transformer layers.
      num_heads: attention heads; divides hidden_size.
      intermediate_size: width inside the feed-forward blocks.
      max_positions: rows of the position table, see max_length.
      type_vocab_size: rows of the token type table, of which texts use row 0 and the
        second texts of pairs row 1; 0: there is none (DistilBERT).
      pad_token_id: id of the padding token; XLM-R counts positions from it.
      layer_norm_eps: added to the variance in every LayerNorm.
      hidden_act: 'gelu', the exact one.
      hidden_dropout: dropout rate after the embeddings and after every block.
      attention_dropout: dropout rate on the attention weights.
      initializer_range: standard deviation of freshly drawn tables and kernels.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self):
        if self.family not in _PAD_TOKEN_IDS:
            raise ValueError(
                f"Unknown encoder family {self.family!r}; known: "
                f"{', '.join(_PAD_TOKEN_IDS)}."
            )
        if self.hidden_act != "gelu":
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, but only the exact 'gelu' is "
                "implemented; choose a checkpoint trained with it."
            )
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads "
                f"{self.num_heads}; correct one of them in the config."
            )
        if self.max_length < 1:
            raise ValueError(
                f"A position table of {self.max_positions} rows leaves no position for "
                f"a token (pad_token_id {self.pad_token_id}, family {self.family!r}); "
                "correct max_positions or pad_token_id in the config."
            )

    @property
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included."""
        if self.family == "xlm-roberta":
            # Rows 0..pad_token_id never hold a token of a text.
            return self.max_positions - (self.pad_token_id + 1)
        return self.max_positions

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "EncoderConfig":
        """Reads the content of a Hugging Face config.json.

        Args:
          config: the parsed JSON object, `model_type` bert, distilbert, xlm-roberta or
            roberta (the last counts as xlm-roberta, whose computation it shares).

        Raises:
          ValueError: the model is of another type or uses something that is not
            implemented, or keys are missing.
        """
        model_type = config.get("model_type")
        if model_type not in _FAMILIES:
            raise ValueError(
                f"model_type is {model_type!r}, but only {', '.join(_FAMILIES)} are "
                "implemented; choose a checkpoint of one of these."
            )
        family = _FAMILIES[model_type]
        positions = config.get("position_embedding_type") or "absolute"
        if positions != "absolute":
            raise ValueError(
                f"position_embedding_type is {positions!r}, but only 'absolute' is "
                "implemented; choose a checkpoint trained with it."
            )
        for key in ("is_decoder", "add_cross_attention"):
            if config.get(key):
                raise ValueError(
                    f"{key} is true, but this is an encoder with attention in both "
                    "directions; choose a checkpoint trained as an encoder."
                )
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(cls)
            if field.default is not dataclasses.MISSING
        }
        defaults |= {"type_vocab_size": 2, "pad_token_id": _PAD_TOKEN_IDS[family]}
        values = {"type_vocab_size": 0} if family == "distilbert" else {}
        missing = []
        for field, key in _hf_keys(family).items():
            value = config.get(key, defaults.get(field))
            if value is None:
                missing.append(key)
            values[field] = value
        if missing:
            raise ValueError(
                f"A config of model_type {model_type!r} needs {', '.join(missing)}; "
                f"found only {', '.join(sorted(config))}. Complete the config.json."
            )
        for field in _SIZES:
            if type(values[field]) is not int or values[field] < 1:
                raise ValueError(
                    f"{_hf_keys(family)[field]} is {values[field]!r}, which has to be a"
                    " whole number above 0. Take the config.json of the weights."
                )
        return cls(family=family, **values)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, less `architectures`."""
        keys = _hf_keys(self.family)
        values = {key: getattr(self, field) for field, key in keys.items()}
        if self.family != "distilbert":
            values = {"position_embedding_type": "absolute", **values}
        return {"model_type": self.family, **values}


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
