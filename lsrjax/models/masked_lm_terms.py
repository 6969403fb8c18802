"""SPLADE's weights of terms by the encoder's own masked-LM head, for several heads."""

import dataclasses

from flax import nnx

from lsrjax.errors import InputError
from lsrjax.models.backbones.table import backbone
from lsrjax.models.layers import Head
from lsrjax.models.term_weights import MLMHead
from lsrjax.models.texts import Texts
from lsrjax.models.views import Views
from lsrjax.options import Options, no_effect, option


def _begins(spec) -> int:
    """The id that shifted logits begin with; -1: they are not shifted."""
    if spec.options.logits == "plain":
        return -1
    token = getattr(spec.encoder, "bos_token_id", None)
    if token is None or spec.options.pooling != "max":
        raise InputError(
            f"config.model.head.logits is {spec.options.logits!r}, which is for"
            f" NorBERT4 and pooling 'max'; the encoder is a {spec.encoder.family}, and"
            f" pooling is {spec.options.pooling!r}. Use 'plain'."
        )
    return token


def _cap(spec) -> float:
    """The c of logits c tanh(x / c); 0: they have none."""
    cap = getattr(spec.encoder, "logit_cap", 0.0)
    if cap and spec.options.pooling != "max":
        raise InputError(
            f"config.model.head.pooling is {spec.options.pooling!r}, and logits of"
            f" {spec.encoder.family} are capped at {cap:g} (final_logit_softcapping),"
            " which only the pooling 'max' does."
        )
    return cap


@dataclasses.dataclass(frozen=True)
class PooledOptions(Options):
    """The option of heads with a masked-LM head."""

    pool_mask: str = option(
        "exclude",
        "exclude (padding never changes a result) | multiply (reference; padded"
        " positions take part in the max as 0)",
        choices=("exclude", "multiply"),
    )


@dataclasses.dataclass(frozen=True)
class MaskedLMOptions(PooledOptions):
    """Of `MaskedLMTerms`."""

    tied: bool = option(True, "the decoder is the word embedding", when="fresh weights")
    pooling: str = option(
        "max",
        "over tokens: max | sum | cls (the first token's logits alone, which"
        " bag_of_words then predicts from)",
        choices=("max", "sum", "cls"),
    )
    activation: str = option(
        "relu",
        "of the logits, before the logarithm",
        choices=("relu", "log1p_relu"),
        fact=True,
    )
    logits: str = option(
        "plain",
        "of NorBERT4: plain | shifted (the next token's, as its masked LM was trained)"
        " | capped (shifted, and 30 sigmoid(x / 7.5), as the hub's code gives them)",
        choices=("plain", "shifted", "capped"),
    )

    def problem(self) -> str | None:
        """Refuses the mask of a maximum with another pooling."""
        if self.pooling == "max" or self.pool_mask == "exclude":
            return None
        because = f"there is no maximum over tokens with pooling = {self.pooling!r}"
        return no_effect("pool_mask", self.pool_mask, because)


class MaskedLMTerms(Head):
    """Base of heads with SPLADE over the encoder's own vocabulary, view `terms`."""

    starts_from = ("encoder", "head")

    @staticmethod
    def views(spec) -> dict[str, int]:
        """`terms`, of the encoder's vocabulary."""
        return {"terms": spec.encoder.vocab_size}

    @staticmethod
    def as_trained(options, model):
        """Sets whether the decoder is tied, and the activation."""
        # A tied decoder can be all of a head.
        shown = MaskedLMTerms.shown_by(model.params.get("head", {"mlm": {}}))
        activation = model.spec.options.activation
        return dataclasses.replace(options, activation=activation, **shown)

    @staticmethod
    def shown_by(params) -> dict:
        """Whether the decoder is tied."""
        return {"tied": "decoder" not in params["mlm"]}

    def __init__(self, spec, *, dtype, rngs: nnx.Rngs):
        """Adds `mlm`."""
        family = backbone(spec.encoder.family)
        self.mlm = MLMHead(
            family.transform(spec.encoder, dtype=dtype, rngs=rngs),
            spec.encoder.hidden_size,
            spec.encoder.vocab_size,
            silent_terms=spec.encoder.silent_terms,
            begins=_begins(spec),
            capped=spec.options.logits == "capped",
            cap=_cap(spec),
            bias=family.head_bias,
            tied=spec.options.tied,
            pool_mask=spec.options.pool_mask,
            pooling=spec.options.pooling,
            activation=spec.options.activation,
            rngs=rngs,
        )

    def __call__(self, hidden_TD, texts: Texts, word_embeddings_VD) -> Views:
        """The `terms` view."""
        return {"terms": self.mlm(hidden_TD, texts, word_embeddings_VD)}
