"""BERT, DistilBERT and XLM-RoBERTa: post-norm, with a table of positions.

The computation is that of `BertModel` (Devlin et al., 2019, arXiv:1810.04805) and
`XLMRobertaModel` (Conneau et al., 2020, arXiv:1911.02116) in Hugging Face transformers,
without the pooler; DistilBERT (Sanh et al., 2019, arXiv:1910.01108) is a BERT without
token types. RoBERTa and CamemBERT differ from XLM-RoBERTa in vocabulary only.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.models.backbones import encoder, names
from lsrjax.models.backbones.attention import Attention
from lsrjax.models.backbones.backbone import Backbone
from lsrjax.models.backbones.classifiers import FirstToken
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.layers import DType, LayerNorm, dropout, gelu, linear, subkeys
from lsrjax.models.texts import Texts

_PAD_TOKEN_IDS = {"bert": 0, "distilbert": 0, "xlm-roberta": 1}
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


@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """Of `BertEncoder`; the family decides how positions are numbered.

    Attributes:
      max_positions: rows of the position table, see max_length.
      type_vocab_size: rows of the token type table: row 0 for texts, row 1 for the
        second texts of pairs; 0: no table (DistilBERT).
      pad_token_id: id of the padding token; XLM-R counts positions from it.
    """

    # The defaults are those of transformers' BertConfig and XLMRobertaConfig.
    KEYS: ClassVar[Mapping[str, str]] = {
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

    type_vocab_size: int

    @property
    def counts_from_padding(self) -> bool:
        """Whether positions are counted from the row after the padding's id."""
        return self.family == "xlm-roberta"

    @property
    def has_positions(self) -> bool:
        """Whether there is a table of positions."""
        return True

    @property
    def norms_ahead(self) -> bool:
        """Whether each block's input is normalized, and not its sum with the output.

        Then the states after the last layer are normalized too.
        """
        return False

    @property
    def norms_embeddings(self) -> bool:
        """Whether the embeddings are normalized."""
        return True

    @property
    def max_length(self) -> int:
        """The most tokens of a text, special tokens included."""
        if self.counts_from_padding:
            # Rows 0..pad_token_id are never used by tokens.
            return self.max_positions - (self.pad_token_id + 1)
        return self.max_positions

    @classmethod
    def keys(cls, family: str) -> Mapping[str, str]:
        """Field -> key of config.json."""
        return _DISTILBERT_KEYS if family == "distilbert" else cls.KEYS

    @classmethod
    def defaults(cls, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The padding's id and the rows of types."""
        types = 0 if family == "distilbert" else 2
        return {"type_vocab_size": types, "pad_token_id": _PAD_TOKEN_IDS[family]}

    @classmethod
    def refuse(cls, config: Mapping[str, Any]) -> None:
        """Refuses other positions than a table, and decoders."""
        super().refuse(config)
        positions = config.get("position_embedding_type") or "absolute"
        if positions != "absolute":
            raise ValueError(
                f"position_embedding_type is {positions!r}, but only 'absolute' is "
                "implemented; choose a checkpoint trained with it."
            )

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face config.json, without `architectures`."""
        values = super().to_hf()
        if self.family == "distilbert":
            return values
        return {"position_embedding_type": "absolute", **values}

    @classmethod
    def fresh(cls, family: str, pad_token_id: int, positions: int, **sizes) -> Self:
        """The config of an encoder with random weights for texts of some length."""
        bert = family != "xlm-roberta"
        return cls(
            family,
            pad_token_id=pad_token_id,
            max_positions=positions + (0 if bert else pad_token_id + 1),
            type_vocab_size={"bert": 2, "distilbert": 0, "xlm-roberta": 1}[family],
            layer_norm_eps=1e-12 if bert else 1e-5,
            **sizes,
        )


class Embeddings(nnx.Module):
    """Sum of word, position and token type embeddings, normalized in most families."""

    def __init__(self, config: BertConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype

        table = functools.partial(encoder.table, config, rngs)
        self.word = table(config.vocab_size)
        if config.has_positions:
            self.position = table(config.max_positions)
        if config.type_vocab_size:
            self.token_type = table(config.type_vocab_size)
        if config.norms_embeddings:
            self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self,
        texts: Texts,
        *,
        types: tuple[jax.Array, ...] | None = None,
        keys_T: jax.Array | None = None,
    ) -> jax.Array:
        """Embeds token ids, of type 0 if `types` is None; returns [T, D]."""
        embedded_TD = self.word(texts.join(texts.ids))
        if self.config.has_positions:
            embedded_TD += self._at_positions(texts)
        if types is not None:
            embedded_TD += self.token_type(texts.join(types))
        elif self.config.type_vocab_size:
            embedded_TD += self.token_type.embedding[...][0][None]
        embedded_TD = sharding.constrain(embedded_TD, sharding.DATA, None)
        if self.config.norms_embeddings:
            embedded_TD = self.norm(embedded_TD)
        embedded_TD = embedded_TD.astype(self.dtype)
        return dropout(embedded_TD, self.config.hidden_dropout, keys_T)

    def _at_positions(self, texts: Texts) -> jax.Array:
        """The position embeddings of all tokens, [T, D]."""
        if self.config.counts_from_padding:
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


class Layer(nnx.Module):
    """Attention and feed-forward block, normalized after their residual sums or ahead.

    Attributes:
      attention_kind: the class of its attention.
    """

    attention_kind: Callable[..., nnx.Module] = Attention

    def __init__(self, config: BertConfig, *, dtype: DType, rngs: nnx.Rngs):
        self.config = config
        size, inner = config.hidden_size, config.intermediate_size
        dense = functools.partial(
            linear,
            initializer_range=config.initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        self.attention = self.attention_kind(config, dtype=dtype, rngs=rngs)
        self.attention_norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)
        self.up = dense(size, inner)
        self.down = dense(inner, size)
        self.output_norm = LayerNorm(size, config.layer_norm_eps, rngs=rngs)

    def __call__(
        self, hidden_TD: jax.Array, batch: encoder.Batch, *, keys_T=None, **attended
    ) -> jax.Array:
        """Maps hidden states to those of the next layer, [T, D].

        `attended` is passed on to its attention.
        """
        rate, ahead = self.config.hidden_dropout, self.config.norms_ahead
        states_TD = self.attention_norm(hidden_TD) if ahead else hidden_TD
        mixed_TD = self.attention(
            states_TD, batch.texts, batch.seen, keys_T=subkeys(keys_T, 0), **attended
        )
        hidden_TD = hidden_TD + dropout(mixed_TD, rate, subkeys(keys_T, 1))
        hidden_TD = hidden_TD if ahead else self.attention_norm(hidden_TD)
        states_TD = self.output_norm(hidden_TD) if ahead else hidden_TD
        fed_TD = self.down(gelu(self.up(states_TD)))
        hidden_TD = hidden_TD + dropout(fed_TD, rate, subkeys(keys_T, 2))
        hidden_TD = self.adapted(hidden_TD, batch, subkeys(keys_T, 3))
        return hidden_TD if ahead else self.output_norm(hidden_TD)

    def adapted(self, hidden_TD, batch: encoder.Batch, keys_T) -> jax.Array:
        """The second sum as it goes on, [T, D]; families with adapters change it."""
        return hidden_TD


class BertEncoder(encoder.Encoder):
    """BERT, DistilBERT or XLM-RoBERTa.

    Parameter tree: `embeddings/{word,position,
    token_type}/embedding`, `embeddings/norm/{scale,bias}` and, with a leading axis over
    the layers, `layers/attention/qkv/{kernel,bias}` ([D, 3, D], [3, D]),
    `layers/attention/out/{kernel,bias}`, `layers/attention_norm/{scale,bias}`,
    `layers/{up,down}/{kernel,bias}`, `layers/output_norm/{scale,bias}`. A family that
    normalizes ahead has `final_norm/{scale,bias}`.

    Attributes:
      layer_kind: the class of its layers.
    """

    config: BertConfig
    token_types = True
    layer_kind: type[Layer] = Layer

    def __init__(
        self, config: BertConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        self.layers = encoder.stack(
            lambda: self.layer_kind(config, dtype=dtype, rngs=rngs), config.num_layers
        )
        if config.norms_ahead:
            size, eps = config.hidden_size, config.layer_norm_eps
            self.final_norm = LayerNorm(size, eps, rngs=rngs)

    def embed(self, texts, types, keys_T) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        return self.embeddings(texts, types=types, keys_T=keys_T)

    def run(self, hidden_TD: jax.Array, batch: encoder.Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""

        def call(layer, hidden_TD, index, place):
            keys_T = subkeys(batch.keys_T, index + 1)
            return layer(hidden_TD, batch, keys_T=keys_T)

        hidden_TD = self.run_layers(call, self.layers, hidden_TD, batch)
        return self.final_norm(hidden_TD) if self.config.norms_ahead else hidden_TD


def bert_masked_lm(head: str) -> dict[str, str]:
    """Names of BERT's masked-LM head in the module `head`."""
    transform = f"{head}.transform"
    return names.masked_lm(
        f"{transform}.dense", f"{transform}.LayerNorm", f"{head}.decoder", head
    )


def encoder_names(
    layer: str, parts: Mapping[str, str], **tables: str
) -> dict[str, str]:
    """Of an encoder; `parts` maps our module of a layer to theirs, `tables` tables."""
    found = {
        f"embeddings/{ours}/embedding": f"embeddings.{theirs}.weight"
        for ours, theirs in tables.items()
    }
    if tables:
        found["embeddings/norm/scale"] = "embeddings.LayerNorm.weight"
        found["embeddings/norm/bias"] = "embeddings.LayerNorm.bias"
    for ours, theirs in parts.items():
        weight = "scale" if ours.endswith("norm") else "kernel"
        found[f"layers/{{i}}/{ours}/{weight}"] = f"{layer}.{theirs}.weight"
        found[f"layers/{{i}}/{ours}/bias"] = f"{layer}.{theirs}.bias"
    return found


_BERT_NAMES = encoder_names(
    "encoder.layer.{i}",
    {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    word="word_embeddings",
    position="position_embeddings",
    token_type="token_type_embeddings",
)
_DISTILBERT_NAMES = encoder_names(
    "transformer.layer.{i}",
    {
        "attention/query": "attention.q_lin",
        "attention/key": "attention.k_lin",
        "attention/value": "attention.v_lin",
        "attention/out": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "up": "ffn.lin1",
        "down": "ffn.lin2",
        "output_norm": "output_layer_norm",
    },
    word="word_embeddings",
    position="position_embeddings",
)
BERT = Backbone(
    BertConfig,
    BertEncoder,
    names.Names(
        prefixes=("bert.", ""),
        encoder=_BERT_NAMES,
        masked_lm=bert_masked_lm("cls.predictions"),
        classifier=names.classifier("bert.pooler.dense", "classifier"),
        bias_copy="cls.predictions.decoder.bias",
    ),
    transformers="Bert",
    classifier=FirstToken,
    pooler=True,
    pairs_have_types=True,
)
XLM_ROBERTA = Backbone(
    BertConfig,
    BertEncoder,
    names.Names(
        prefixes=("roberta.", ""),
        encoder=_BERT_NAMES,
        masked_lm=names.masked_lm(
            "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head"
        ),
        classifier=names.classifier("classifier.dense", "classifier.out_proj"),
        bias_copy="lm_head.decoder.bias",
    ),
    transformers="XLMRoberta",
    classifier=FirstToken,
    pooler=True,
)
DISTILBERT = Backbone(
    BertConfig,
    BertEncoder,
    names.Names(
        prefixes=("distilbert.", ""),
        encoder=_DISTILBERT_NAMES,
        masked_lm=names.masked_lm(
            "vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector"
        ),
    ),
    transformers="DistilBert",
)
