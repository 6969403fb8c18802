"""A family of encoders: all that the package asks it."""

import dataclasses
from collections.abc import Callable

from flax import nnx

from lsrjax.models.backbones.encoder import Encoder
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.names import Names
from lsrjax.models.layers import DType, MLMTransform
from lsrjax.options import Options


def _berts(config: EncoderConfig, *, dtype: DType, rngs: nnx.Rngs) -> nnx.Module:
    return MLMTransform(
        config.hidden_size, config.layer_norm_eps, dtype=dtype, rngs=rngs
    )


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A family.

    Attributes:
      config: reads and writes its config.json.
      encoder: computes hidden states.
      names: of its tensors in checkpoints.
      transformers: how the names of its classes in transformers begin; empty: it has
        none.
      code: the family is not in transformers, and exports carry model code: that in
        `convert/templates/{configuration,modeling}_CODE.py`.
      architectures: how the names of its classes begin in a config.json whose
        `model_type` is missing, or that of another family.
      transform: makes the (masked) language model's head without its decoder,
        [T, D] -> [T, D].
      alone: how the name of its class without a head ends.
      language_model: how the name of its class with such a head ends.
      task: of that class, in sentence-transformers.
      head_bias: the head's decoder has a bias.
      tied: the head's decoder is the word table where config.json does not say.
      classifier: makes a cross-encoder's head, see `classifiers`; None: it has none.
      pooler: the classes have a pooler, whose weights a loader misses.
      pairs_have_types: the second text of a pair has a token type of its own.
      Options: fields of its config that `config.model.family` may set.
    """

    config: type[EncoderConfig]
    encoder: type[Encoder]
    names: Names
    transformers: str = ""
    code: str = ""
    architectures: str = ""
    transform: Callable[..., nnx.Module] = _berts
    alone: str = "Model"
    language_model: str = "ForMaskedLM"
    task: str = "fill-mask"
    head_bias: bool = True
    tied: bool = True
    classifier: Callable[..., nnx.Module] | None = None
    pooler: bool = False
    pairs_have_types: bool = False
    Options: type[Options] = Options
