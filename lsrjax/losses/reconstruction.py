"""CSR's loss: how well a sparse code gives its embedding back."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsrjax.losses.loss import RANKED, Loss, LossOptions
from lsrjax.models.views import Code
from lsrjax.options import option


@dataclasses.dataclass(frozen=True)
class ReconstructionOptions(LossOptions):
    """Of `reconstruction`."""

    auxiliary: float = option(0.1, "weight of what dead latents miss", low=0)


def _reconstruction_of_views(views, targets, options) -> dict[str, jax.Array]:
    """CSR's reconstruction loss of embeddings (Wen et al. 2025).

    `MSE(x, x_k) + MSE(x, x_4k) / 8 + auxiliary * MSE(e, e_dead) / Var(e)`, where e is
    the residual of the active latents; means over all texts, the variance over the
    texts of one name.
    """
    codes = [
        view
        for by_view in views.values()
        for view in by_view.values()
        if isinstance(view, Code)
    ]

    def mean(of: Callable[[Code], jax.Array]) -> jax.Array:
        return jnp.concatenate([of(code) for code in codes]).mean()

    def dead(code: Code) -> jax.Array:
        centered_BD = code.rest_BD - code.rest_BD.mean(axis=0)
        variance = jnp.square(centered_BD).mean()
        return code.error_dead_B1 / jnp.where(variance == 0, 1.0, variance)

    return {
        "reconstruction": mean(lambda code: code.error_B1),
        "reconstruction_4k": mean(lambda code: code.error_4k_B1) / 8,
        "reconstruction_dead": options.auxiliary * mean(dead),
    }


ENTRY = Loss(
    _reconstruction_of_views, RANKED, (), ReconstructionOptions, needs="autoencoder"
)
