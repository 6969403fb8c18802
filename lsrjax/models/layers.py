"""Layers shared by the encoder and the heads."""

import jax
import jax.numpy as jnp
from flax import nnx

from lsrjax import reps

# numpy's and JAX's dtype-like arguments have no public type narrower than this.
DType = jax.typing.DTypeLike


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and rescales the others.

    What is drawn for a text depends on its own key alone, not on the texts beside it.

    Args:
      x: any array [B, ...].
      rate: probability of dropping an element, in [0, 1).
      keys_B: a random key for each text; None switches dropout off.

    Returns:
      An array like `x` with the same expectation; `x` itself when off.
    """
    if keys_B is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(
        keys_B
    )
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """Gaussian error linear unit through erf, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


class Linear(nnx.Linear):
    """`nnx.Linear` over [..., in] that multiplies matrices of rank two.

    With a batch and a token axis, XLA on CPU transposes the incoming gradient in memory
    before the weights' gradient: three times the time of the product itself.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        out = super().__call__(inputs.reshape(-1, inputs.shape[-1]))
        return out.reshape(*inputs.shape[:-1], -1)


def linear(
    in_features: int,
    out_features: int,
    *,
    initializer_range: float = 0.02,
    dtype: DType = jnp.float32,
    rngs: nnx.Rngs,
) -> Linear:
    """Linear layer, kernel [in, out] ~ N(0, initializer_range²) and bias 0.

    Parameters are float32; the product is computed in `dtype`.
    """
    return Linear(
        in_features,
        out_features,
        kernel_init=nnx.initializers.normal(initializer_range),
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def layer_norm(size: int, eps: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis that computes and returns float32."""
    # E[x²] - E[x]² loses digits where the mean is large against the spread, which is
    # common in the last layers of these encoders.
    return nnx.LayerNorm(
        size,
        epsilon=eps,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        use_fast_variance=False,
        rngs=rngs,
    )


class Head(nnx.Module):
    """What all heads have; see `lsrjax.models.heads`.

    Attributes:
      sparse: whether all views are weights of terms.
      rules: `lsrjax.sharding.Rule`s of parameters that its table does not know.
    """

    sparse = True
    rules = ()

    @staticmethod
    def views(spec) -> dict[str, int]:
        """The names of the views and the sizes of their vocabularies or embeddings."""
        raise NotImplementedError

    @staticmethod
    def encodes_queries(spec) -> bool:
        """Whether queries need the encoder; if not, `from_ids` makes their views."""
        return True

    def from_ids(self, ids_BL: jax.Array, mask_BL: jax.Array) -> reps.Views:
        """The views of queries from their ids alone, like those of encoded texts.

        Args:
          ids_BL: token ids.
          mask_BL: 1 at tokens, 0 at padding.
        """
        raise NotImplementedError

    @staticmethod
    def expands(spec, text: str) -> tuple[str, ...]:
        """Views that may weigh tokens of the encoder which a text does not have.

        Args:
          spec: the retriever's `RetrieverSpec`.
          text: its name, such as "query".
        """
        return ()


class MLMTransform(nnx.Module):
    """The masked-LM head of BERT up to its decoder: dense, exact GELU, LayerNorm.

    Parameters: `dense/{kernel,bias}`, `norm/{scale,bias}`.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float,
        *,
        initializer_range: float = 0.02,
        dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.dense = linear(
            hidden_size,
            hidden_size,
            initializer_range=initializer_range,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(hidden_size, eps, rngs=rngs)

    def __call__(self, hidden_BLD: jax.Array) -> jax.Array:
        """Maps hidden states [..., D] to the decoder's input [..., D], in `dtype`."""
        return self.norm(gelu(self.dense(hidden_BLD))).astype(self.dtype)
