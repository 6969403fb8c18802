"""The training step: a pure function, built once from a stage's config."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lsrjax.data.batching.drawing import QUERIES, STUDENT
from lsrjax.losses import lambda_control, regularizers
from lsrjax.models import retriever
from lsrjax.models.batch import apply_batch
from lsrjax.models.dense_heads import fired
from lsrjax.models.heads import pooled_as
from lsrjax.options import Chosen
from lsrjax.training import bad_steps, collapse
from lsrjax.training.batch_contents import Contents, parts_of
from lsrjax.training.optimizer import frozen, learning_rate, make_optimizer


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The training step and its parts.

    Attributes:
      graphdef: the student's structure.
      learning_rate: by step, for the log.
      frozen: tree of bools: the parameters that the optimizer leaves unchanged.
      signs: of a collapse, for the log.
      teacher: the structure of a teacher of views, or None.
      idf: [V] of each view's terms, for a regularizer that needs it.
    """

    config: Any
    contents: Contents
    regularizer: Chosen
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    frozen: Mapping[str, Any]
    signs: collapse.Signs
    teacher: nnx.GraphDef | None = None
    idf: Mapping[str, np.ndarray] | None = None

    def __call__(
        self, state: dict, teacher_params: dict | None, batch: dict
    ) -> tuple[dict, dict[str, jax.Array]]:
        """One optimizer step.

        Args:
          state: from `init_state`.
          teacher_params: of the frozen teacher of views, or None.
          batch: from `lsrjax.data.batching.loader`.

        Returns:
          The next state, and scalars to log; "by_language" holds what
          `collapse.active_by_language` returns.
        """
        config, params = self.config, state["params"]
        (loss, seen), grads = self._gradient(state, teacher_params, batch)
        updates, opt_state = self.optimizer.update(grads, state["opt_state"], params)
        updated = optax.apply_updates(params, updates)
        active = {field: number for (field, _), number in seen["active"].items()}
        after = {
            "step": state["step"] + 1,
            "params": retriever.after_step(updated, seen["fired"]),
            "opt_state": opt_state,
            **lambda_control.steered(self.regularizer.options, state, active),
        }
        norm = optax.tree.norm(grads)
        after, judged = bad_steps.guarded(config.numbers, state, after, loss, norm)
        metrics = {
            "loss": loss,
            **seen["parts"],
            **{f"lambda_{field}": value for field, value in seen["lambdas"].items()},
            **{f"active_{view}": mean for (_, view), mean in seen["active"].items()},
            **seen["signs"],
            "grad_norm": norm,
            "tokens": sum(part["mask"].sum() for part in parts_of(batch)),
            "lr": self.learning_rate(state["step"]),
            **judged,
        }
        return after, metrics

    def examined(
        self, state: dict, teacher_params: dict | None, batch: dict
    ) -> tuple[dict[str, jax.Array], dict]:
        """The loss with its parts, and the gradients, without taking the step."""
        (loss, seen), grads = self._gradient(state, teacher_params, batch)
        return {"loss": loss, **seen["parts"]}, grads

    def _gradient(self, state: dict, teacher_params: dict | None, batch: dict):
        """((the loss, intermediate values for the log), the gradient)."""
        config, memory = self.config, self.config.memory
        encode = functools.partial(apply_batch, chunk=memory.encode_chunk)
        targets = batch["targets"] | {"languages": self.contents.repeats}
        if self.teacher is not None:
            assert teacher_params is not None
            targets |= encode(self.teacher, teacher_params, batch["teacher"])
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        lambdas = lambda_control.lambdas(self.regularizer.options, state)

        def weighted_sum(params):
            views = encode(
                self.graphdef,
                params,
                batch[STUDENT],
                queries=batch.get(QUERIES),
                remat=memory.remat,
                dropout_key=key if config.model.dropout > 0 else None,
            )
            parts = self.contents.objective(views, targets)
            parts |= regularizers.penalties(self.regularizer, views, lambdas, self.idf)
            seen = {
                "parts": parts,
                "lambdas": lambdas,
                "active": regularizers.active_terms(views),
                "signs": self.signs(views, targets, batch),
                "fired": fired(views),
            }
            return sum(parts.values()), seen

        found, grads = jax.value_and_grad(weighted_sum, has_aux=True)(state["params"])
        return found, jax.tree.map(
            lambda g, still: jnp.zeros_like(g) if still else g, grads, self.frozen
        )


def make_step(
    config,
    total_steps: int,
    spec: retriever.RetrieverSpec,
    teacher=None,
    idf: Mapping[str, np.ndarray] | None = None,
    contents: Contents | None = None,
) -> Step:
    """The step of a stage.

    Args:
      teacher: the spec of a teacher of views, or None; its views are pooled like the
        student's.
      idf: [V] of each view's terms, if the regularizer needs it.
      contents: of its batches; by default, what the config alone says of them.
    """
    regularizer = regularizers.of(config.regularizer)
    if regularizer.entry.idf and idf is None:
        raise ValueError(
            f"{regularizer.name} needs the idf of each view's terms; count it with"
            " lsrjax.initial.term_statistics.idf_of_views."
        )
    contents, dtype = contents or Contents.of(config), jnp.dtype(config.model.dtype)
    graphdef, abstract = retriever.split(spec, dtype=dtype)
    if teacher is not None:
        teacher = pooled_as(teacher, spec)
    still = jax.tree.map(
        operator.or_, frozen(config.optim.freeze, abstract), retriever.counted(spec)
    )
    return Step(
        config=config,
        contents=contents,
        regularizer=regularizer,
        graphdef=graphdef,
        optimizer=make_optimizer(config.optim, total_steps, still),
        learning_rate=learning_rate(config.optim, total_steps),
        frozen=still,
        signs=collapse.Signs.of(contents, spec, teacher),
        teacher=retriever.split(teacher, dtype=dtype)[0] if teacher else None,
        idf=idf,
    )


def init_state(step: Step, params: dict) -> dict:
    """The train state before the first step.

    Returns:
      `{"step", "params", "opt_state"}`; where lambdas are steered, also "controller",
      the logarithm of each lambda's factor, by field; and the state of the policy for
      bad numbers (`lsrjax.training.bad_steps.init`).
    """
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": step.optimizer.init(params),
        **lambda_control.init(step.regularizer.options),
        **bad_steps.init(step.config.numbers),
    }
