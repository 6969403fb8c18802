"""The optimizers by name: how a step's gradients become the direction of its update.

Each is a transformation of optax. Clipping, decoupled decay, the learning rate with its
schedule and groups, and freezing are the same for all: `lsrjax.training.optimizer`.

The parameters of an encoder's layers are stacked. What an optimizer computes of a whole
parameter, such as LAMB's norms, is computed of each layer's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from lsrjax import options
from lsrjax.distributed.sharding import is_stacked
from lsrjax.distributed.trees import path_name
from lsrjax.options import option


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An entry of `OPTIMIZERS`.

    Attributes:
      fn: of the options, from gradients to the direction that the step goes
        against, of the size that the learning rate multiplies.
      after_decay: of the options, what becomes of the direction with the decay added;
        None: nothing.
      Options: a dataclass of its options.
    """

    fn: Callable[[Any], optax.GradientTransformation]
    after_decay: Callable[[Any], optax.GradientTransformation] | None = None
    Options: type[options.Options] = options.Options


def by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation without state, of each layer's parameters on their own."""

    def update(updates, params):
        def one(path, u, p):
            def alone(u, p):
                return inner.update(u, inner.init(p), p)[0]

            return (jax.vmap(alone) if is_stacked(path_name(path)) else alone)(u, p)

        return jax.tree_util.tree_map_with_path(one, updates, params)

    return optax.stateless(update)


@dataclasses.dataclass(frozen=True)
class _AdamW(options.Options):
    b1: float = option(0.9, "of the mean of gradients", low=0, below=1)
    b2: float = option(0.999, "of the mean of their squares", low=0, below=1)
    eps: float = option(1e-8, "added to the root of the squares", above=0)


def _adamw(options) -> optax.GradientTransformation:
    """Adam with decoupled decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    return optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=options.eps)


@dataclasses.dataclass(frozen=True)
class _Lamb(_AdamW):
    eps: float = option(1e-6, "added to the root of the squares", above=0)


@dataclasses.dataclass(frozen=True)
class _Lion(options.Options):
    b1: float = option(
        0.9, "of the mean of gradients, in the update's sign", low=0, below=1
    )
    b2: float = option(0.99, "of the mean that is kept", low=0, below=1)


@dataclasses.dataclass(frozen=True)
class _Adafactor(options.Options):
    decay: float = option(
        0.8,
        "of the mean of squares: 1 - step ** -decay is kept of it",
        above=0,
        high=1,
    )
    clip: float = option(
        1.0, "largest root mean square of a parameter's update", above=0
    )
    relative: bool = option(
        False,
        "multiplies the learning rate by the root mean square of each parameter (at"
        " least 0.001), as in the paper; lr is then about 1e-2",
    )
    momentum: float = option(0.0, "0: none, which saves its memory", low=0, below=1)
    factored_size: int = option(
        128, "matrices of two sizes from this on have factored squares", above=0
    )


def _lion(options) -> optax.GradientTransformation:
    """The sign of a mean of gradients (Chen et al. 2023, arXiv 2302.06675)."""
    return optax.scale_by_lion(options.b1, options.b2)


def _adafactor(options) -> optax.GradientTransformation:
    """Squares kept by row and column (Shazeer and Stern 2018, arXiv 1804.04235)."""
    parts = [
        optax.scale_by_factored_rms(
            decay_rate=options.decay, min_dim_size_to_factor=options.factored_size
        ),
        by_layer(optax.clip_by_block_rms(options.clip)),
    ]
    if options.relative:
        parts.append(by_layer(optax.scale_by_param_block_rms()))
    if options.momentum:
        parts.append(optax.ema(options.momentum, debias=False))
    return optax.chain(*parts)


@dataclasses.dataclass(frozen=True)
class _Muon(options.Options):
    momentum: float = option(0.95, "of the mean of gradients", low=0, below=1)
    nesterov: bool = option(True, "looks one step of the mean ahead")
    rms: float = option(
        0.2,
        "root mean square of a matrix's update before the learning rate; at 0.2, as"
        " large as AdamW's, whose learning rate and decay then fit",
        above=0,
    )
    b1: float = option(0.9, "AdamW's, of all other parameters", low=0, below=1)
    b2: float = option(0.999, "AdamW's, of all other parameters", low=0, below=1)
    eps: float = option(1e-8, "AdamW's, of all other parameters", above=0)


def _is_matrix(name: str, leaf) -> bool:
    """Whether a parameter maps states to states: no embedding, decoder or bias."""
    stacked = is_stacked(name)
    # A layer's kernels of three axes hold several matrices; others are convolutions.
    return name.endswith("/kernel") and leaf.ndim - stacked in (2, 2 + stacked)


def _muon(options) -> optax.GradientTransformation:
    """Orthogonalized momentum of matrices (Jordan 2024; Liu 2025, arXiv 2502.16982)."""

    def ends(path) -> tuple[int, int]:
        # The axis between them, if any, counts queries, keys and values, or a gate and
        # what it opens.
        return int(is_stacked(path_name(path))), -1

    def numbers(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: contrib.MuonDimensionNumbers(*ends(path)), tree
        )

    def labels(tree):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "muon" if _is_matrix(path_name(path), leaf) else "adam",
            tree,
        )

    def as_large(updates, _):
        # The root mean square of an orthogonal matrix is one over this root.
        def one(path, u):
            return u * options.rms * max(u.shape[end] for end in ends(path)) ** 0.5

        return jax.tree_util.tree_map_with_path(one, updates)

    muon = optax.chain(
        contrib.scale_by_muon(
            beta=options.momentum,
            nesterov=options.nesterov,
            weight_dimension_numbers=numbers,
        ),
        optax.stateless(as_large),
    )
    return optax.partition({"muon": muon, "adam": _adamw(options)}, labels)


@dataclasses.dataclass(frozen=True)
class _Sgd(options.Options):
    momentum: float = option(0.9, "0: none, which saves its memory", low=0, below=1)
    nesterov: bool = option(
        False, "looks one step of the momentum ahead", when="momentum"
    )


def _lamb(options) -> optax.GradientTransformation:
    """AdamW, as long as the parameter is (You et al. 2020, arXiv 1904.00962)."""
    return _adamw(options)


def _as_long(options) -> optax.GradientTransformation:
    return by_layer(optax.scale_by_trust_ratio())


def _sgd(options) -> optax.GradientTransformation:
    """The gradient, or its momentum."""
    if not options.momentum:
        return optax.identity()
    return optax.trace(options.momentum, nesterov=options.nesterov)


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(_adamw, Options=_AdamW),
    "lion": Optimizer(_lion, Options=_Lion),
    "adafactor": Optimizer(_adafactor, Options=_Adafactor),
    "muon": Optimizer(_muon, Options=_Muon),
    "lamb": Optimizer(_lamb, _as_long, _Lamb),
    "sgd": Optimizer(_sgd, Options=_Sgd),
}


def chosen(node: Any, where: str = "config.optim.optimizer") -> options.Chosen:
    """The optimizer that a config names, with its options.

    Raises:
      InputError: an unknown one or option, or a dotted name of something else.
    """
    return options.resolve(OPTIMIZERS, node, where)
