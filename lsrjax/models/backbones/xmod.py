"""X-MOD: XLM-RoBERTa with a bottleneck for each language in each layer.

The computation is that of `XmodModel` in Hugging Face transformers (Pfeiffer et al.,
2022, arXiv:2205.06266), without the pooler. A text passes through the adapters of its
own language, `Texts.language`, or of the config's `default_language`. In array names N
is the languages and R the width of an adapter.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed.sharding import Rule
from lsrjax.errors import InputError
from lsrjax.models.backbones import bert, encoder, names
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.encoder_config import STATED
from lsrjax.models.backbones.xlm_roberta_xl import XLMRobertaXLConfig
from lsrjax.models.layers import DType, LayerNorm, dropout, gelu, linear


@dataclasses.dataclass(frozen=True)
class XmodConfig(XLMRobertaXLConfig):
    """Of `XmodEncoder`.

    Attributes:
      languages: those that have adapters, such as en_XX.
      default_language: of texts whose language is not stated; empty: there is none.
      adapter_reduction_factor: hidden_size over the width of adapters, rounded down.
      pre_norm: each block's input is normalized, and the last layer's output.
      adapter_layer_norm: adapters have a norm ahead.
      adapter_reuse_layer_norm: without, the layer's second norm is also ahead of them.
      ln_before_adapter: what an adapter's output is added to is normalized too.
    """

    KEYS: ClassVar[Mapping[str, str]] = {
        **XLMRobertaXLConfig.KEYS,
        "adapter_reduction_factor": "adapter_reduction_factor",
        "pre_norm": "pre_norm",
        "adapter_layer_norm": "adapter_layer_norm",
        "adapter_reuse_layer_norm": "adapter_reuse_layer_norm",
        "ln_before_adapter": "ln_before_adapter",
    }

    # The defaults are those of transformers' XmodConfig.
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    languages: tuple[str, ...] = ("en_XX",)
    default_language: str = ""
    adapter_reduction_factor: float = 2
    pre_norm: bool = False
    adapter_layer_norm: bool = False
    adapter_reuse_layer_norm: bool = True
    ln_before_adapter: bool = True

    def __post_init__(self):
        super().__post_init__()
        factor = self.adapter_reduction_factor
        if type(factor) not in (int, float) or not 0 < factor <= self.hidden_size:
            raise InputError(
                f"adapter_reduction_factor is {factor!r}, which has to be above 0 and"
                f" at most hidden_size {self.hidden_size}. Take the config.json of the"
                " weights."
            )
        bad = [one for one in self.languages if not one or "." in one or "/" in one]
        if bad or not self.languages or len(set(self.languages)) < len(self.languages):
            raise InputError(
                f"languages are {list(self.languages)!r}; they have to be different"
                " codes such as en_XX. Take the config.json of the weights."
            )
        if self.default_language and self.default_language not in self.languages:
            raise InputError(
                f"default_language is {self.default_language!r}, which has no adapters;"
                f" there are those of {', '.join(self.languages)}. Name one of them."
            )

    @property
    def norms_ahead(self) -> bool:
        """Whether each block's input is normalized."""
        return self.pre_norm

    @property
    def norms_embeddings(self) -> bool:
        """Whether the embeddings are normalized."""
        return True

    @property
    def adapter_size(self) -> int:
        """The width of adapters."""
        return int(self.hidden_size // self.adapter_reduction_factor)

    @property
    def layer_products(self) -> int:
        """Multiplications of a token with the kernels of a layer."""
        return super().layer_products + 2 * self.hidden_size * self.adapter_size

    def language_number(self, language: str) -> int:
        """The number of the language's adapters; "de" stands for "de_DE"."""
        found = [one for one in self.languages if one == language] or [
            one for one in self.languages if one.partition("_")[0] == language
        ]
        if len(found) != 1:
            raise InputError(
                f"The language {language!r} has no adapters, or several; there are"
                f" those of {', '.join(self.languages)}. Name one of them."
            )
        return self.languages.index(found[0])

    def with_language(self, language: str) -> Self:
        """The config with this `default_language`."""
        if language == STATED:
            return self
        known = self.languages[self.language_number(language)]
        return dataclasses.replace(self, default_language=known)

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The languages."""
        found = config.get("languages", ("en_XX",))
        if not isinstance(found, list | tuple):
            raise ValueError(
                f"languages is {found!r}, which has to be a list of codes."
            )
        default = config.get("default_language") or ""
        return {"languages": tuple(map(str, found)), "default_language": str(default)}

    @classmethod
    def fresh(cls, family: str, pad_token_id: int, positions: int, **sizes) -> Self:
        """The config of an encoder with random weights and one language."""
        one = {"languages": ("en_XX",), "default_language": "en_XX"}
        return super().fresh(family, pad_token_id, positions, **one | sizes)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        return super().to_hf() | {
            "languages": list(self.languages),
            "default_language": self.default_language or None,
        }


class Adapter(nnx.Module):
    """The bottleneck of a language: `up` [D, R], exact GELU, `down` [R, D]."""

    def __init__(self, config: XmodConfig, *, dtype: DType, rngs: nnx.Rngs):
        spread = config.initializer_range
        make = partial(linear, initializer_range=spread, dtype=dtype, rngs=rngs)
        self.up = make(config.hidden_size, config.adapter_size)
        self.down = make(config.adapter_size, config.hidden_size)

    def __call__(self, hidden_TD: jax.Array) -> jax.Array:
        """What is added to its residual, [T, D]."""
        return self.down(gelu(self.up(hidden_TD)))


class Layer(bert.Layer):
    """A layer of BERT with adapters ahead of its last norm."""

    config: XmodConfig

    def __init__(self, config: XmodConfig, *, dtype: DType, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        if config.adapter_layer_norm:
            size, eps = config.hidden_size, config.layer_norm_eps
            self.adapter_norm = LayerNorm(size, eps, rngs=rngs)
        self.dtype = dtype
        self.adapters = nnx.Dict(
            {
                language: Adapter(config, dtype=dtype, rngs=rngs)
                for language in config.languages
            }
        )

    def adapted(self, hidden_TD, batch: encoder.Batch, keys_T) -> jax.Array:
        """The states after each text's own adapter, [T, D]."""
        config = self.config
        given_TD = hidden_TD
        if config.adapter_layer_norm:
            hidden_TD = self.adapter_norm(hidden_TD)
        elif config.adapter_reuse_layer_norm:
            hidden_TD = self.output_norm(hidden_TD)
        if config.ln_before_adapter:
            given_TD = hidden_TD
        if batch.texts.language is None:
            added_TD = self.adapters[config.default_language](hidden_TD)
        else:
            added_TD = self._by_language(hidden_TD, batch.texts)
        return given_TD + dropout(added_TD, config.hidden_dropout, keys_T)

    def _by_language(self, hidden_TD: jax.Array, texts) -> jax.Array:
        """Of texts in several languages, [T, D]."""
        adapters = [self.adapters[name] for name in self.config.languages]
        parts = zip(texts.split(hidden_TD), texts.language, strict=True)
        return texts.join(self._each(adapters, *part) for part in parts)

    def _each(self, adapters, hidden_BLD, language_B) -> jax.Array:
        def product(x_BLD, which: str):
            kernel_NDR = jnp.stack(
                [getattr(one, which).kernel[...] for one in adapters]
            )
            bias_NR = jnp.stack([getattr(one, which).bias[...] for one in adapters])
            kernel_BDR = kernel_NDR.astype(self.dtype)[language_B]
            bias_B1R = bias_NR.astype(self.dtype)[language_B][:, None]
            return jnp.einsum("bld,bdr->blr", x_BLD, kernel_BDR) + bias_B1R

        return product(gelu(product(hidden_BLD, "up")), "down")


class XmodEncoder(bert.BertEncoder):
    """X-MOD.

    Parameter tree: that of `BertEncoder`; `layers/adapters/LANGUAGE/{up,down}/...` and
    maybe `layers/adapter_norm/{scale,bias}`.
    """

    config: XmodConfig
    rules = (Rule("adapter_norm/(scale|bias)", (None,)),)
    layer_kind = Layer

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""
        if batch.texts.language is None and not self.config.default_language:
            raise InputError(
                "This encoder has adapters for each language, and it is not said which"
                " one the texts are in. Name it in config.model.language, in --language"
                " of encode or evaluate, or as default_language in its config.json;"
                f" there are {', '.join(self.config.languages)}."
            )
        return super().run(hidden_TD, batch)


_ADAPTER = "output.adapter_modules.{language}"
_LAYER = bert.encoder_names(
    "encoder.layer.{i}",
    {
        f"adapters/{{language}}/{ours}": f"{_ADAPTER}.{theirs}"
        for ours, theirs in {"up": "dense1", "down": "dense2"}.items()
    }
    | {"adapter_norm": "output.adapter_layer_norm"},
)

XMOD = Backbone(
    XmodConfig,
    XmodEncoder,
    names.Names(
        prefixes=("roberta.", ""),
        encoder={
            **bert.XLM_ROBERTA.names.encoder,
            **_LAYER,
            "final_norm/scale": "encoder.LayerNorm.weight",
            "final_norm/bias": "encoder.LayerNorm.bias",
        },
        masked_lm=bert.XLM_ROBERTA.names.masked_lm,
        classifier=bert.XLM_ROBERTA.names.classifier,
        bias_copy=bert.XLM_ROBERTA.names.bias_copy,
        may_lack=(
            r"encoder/(embeddings/token_type|final_norm)/.*"
            r"|encoder/layers/\d+/adapter_norm/.*"
        ),
    ),
    transformers="Xmod",
    pooler=True,
)
