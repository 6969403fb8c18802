"""Llama, Mistral, Qwen3 and EuroBERT: pre-norm, RoPE, gated blocks, grouped keys.

The computation is that of these families in Hugging Face transformers (Touvron et al.,
2023, arXiv:2302.13971; grouped keys: Ainslie et al., 2023, arXiv:2305.13245). Norms
divide by the root of the mean square and do not center. Attention is causal, or goes
both ways (`model.attention`). The family's switches are in its config; Gemma's, in
`gemma`, share the module.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.distributed.sharding import Rule
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.attention import (
    Rotary,
    attend,
    products,
    rotary_tables,
    sees_some,
    turned,
    weighed,
)
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.classifiers import LastToken
from lsrjax.models.backbones.llama_config import (
    EuroBertConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from lsrjax.models.layers import DType, RMSNorm, dropout, linear, subkeys


def _norm(config: LlamaConfig, size: int) -> RMSNorm:
    return RMSNorm(size, config.layer_norm_eps, around_one=config.centered)


class Embeddings(nnx.Module):
    """Word embeddings."""

    def __init__(self, config: LlamaConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.word = encoder.table(config, rngs, config.vocab_size)

    def __call__(self, ids_T: jax.Array, keys_T: jax.Array | None) -> jax.Array:
        """Embeds token ids; returns [T, D]."""
        embedded_TD = sharding.constrain(self.word(ids_T), sharding.DATA, None)
        if self.config.scales_embeddings:
            embedded_TD *= self.config.hidden_size**0.5
        embedded_TD = embedded_TD.astype(self.dtype)
        return dropout(embedded_TD, self.config.hidden_dropout, keys_T)


class Attention(nnx.Module):
    """Attention whose keys and values may have fewer heads than its queries."""

    def __init__(self, config: LlamaConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        dense = partial(
            linear,
            initializer_range=config.initializer_range,
            use_bias=config.attention_bias,
            dtype=dtype,
            rngs=rngs,
        )
        size, width = config.hidden_size, config.head_size
        self.q = dense(size, config.num_heads * width)
        self.k = dense(size, config.num_key_heads * width)
        self.v = dense(size, config.num_key_heads * width)
        self.out = dense(config.num_heads * width, size)
        self.q_norm = _norm(config, width) if config.qk_norm else None
        self.k_norm = _norm(config, width) if config.qk_norm else None

    def __call__(
        self,
        hidden_TD: jax.Array,
        batch: encoder.Batch,
        *,
        full: bool,
        rotary: Sequence[Rotary],
        keys_T: jax.Array | None,
    ) -> jax.Array:
        """Mixes the states of each text; returns [T, D]. `full`: without a window."""
        config, texts = self.config, batch.texts
        keys: Sequence[jax.Array | None] = [None] * len(texts.ids)
        if keys_T is not None and config.attention_dropout > 0.0:
            keys = texts.split(keys_T)
        three = self.q(hidden_TD), self.k(hidden_TD), self.v(hidden_TD)
        parts = []
        for *qkv, seen, keys_BL, turn in zip(
            *map(texts.split, three), batch.seen, keys, rotary, strict=True
        ):
            B, L, _ = qkv[0].shape
            q_BLHC, k_BMKC, v_BMKC = (
                x.reshape(B, L, -1, config.head_size) for x in qkv
            )
            if self.q_norm is not None and self.k_norm is not None:
                q_BLHC, k_BMKC = self.q_norm(q_BLHC), self.k_norm(k_BMKC)
            q_BLHC, k_BMKC = turned(q_BLHC, turn), turned(k_BMKC, turn)
            mixed_BLHC = self._mixed(q_BLHC, k_BMKC, v_BMKC, seen, full, keys_BL)
            parts.append(mixed_BLHC.reshape(B, L, -1))
        return self.out(texts.join(parts))

    def _mixed(self, q_BLHC, k_BMKC, v_BMKC, seen, full: bool, keys_BL) -> jax.Array:
        config, L = self.config, q_BLHC.shape[1]
        scale = (config.query_scalar or config.head_size) ** -0.5
        window = config.window(full=full)
        hides = window is not None and min(window) < L - 1
        window = window if hides else None
        if config.attention_cap or keys_BL is not None:
            group = config.num_heads // config.num_key_heads
            k_BMHC = jnp.repeat(k_BMKC, group, axis=2)
            v_BMHC = jnp.repeat(v_BMKC, group, axis=2)
            logits_BHLM = products(q_BLHC, k_BMHC) * scale
            if cap := config.attention_cap:
                logits_BHLM = cap * jnp.tanh(logits_BHLM / cap)
            rate = config.attention_dropout
            mixed_BLHC = weighed(logits_BHLM, v_BMHC, seen, rate, keys_BL, window)
        else:
            mixed_BLHC = attend(q_BLHC, k_BMKC, v_BMKC, seen, window, scale)
        if window is None or window[0] >= L - 1:
            return mixed_BLHC
        alone_BL = ~sees_some(seen, L, window)
        return jnp.where(alone_BL[..., None, None], 0, mixed_BLHC)


class Layer(nnx.Module):
    """Attention and a gated block, each normalized ahead and added to its input."""

    def __init__(self, config: LlamaConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        dense = partial(
            linear,
            initializer_range=config.initializer_range,
            use_bias=config.mlp_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.attention_norm = _norm(config, size)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.output_norm = _norm(config, size)
        self.gate, self.up = dense(size, inner), dense(size, inner)
        self.down = dense(inner, size)
        self.mixed_norm = _norm(config, size) if config.block_norms else None
        self.fed_norm = _norm(config, size) if config.block_norms else None

    def __call__(
        self, hidden_TD, batch: encoder.Batch, *, full: bool, rotary, keys_T
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D]."""
        rate = self.config.hidden_dropout
        mixed_TD = self.attention(
            self.attention_norm(hidden_TD),
            batch,
            full=full,
            rotary=rotary,
            keys_T=subkeys(keys_T, 0),
        )
        if self.mixed_norm is not None:
            mixed_TD = self.mixed_norm(mixed_TD)
        hidden_TD += dropout(mixed_TD, rate, subkeys(keys_T, 1))
        states_TD = self.output_norm(hidden_TD)
        fed_TI = _ACTIVATIONS[self.config.hidden_act](self.gate(states_TD))
        fed_TD = self.down(fed_TI * self.up(states_TD))
        if self.fed_norm is not None:
            fed_TD = self.fed_norm(fed_TD)
        return hidden_TD + dropout(fed_TD, rate, subkeys(keys_T, 2))


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}


class LlamaEncoder(encoder.Encoder):
    """Llama and its kin.

    Parameter tree: `embeddings/word/embedding`, `final_norm/scale` and, with a leading
    axis over the layers, `layers/...`: `attention_norm/scale`,
    `attention/{q,k,v,out}/kernel`, `output_norm/scale`, `{gate,up,down}/kernel`;
    depending on the family `attention/{q,k}_norm/scale` [C], `mixed_norm/scale`,
    `fed_norm/scale`; and a `bias` beside each kernel, where the config has them.
    """

    config: LlamaConfig
    rules = (
        Rule("attention/q/kernel", (None, sharding.MODEL), heads=True),
        Rule("attention/q/bias", (sharding.MODEL,), heads=True),
        Rule("attention/(k|v)/kernel", (None, sharding.MODEL), heads=True, keys=True),
        Rule("attention/(k|v)/bias", (sharding.MODEL,), heads=True, keys=True),
        Rule("(q_norm|k_norm|mixed_norm|fed_norm)/scale", (None,)),
        Rule("gate/kernel", (None, sharding.MODEL)),
        Rule("gate/bias", (sharding.MODEL,)),
    )

    def __init__(
        self, config: LlamaConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        # cuDNN has no cap of the products.
        self.fused_attention = not config.attention_cap
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.layers = encoder.stack(
            partial(Layer, config, dtype=dtype, rngs=rngs), config.num_layers
        )
        self.final_norm = _norm(config, config.hidden_size)

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        return self.embeddings(texts.join(texts.ids), keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The normalized states after the last layer, [T, D]."""
        config = self.config
        lengths = [ids_BL.shape[1] for ids_BL in batch.texts.ids]
        rotary = {
            full: [
                rotary_tables(
                    length,
                    config.head_size,
                    config.theta if full else config.local_theta or config.theta,
                    rescaled=config.rescaled(full=full),
                )
                for length in lengths
            ]
            for full in set(config.pattern)
        }

        def call(layer, hidden_TD, index, place):
            full = config.pattern[place]
            keys_T = subkeys(batch.keys_T, index + 1)
            return layer(
                hidden_TD, batch, full=full, rotary=rotary[full], keys_T=keys_T
            )

        hidden_TD = self.run_layers(
            call, self.layers, hidden_TD, batch, period=len(config.pattern)
        )
        return self.final_norm(hidden_TD)


class NoTransform(nnx.Module):
    """A language model's head is its decoder alone."""

    def __init__(self, config: LlamaConfig, *, dtype: DType, rngs: nnx.Rngs):
        del config, dtype, rngs

    def __call__(self, hidden_TD: jax.Array) -> jax.Array:
        """The states as they are."""
        return hidden_TD


def parts(*, qk_norm: bool = False, block_norms: bool = False) -> dict[str, str]:
    """Names of a layer's parameters, ours and those of transformers."""
    modules = {
        **{f"attention/{x}": f"self_attn.{x}_proj" for x in "qkv"},
        "attention/out": "self_attn.o_proj",
        **{x: f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    after = "post_attention_layernorm"
    norms = {
        "attention_norm": "input_layernorm",
        "output_norm": "pre_feedforward_layernorm" if block_norms else after,
    }
    if block_norms:
        norms |= {"mixed_norm": after, "fed_norm": "post_feedforward_layernorm"}
    if qk_norm:
        norms |= {f"attention/{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    return {
        **{f"{ours}/kernel": f"{theirs}.weight" for ours, theirs in modules.items()},
        **{f"{ours}/bias": f"{theirs}.bias" for ours, theirs in modules.items()},
        **{f"{ours}/scale": f"{theirs}.weight" for ours, theirs in norms.items()},
    }


def family(config: type[LlamaConfig], transformers: str, **more) -> Backbone:
    """The entry of a family with these switches; `more` as of `Backbone`."""
    switches = {"qk_norm": config.qk_norm, "block_norms": config.block_norms}
    values: dict[str, Any] = {
        "language_model": "ForCausalLM",
        "task": "text-generation",
        "tied": False,
        "head_bias": False,
        "transform": NoTransform,
        "classifier": LastToken,
    }
    return Backbone(
        config,
        LlamaEncoder,
        names.Names(
            prefixes=("model.", ""),
            encoder={
                names.WORD: "embed_tokens.weight",
                **names.of_layers("layers", parts(**switches)),
                "final_norm/scale": "norm.weight",
            },
            masked_lm={"head/mlm/decoder": "lm_head.weight"},
            classifier={"classifier/out/kernel": "score.weight"},
            may_lack="encoder/.*bias",
        ),
        transformers=transformers,
        **values | more,
    )


LLAMA = family(LlamaConfig, "Llama")
MISTRAL = family(MistralConfig, "Mistral")
QWEN3 = family(Qwen3Config, "Qwen3")
EUROBERT = family(
    EuroBertConfig,
    "EuroBert",
    language_model="ForMaskedLM",
    task="fill-mask",
    classifier=None,
)
