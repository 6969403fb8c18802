"""The head that Condenser adds for pretraining, and throws away afterwards."""

import dataclasses

import jax
from flax import nnx

from lsrjax.errors import InputError
from lsrjax.models.backbones.bert import BertEncoder
from lsrjax.models.backbones.encoder import Batch
from lsrjax.models.backbones.table import backbone
from lsrjax.models.layers import subkeys

_KEYS = 2**16  # above all layers


class Condenser(nnx.Module):
    """Layers that predict tokens from early states and the last first token's.

    Of what the later layers of the encoder find, only the state of the first token
    reaches them, which so has to sum the text up (Gao and Callan 2021, Condenser,
    arXiv 2104.08253).
    """

    def __init__(self, config, layers: int, *, dtype, rngs: nnx.Rngs):
        """Random layers, like those of the encoder.

        Raises:
          InputError: an encoder unlike BERT, one that normalizes ahead of its layers,
            whose early and last states have other scales, or one of a single layer.
        """
        kind = backbone(config.family).encoder
        ahead = getattr(config, "norms_ahead", False)
        if not issubclass(kind, BertEncoder) or ahead or config.num_layers < 2:
            raise InputError(
                "config.model.head.condenser is for encoders like BERT of two layers or"
                f" more; this one is {config.family} of {config.num_layers}. Use 0."
            )
        fewer = dataclasses.replace(config, num_layers=layers)
        self.encoder = kind(fewer, dtype=dtype, rngs=rngs)
        del self.encoder.embeddings
        self.early = config.num_layers // 2

    def __call__(self, hidden_TD: jax.Array, early_TD: jax.Array, batch: Batch):
        """The states that predict, [T, D].

        Args:
          hidden_TD: of the encoder's last layer.
          early_TD: of its layer `early`.
          batch: that the encoder was given.
        """
        texts = batch.texts
        pairs = zip(texts.split(hidden_TD), texts.split(early_TD), strict=True)
        mixed_TD = texts.join(
            early_BLD.at[:, 0].set(late_BLD[:, 0]) for late_BLD, early_BLD in pairs
        )
        # Dropout of its own, apart from that of the encoder's layers.
        keys_T = subkeys(batch.keys_T, _KEYS)
        own = dataclasses.replace(batch, early=0, keys_T=keys_T)
        return self.encoder.run(mixed_TD, own)
