"""Layers shared by the encoder and the heads.

In array names T is all tokens of a batch, text after text; see `lsrjax.models.texts`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lsrjax.distributed.sharding import Rule
from lsrjax.models.views import Views
from lsrjax.options import Options

# numpy's and JAX's dtype-like arguments have no public type narrower than this.
DType = jax.typing.DTypeLike


def subkeys(keys_T: jax.Array | None, index) -> jax.Array | None:
    """A new key from each key, the `index`-th of many; None from None."""
    if keys_T is None:
        return None
    # An index for each key, so that the program holds one generator (`keys_of_tokens`).
    return jax.vmap(jax.random.fold_in)(keys_T, jnp.full(keys_T.shape, index))


def dropout(
    x: jax.Array, rate: float, keys: jax.Array | None, places=None
) -> jax.Array:
    """Zeroes each element with probability `rate` and rescales the others.

    The draw for an element depends on its own key and place alone: two rounds of
    MurmurHash3's 32-bit finalizer (Appleby, 2011) over them, since each layer's program
    holds several such draws and JAX's generator takes many more operations for one.

    Args:
      x: any shape.
      rate: in [0, 1).
      keys: random keys, one for each row of `x`, or, with `places`, of a shape that
        broadcasts with it to that of `x`; None: no dropout.
      places: whole numbers that tell the elements of a key apart; without, those of a
        row are counted.
    """
    if keys is None or rate == 0.0:
        return x
    if places is None:
        places = jnp.arange(math.prod(x.shape[1:])).reshape(1, *x.shape[1:])
        keys = keys.reshape(-1, *[1] * (x.ndim - 1))
    keep = _kept(jax.random.key_data(keys), places, 1.0 - rate)
    return (lax.select(keep, x, jnp.zeros_like(x)) / (1.0 - rate)).astype(x.dtype)


# Compiled as a function, which the program holds once for all layers.
@partial(jax.jit, static_argnums=2)
def _kept(words: jax.Array, places: jax.Array, share: float) -> jax.Array:
    bits = _mixed(words[..., -1] ^ _mixed(words[..., 0] ^ places.astype(np.uint32)))
    return bits < np.uint32(min(round(share * 2**32), 2**32 - 1))


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Gaussian error linear unit through erf, not its tanh approximation."""
    if x.dtype == jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    z = x.astype(jnp.float32)
    return (z * _normal_cdf(z, x.dtype)).astype(x.dtype)


# Only x is saved for the backward pass; JAX's own rule saves three arrays of its size.
def _gelu_fwd(x):
    return gelu(x), x


def _gelu_bwd(x, g):
    # d/dx x Phi(x) = Phi(x) + x phi(x), with the normal distribution and its density.
    z = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * z * z) * (2 * jnp.pi) ** -0.5
    slope = _normal_cdf(z, x.dtype) + z * density
    return ((g.astype(jnp.float32) * slope).astype(g.dtype),)


def _normal_cdf(z: jax.Array, dtype: DType) -> jax.Array:
    # erfc keeps the digits of the left tail, at about twice the time of erf; in 16 bits
    # few of these digits remain.
    if dtype == jnp.float32:
        return 0.5 * lax.erfc(-z * 2**-0.5)
    return 0.5 + 0.5 * lax.erf(z * 2**-0.5)


gelu.defvjp(_gelu_fwd, _gelu_bwd)

# By their names in transformers.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "silu": jax.nn.silu,
}


def linear(
    in_features: int,
    out_features: int,
    *,
    initializer_range: float = 0.02,
    use_bias: bool = True,
    dtype: DType = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Linear layer, kernel [in, out] ~ N(0, initializer_range²) and maybe bias 0.

    Parameters are float32; the product is computed in `dtype`. Pass matrices
    [rows, in]: with a batch and a token axis, XLA on CPU transposes the incoming
    gradient in memory before the weights' gradient, which takes three times as long as
    the product itself.
    """
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=nnx.initializers.normal(initializer_range),
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


class Products(nnx.Module):
    """Products of one input: `kernel` [in, n, out], and maybe `bias` [n, out]."""

    def __init__(
        self,
        count: int,
        in_features: int,
        out_features: int,
        *,
        initializer_range: float,
        use_bias: bool = True,
        dtype: DType,
        rngs: nnx.Rngs,
    ):
        kernels = [
            linear(
                in_features,
                out_features,
                initializer_range=initializer_range,
                rngs=rngs,
            ).kernel[...]
            for _ in range(count)
        ]
        self.kernel = nnx.Param(jnp.stack(kernels, axis=1))
        zeros = jnp.zeros((count, out_features))
        self.bias = nnx.Param(zeros) if use_bias else None
        self.dtype = dtype

    def __call__(self, hidden_TD: jax.Array) -> list[jax.Array]:
        """The products, [T, out] each."""
        kernel = self.kernel[...].astype(self.dtype)
        # One product for all of them would have to be copied into attention's layout.
        found = [hidden_TD @ kernel[:, i] for i in range(kernel.shape[1])]
        if self.bias is None:
            return found
        bias = self.bias[...].astype(self.dtype)
        return [one + bias[i][None] for i, one in enumerate(found)]


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis of [T, D] that computes in float32."""

    def __init__(self, size: int, eps: float, *, use_bias: bool = True, rngs: nnx.Rngs):
        super().__init__(
            size, epsilon=eps, use_bias=use_bias, param_dtype=jnp.float32, rngs=rngs
        )

    def __call__(self, x_TD: jax.Array) -> jax.Array:  # type: ignore[override]  # no mask
        """The normalized rows, in the dtype of `x_TD`."""
        assert self.scale is not None
        scale_D = self.scale[...]
        bias_D = jnp.zeros_like(scale_D) if self.bias is None else self.bias[...]
        return _normalize(self.epsilon, True, x_TD, scale_D, bias_D)


class RMSNorm(nnx.Module):
    """Rows over the root of their mean square, times `scale` (Zhang, Sennrich 2019).

    `around_one`: the factor is 1 + `scale`.
    """

    def __init__(self, size: int, eps: float, *, around_one: bool = False):
        self.eps, self.around_one = eps, around_one
        self.scale = nnx.Param((jnp.zeros if around_one else jnp.ones)(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes the last axis, in float32; returns the dtype of `x`."""
        scale_D = self.scale[...] + 1 if self.around_one else self.scale[...]
        return _normalize(self.eps, False, x, scale_D, jnp.zeros_like(scale_D))


def normalized(x_TD: jax.Array, eps: float) -> jax.Array:
    """LayerNorm without parameters, computed in float32."""
    ones_D = jnp.ones(x_TD.shape[-1:], jnp.float32)
    return _normalize(eps, True, x_TD, ones_D, jnp.zeros_like(ones_D))


# y = s (x - m) r + b, with the mean m and r = (variance + eps)^-1/2 of each row. With
# n = (x - m) r and an incoming gradient g,
#
#   db = sum g        ds = sum g n        dx = r (gs - mean(gs) - n mean(gs n))
#
# or, not `centered`, the same without m and mean(gs). Written out, x and two numbers a
# row are saved for the backward pass; JAX's own rule saves several arrays of x's size
# in float32.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(eps, centered, x, scale_D, bias_D):
    return _normalize_fwd(eps, centered, x, scale_D, bias_D)[0]


def _normalize_fwd(eps, centered, x, scale_D, bias_D):
    row = (1,) * (x.ndim - 1) + scale_D.shape
    z = x.astype(jnp.float32)
    # E[x²] - E[x]² loses digits if the mean is large compared with the spread, which is
    # common in the last layers of these encoders.
    mean = z.mean(axis=-1, keepdims=True) if centered else jnp.zeros((1,) * x.ndim)
    variance = jnp.square(z - mean).mean(axis=-1, keepdims=True)
    # Otherwise XLA for GPUs computes the mean again in the backward pass, in kernels
    # that write g n in float32 to sum it over the rows.
    mean, r = lax.optimization_barrier((mean, lax.rsqrt(variance + eps)))
    y = (z - mean) * (r * scale_D.reshape(row)) + bias_D.reshape(row)
    return y.astype(x.dtype), (x, mean, r, scale_D)


def _normalize_bwd(eps, centered, saved, g):
    x, mean, r, scale_D = saved
    rows = tuple(range(x.ndim - 1))
    n = (x.astype(jnp.float32) - mean) * r
    g = g.astype(jnp.float32)
    gs = g * scale_D.reshape((1,) * len(rows) + scale_D.shape)
    mean_gs = gs.mean(axis=-1, keepdims=True) if centered else 0.0
    dx = r * (gs - mean_gs - n * (gs * n).mean(axis=-1, keepdims=True))
    return dx.astype(x.dtype), (g * n).sum(axis=rows), g.sum(axis=rows)


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


# What a loss may need of a head.
GIVEN = {
    "logits": "weights of terms before their activation",
    "autoencoder": "an autoencoder to reconstruct with",
    "one vector": "a vector of each text (its first view)",
    "three views": "three views to distil into each other",
    "embedding": "one embedding as its only view",
    "masked LM": "a masked-LM head over the encoder's own vocabulary",
}


class Fixed(nnx.Variable):
    """Belongs to a model like a parameter, but is not learned: no gradient, no moments.

    Its numbers are float32, like all of a model's.
    """


class Head(nnx.Module):
    """Base of all heads; see `lsrjax.models.heads`.

    Attributes:
      Options: a dataclass of its options, see `lsrjax.options`.
      gives: what it has for losses that need it, of `GIVEN`.
      source_option: the option that adds a view of the text's own tokens, `source`.
      sparse: whether all views are weights of terms.
      weighed: the views that are weights of terms, and regularized, if not all are.
      starts_from: the parts that a student has of the model of `init.encoder`.
      tables: options that add a table which only an initialisation fills, or a model
        that has one: the initialisation's name, and the key of the parameters.
      training_only: options whose parameters, of the same name, are for its training
        alone, and their values without.
      parts: heads that are a part of it, by name, and the key of their parameters in
        its own; a student with such a head can start from a model with this one.
      pools: whether its views pool a text's tokens, and may leave a prompt's out.
      copies_pivot: whether its masked-LM head is copied from an English model.
      rules: `sharding.Rule`s of parameters that the table in `sharding` lacks.
    """

    Options = Options
    gives: tuple[str, ...] = ()
    source_option = ""
    sparse = True
    weighed: tuple[str, ...] = ()
    starts_from: tuple[str, ...] = ("encoder",)
    training_only: ClassVar[Mapping[str, Any]] = {}
    parts: ClassVar[Mapping[str, str]] = {}
    tables: ClassVar[Mapping[str, tuple[str, str]]] = {}
    pools = False
    copies_pivot = False
    rules: tuple[Rule, ...] = ()

    def __init__(self, spec, *, dtype: DType, rngs: nnx.Rngs):
        """Random parameters, float32; `dtype` is what matrix products run in."""

    @staticmethod
    def views(spec) -> dict[str, int]:
        """The names of the views and the sizes of their vocabularies or embeddings."""
        raise NotImplementedError

    @staticmethod
    def encodes_queries(options) -> bool:
        """Whether queries need the encoder; if not, `from_ids` makes their views."""
        return True

    @staticmethod
    def learns_queries(options) -> bool:
        """Whether a parameter changes the views of queries."""
        return True

    @staticmethod
    def expand_id(options) -> int:
        """The id that queries are filled up with, unattended; -1: none."""
        return -1

    @staticmethod
    def settled(options, tokenizer):
        """The options of a config with what a tokenizer decides.

        Args:
          options: of the head.
          tokenizer: a `lsrjax.data.tokenization.TextTokenizer`.
        """
        return options

    @staticmethod
    def shown_by(params) -> dict:
        """The options that a head's parameters show, such as its sizes, by name."""
        return {}

    @staticmethod
    def as_trained(options, model):
        """The options, with those that the head of a `SavedModel` determines."""
        return options

    @staticmethod
    def shortened(spec, params: dict, size: int) -> tuple[Any, dict]:
        """The spec and the head's parameters for the first `size` numbers of a vector.

        Only heads that give one embedding have it.
        """
        raise NotImplementedError

    def from_ids(self, ids_BL: jax.Array, mask_BL: jax.Array) -> Views:
        """The views of queries from their ids alone, like those of encoded texts."""
        raise NotImplementedError

    def predicted(self, hidden_TD, texts, word_embeddings_VD, masked):
        """How well masked tokens are predicted, if it `gives` a "masked LM".

        Args:
          texts: with masked tokens.
          masked: those that were there, a `lsrjax.models.masking.Masked`.

        Returns:
          A `lsrjax.models.masking.Predicted`.
        """
        raise NotImplementedError

    @staticmethod
    def expands(spec, text: str) -> tuple[str, ...]:
        """Views that may weigh tokens which are not in a text of this name."""
        return ()


class MLMTransform(nnx.Module):
    """A masked-LM head without its decoder: dense, activation, LayerNorm.

    Parameters: `dense/{kernel,bias}`, `norm/{scale,bias}`; some families lack biases.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float,
        *,
        dense_bias: bool = True,
        norm_bias: bool = True,
        activation: str = "gelu",
        initializer_range: float = 0.02,
        dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dense = linear(
            hidden_size,
            hidden_size,
            initializer_range=initializer_range,
            use_bias=dense_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(hidden_size, eps, use_bias=norm_bias, rngs=rngs)
        self.activation = activation

    def __call__(self, hidden_TD: jax.Array) -> jax.Array:
        """Maps hidden states [T, D] to the decoder's input [T, D], in `dtype`."""
        return self.norm(ACTIVATIONS[self.activation](self.dense(hidden_TD)))
