"""The training step, compiled once for each batch shape."""

from collections.abc import Callable

import jax

from lsrjax.training.train_step import Step


class CompiledSteps:
    """Caches the compiled step by batch shape.

    `check` receives each compiled step and its three arguments before first use.
    """

    def __init__(self, step: Step, check: Callable[..., None] = lambda *args: None):
        self._step = step
        self._check = check
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def knows(self, batch: dict) -> bool:
        """Whether the step is compiled for the batch's shapes."""
        return _shapes(batch) in self._compiled

    def compile(self, state: dict, teacher_params: dict | None, batch: dict) -> None:
        """Compiles the step for a batch; does not donate the state."""
        made = compiled(self._step, state, teacher_params, batch)
        self._check(made, state, teacher_params, batch)
        self._compiled[_shapes(batch)] = made

    def __call__(self, state: dict, teacher_params: dict | None, batch: dict):
        """Takes the step."""
        if not self.knows(batch):
            self.compile(state, teacher_params, batch)
        return self._compiled[_shapes(batch)](state, teacher_params, batch)


def _shapes(batch: dict) -> tuple:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def compiled(
    step: Step, state: dict, teacher_params: dict | None, batch: dict
) -> jax.stages.Compiled:
    """`lowered`, then compiled."""
    return lowered(step, state, teacher_params, batch).compile()


def lowered(
    step: Step, state: dict, teacher_params: dict | None, batch: dict
) -> jax.stages.Lowered:
    """The step for arguments of these shapes and shardings, which may be abstract.

    Output shardings equal the input state's, whose buffers are donated.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return jitted.lower(state, teacher_params, batch)
