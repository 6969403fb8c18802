"""A family of encoders: all that the package asks it."""

import dataclasses

from lsrjax.models.backbones.encoder import Encoder
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.names import Names


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A family.

    Attributes:
      config: reads and writes its config.json.
      encoder: computes hidden states.
      names: of its tensors in checkpoints.
      transformers: how the names of its classes in transformers begin.
      pooler: these classes have a pooler, whose weights a loader misses.
      pairs_have_types: the second text of a pair has a token type of its own.
    """

    config: type[EncoderConfig]
    encoder: type[Encoder]
    names: Names
    transformers: str
    pooler: bool = False
    pairs_have_types: bool = False
