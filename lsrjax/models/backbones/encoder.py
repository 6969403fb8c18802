"""What all encoders share: a batch goes in, hidden states come out.

A family's subclass embeds tokens and runs its layers, whose parameters are stacked over
the layers. In array names T is all tokens of a batch.
"""

import contextvars
import dataclasses
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models import low_rank
from lsrjax.models.backbones.attention import lengths_of, suits_cudnn
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.layers import DType, subkeys
from lsrjax.models.prompt_rows import Prompted
from lsrjax.models.texts import Texts
from lsrjax.ops import hardware

# What the backward pass recomputes: nothing; all but the results of matrix products
# with parameters; all but the layers' inputs.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layer": jax.checkpoint_policies.nothing_saveable,
}


# (layer, states [T, D], the layer's number, its place in the period) -> states.
Call = Callable[[nnx.Module, jax.Array, jax.Array | int, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the layers need to know of a batch.

    Attributes:
      texts: the batch.
      seen: see `attention.Attention`.
      keys_T: a random key for each token; None: no dropout.
      remat: a name in `REMAT`.
      early: layers after which the states are kept; 0: they are not.
      kept: the states that were kept, [T, D].
    """

    texts: Texts
    seen: tuple[jax.Array, ...]
    keys_T: jax.Array | None
    remat: str
    early: int = 0
    kept: list[jax.Array] = dataclasses.field(default_factory=list)


class Encoder(nnx.Module):
    """Transformer encoder over token ids.

    Parameters are float32; layers compute in `dtype`, softmax and norms in float32.
    Every family has the word table at `embeddings/word/embedding` and, with a leading
    axis over the layers, those at `layers`; kernels are [in, out].

    Attributes:
      rules: `sharding.Rule`s of parameters that the table in `sharding` lacks.
      fused_attention: cuDNN has its attention, where it has one at all.
      token_types: the second text of a pair has a type of its own.
    """

    rules: tuple[sharding.Rule, ...] = ()
    fused_attention = True
    token_types = False
    embeddings: Any  # a module with the table `word`

    def __init__(
        self, config: EncoderConfig, *, dtype: DType = jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        self.dtype = dtype

    def embed(
        self,
        texts: Texts,
        types: tuple[jax.Array, ...] | None,
        keys_T: jax.Array | None,
    ) -> jax.Array:
        """The embeddings of all tokens, [T, D]."""
        raise NotImplementedError

    def run(self, hidden_TD: jax.Array, batch: Batch) -> jax.Array:
        """The states after the last layer, [T, D]."""
        raise NotImplementedError

    def __call__(
        self,
        ids_BL: jax.Array,
        mask_BL: jax.Array,
        *,
        types_BL: jax.Array | None = None,
        language_B: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        remat: str = "none",
    ) -> jax.Array:
        """Encodes texts of one length; see `encode`.

        Args:
          mask_BL: true or 1 at tokens, false or 0 at padding.
          types_BL: token types of pairs; all 0 by default.
          language_B: see `Texts.language`.
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
        part = {"ids": ids_BL, "mask": mask_BL}
        if language_B is not None:
            part["language"] = language_B
        hidden_TD = self.encode(
            Texts.of([part]),
            types=None if types_BL is None else (types_BL,),
            dropout_keys=None if dropout_keys_B is None else (dropout_keys_B,),
            remat=remat,
        )
        return hidden_TD.reshape(*ids_BL.shape, -1)

    def encode(self, texts: Texts, **options: Any) -> jax.Array:
        """Hidden states of the last layer, [T, D]; options as of `states`."""
        return self.states(texts, **options)[0]

    def states(
        self,
        texts: Texts,
        *,
        attended: tuple[jax.Array, ...] | None = None,
        types: tuple[jax.Array, ...] | None = None,
        dropout_keys: tuple[jax.Array, ...] | None = None,
        remat: str = "none",
        early: int = 0,
    ) -> tuple[jax.Array, Batch]:
        """Encodes a batch.

        Args:
          texts: the batch. Padding comes after the tokens and never changes their
            states; its own states are meaningless.
          attended: [B, L] bool of each part, tokens that others attend to; None: all.
          types: [B, L] of each part, token types of pairs; None: all 0.
          dropout_keys: a random key for each text, [B] of each part; None: no dropout.
          remat: what the backward pass recomputes, a name in `REMAT`.
          early: see `Batch`.

        Returns:
          Hidden states of the last layer [T, D], in `dtype`; and what the layers knew
          of the batch, with the states of layer `early`.

        Raises:
          InputError: texts longer than `config.max_length`.
          ValueError: types for an encoder without.
        """
        config = self.config
        length = max(ids_BL.shape[1] for ids_BL in texts.ids)
        if length > config.max_length:
            raise InputError(
                f"Texts of {length} tokens, but this {config.family} encoder takes at "
                f"most {config.max_length} (its config has {config.max_positions}"
                f" positions). Cut the texts to {config.max_length} tokens or choose a"
                " checkpoint with more of them."
            )
        if types is not None and not self.token_types:
            raise ValueError(f"A {config.family} encoder has no token types.")
        seen = texts.mask if attended is None else attended
        dropping = dropout_keys is not None and config.attention_dropout > 0.0
        fused = self.fused_attention and not dropping
        if fused and suits_cudnn(hardware.device(), self.dtype, config.head_width):
            seen = tuple(map(lengths_of, seen))
        keys_T = None
        if dropout_keys is not None:
            keys_T = texts.keys_of_tokens(dropout_keys)
        hidden_TD = self.embed(texts, types, subkeys(keys_T, 0))
        batch = Batch(texts, seen, keys_T, remat, early)
        return self.run(hidden_TD, batch), batch

    def run_layer(
        self, call: Call, layer: nnx.Module, hidden_TD: jax.Array, batch: Batch
    ) -> jax.Array:
        """Runs a first layer that is not stacked; arguments as of `run_layers`."""
        graphdef, params = nnx.split(layer, nnx.Param)
        one = _checkpointed(partial(self._one, call, graphdef), batch.remat)
        return one(hidden_TD, nnx.to_pure_dict(params), 0, 0)

    def run_layers(
        self,
        call: Call,
        layers: nnx.Module,
        hidden_TD: jax.Array,
        batch: Batch,
        *,
        first: int = 0,
        period: int = 1,
    ) -> jax.Array:
        """Runs layers whose parameters are stacked.

        Args:
          layers: a module of `stack`.
          batch: with other `remat` than "none", layers run as a loop.
          first: the number of the first of them.
          period: layers whose numbers differ by a multiple of it are alike.
        """
        graphdef, params = nnx.split(layers, nnx.Param)
        stacked = nnx.to_pure_dict(params)
        count = len(jax.tree.leaves(stacked)[0])
        one = _checkpointed(partial(self._one, call, graphdef), batch.remat)
        run = partial(_run, one, period=period, remat=batch.remat)
        early = batch.early - first
        if not 0 < early <= count:
            return run(hidden_TD, stacked, first)
        hidden_TD = run(hidden_TD, jax.tree.map(lambda x: x[:early], stacked), first)
        batch.kept.append(hidden_TD)
        if early == count:
            return hidden_TD
        rest = jax.tree.map(lambda x: x[early:], stacked)
        return run(hidden_TD, rest, first + early)

    def _one(self, call, graphdef, hidden_TD, params, index, place):
        # Gathered here, so that the backward pass does not keep them.
        config = self.config
        params = sharding.gathered(
            params, config.num_heads, self.rules, key_heads=config.key_heads
        )
        layer = nnx.merge(graphdef, low_rank.of_layer(params))
        hidden_TD = call(layer, hidden_TD, index, place)
        return sharding.constrain(hidden_TD, sharding.DATA, None)


def _run(one, hidden_TD, stacked, first: int, *, period: int, remat: str):
    """The states after stacked layers, the number of the first of which is `first`."""
    count = len(jax.tree.leaves(stacked)[0])
    # Unrolled where nothing is computed again: a loop would copy everything saved
    # for the backward pass. Otherwise the compiled program contains one layer of
    # each kind. (Unrolled, the compiler may notice that the backward pass repeats
    # the forward pass and keep its values after all; XLA on CPU does.)
    whole = 0 if remat == "none" else count // period * period

    def group(hidden_TD, layer):
        params, index = layer
        for j in range(period):
            own = params if period == 1 else jax.tree.map(itemgetter(j), params)
            hidden_TD = one(hidden_TD, own, index + j, (first + j) % period)
        return hidden_TD, None

    if whole:
        hidden_TD, _ = jax.lax.scan(
            group,
            hidden_TD,
            (
                _in_periods(stacked, whole, period),
                jnp.arange(first, first + whole, period),
            ),
        )
    rest = jax.tree.map(lambda x: x[whole:], stacked) if whole else stacked
    for i, layer in enumerate(_apart(rest, count - whole), first + whole):
        hidden_TD = one(hidden_TD, layer, i, i % period)
    return hidden_TD


class Table(nnx.Embed):
    """A table of embeddings, whose rows for prompt vectors may be apart."""

    def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
        """The rows of ids, [..., D]."""
        table = self.embedding.get_value()
        if isinstance(table, Prompted):
            return table.look_up(inputs)
        return super().__call__(inputs, out_sharding)


def table(config: EncoderConfig, rngs: nnx.Rngs, rows: int) -> Table:
    """A new table of embeddings, [rows, D] float32."""
    return Table(
        rows,
        config.hidden_size,
        embedding_init=nnx.initializers.normal(config.initializer_range),
        param_dtype=jnp.float32,
        rngs=rngs,
    )


_SHAPES_ONLY = contextvars.ContextVar("_SHAPES_ONLY", default=False)


def shapes_of(build: Callable[[], nnx.Module]) -> nnx.Module:
    """The model that `build` makes, with `jax.ShapeDtypeStruct` for its parameters.

    Takes as long for many layers as for one, which `nnx.eval_shape` alone does not.
    """
    before = _SHAPES_ONLY.set(True)
    try:
        return nnx.eval_shape(build)
    finally:
        _SHAPES_ONLY.reset(before)


def stack(make: Callable[[], nnx.Module], count: int) -> nnx.Module:
    """`count` new layers as one module, whose parameters have a leading axis."""
    graphdef, first = nnx.split(make())
    if _SHAPES_ONLY.get():
        return nnx.merge(
            graphdef,
            jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), first),
        )
    states = [first, *(nnx.split(make())[1] for _ in range(count - 1))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return nnx.merge(graphdef, stacked)


def _checkpointed(one: Callable, remat: str) -> Callable:
    if remat == "none":
        return one
    return jax.checkpoint(one, policy=REMAT[remat], static_argnums=3)


def _in_periods(stacked, whole: int, period: int):
    if period == 1 and whole == len(jax.tree.leaves(stacked)[0]):
        return stacked
    shape = (whole // period, period) if period > 1 else (whole,)
    return jax.tree.map(lambda x: x[:whole].reshape(*shape, *x.shape[1:]), stacked)


def _apart(stacked, count: int) -> list:
    """The layers of stacked parameters."""
    # The gradient of one split is one concatenation; of slices, sums of padding.
    split = jax.tree.map(lambda x: jax.lax.split(x, [1] * count), stacked)
    return [
        jax.tree.map(
            lambda x, i=i: x[i][0], split, is_leaf=lambda x: isinstance(x, list | tuple)
        )
        for i in range(count)
    ]
