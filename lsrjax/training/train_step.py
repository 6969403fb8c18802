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

from lsrjax.data.batching.drawing import QUERIES, STUDENT, TEACHER, TEACHER_QUERIES
from lsrjax.distributed import sharding, trees
from lsrjax.losses import group_weights, lambda_control, regularizers
from lsrjax.models import adapters, retriever
from lsrjax.models.batch import apply_batch, tokens_of
from lsrjax.models.dense_heads import fired
from lsrjax.models.heads import pooled_as
from lsrjax.models.masking import Masking, taken_out
from lsrjax.options import Chosen
from lsrjax.training import bad_steps, collapse
from lsrjax.training.batch_contents import Contents, parts_of
from lsrjax.training.optimizer import (
    frozen,
    learning_rate,
    logged_rates,
    make_optimizer,
)


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
      masking: of the student's texts, for a loss that predicts them; or None.
    """

    config: Any
    spec: retriever.RetrieverSpec
    contents: Contents
    regularizer: Chosen
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    frozen: Mapping[str, Any]
    signs: collapse.Signs
    teacher: nnx.GraphDef | None = None
    idf: Mapping[str, np.ndarray] | None = None
    masking: Masking | None = None

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
        active = regularizers.by_lambda(seen["active"])
        after = {
            "step": state["step"] + 1,
            "params": retriever.after_step(updated, seen["fired"]),
            "opt_state": opt_state,
            **lambda_control.steered(self.regularizer.options, state, active),
            **seen["groups"],
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
            **self._rates(state["step"]),
            **judged,
        }
        return after, metrics

    def _rates(self, step: jax.Array) -> dict[str, jax.Array]:
        """The learning rate, and those of groups of parameters, for the log."""
        rate, groups = self.learning_rate(step), logged_rates(self.config.optim)
        return {"lr": rate, **{name: rate * times for name, times in groups.items()}}

    @property
    def trained(self) -> int:
        """Number of trained parameters; 0 if all are."""
        params = adapters.shapes(self.config, self.spec)
        still = jax.tree.leaves(self.frozen)
        sizes = [leaf.size for leaf in jax.tree.leaves(params)]
        changed = [n for n, one in zip(sizes, still, strict=True) if not one]
        return sum(changed) if any(still) else 0

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
        targets = batch["targets"] | {
            "languages": self.contents.repeats,
            "positives": config.data.positives,
        }
        if self.teacher is not None:
            assert teacher_params is not None
            own, queries = batch[TEACHER], batch.get(TEACHER_QUERIES)
            views = encode(self.teacher, teacher_params, own, queries=queries)
            targets |= self.contents.objective.of_teacher(views)
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
        if "words" in self.contents.objective.targets:
            vocabulary = {"vocabulary": self.spec.encoder.vocab_size}
            targets |= {"words": _words(self.spec, batch)} | vocabulary
        # No number of a step is as large as what sets these keys apart.
        masking_key = jax.random.fold_in(
            jax.random.fold_in(jax.random.key(config.seed), np.uint32(2**32 - 1)),
            state["step"],
        )
        lambdas = lambda_control.lambdas(self.regularizer.options, state)

        def weighted_sum(params):
            # Their gradients, which are 0, are not computed.
            params = jax.tree.map(
                lambda one, still: jax.lax.stop_gradient(one) if still else one,
                params,
                self.frozen,
            )
            views, predicted = taken_out(
                encode(
                    self.graphdef,
                    params,
                    batch[STUDENT],
                    queries=batch.get(QUERIES),
                    remat=memory.remat,
                    dropout_key=key if config.model.dropout > 0 else None,
                    masking=self.masking,
                    masking_key=masking_key if self.masking else None,
                )
            )
            masked = {"masked": predicted}
            parts, groups, shown = self._parts(state, views, targets | masked)
            parts |= regularizers.penalties(self.regularizer, views, lambdas, self.idf)
            seen = {
                "parts": parts,
                "lambdas": lambdas,
                "active": regularizers.active_terms(views),
                "groups": groups,
                "signs": _merged(self.signs(views, targets, batch), shown),
                "fired": fired(views),
            }
            return sum(parts.values()), seen

        return jax.value_and_grad(weighted_sum, has_aux=True)(state["params"])

    def _parts(self, state: dict, views: dict, targets: dict) -> tuple:
        """The loss's parts; groups' part of the next state; and what to log of them."""
        contents = self.contents
        if not contents.groups.count:
            return contents.objective(views, targets), {}, {}
        values = contents.objective.by_query(views, targets)
        losses_B = functools.reduce(operator.add, values.values())
        group_B = contents.group_of(targets)
        weighed = contents.groups.weigh(state, losses_B, group_B)
        parts = {k: (weighed.examples_B * of).sum() for k, of in values.items()}
        shown: dict = weighed.shown()
        if contents.config.dro.groups == "languages":
            shown["by_language"] = {
                name: sharding.constrain(sums, None, None)
                for name, sums in weighed.by_group().items()
            }
        return parts, {group_weights.KEY: weighed.state}, shown


def _merged(signs: dict, shown: dict) -> dict:
    both = signs.get("by_language", {}) | shown.get("by_language", {})
    return signs | shown | ({"by_language": both} if both else {})


def make_step(
    config,
    total_steps: int,
    spec: retriever.RetrieverSpec,
    teacher=None,
    idf: Mapping[str, np.ndarray] | None = None,
    contents: Contents | None = None,
    *,
    mask_id: int = 0,
) -> Step:
    """The step of a stage.

    Args:
      teacher: the spec of a teacher of views, or None; its views of pairs are pooled
        like the student's.
      idf: [V] of each view's terms, if the regularizer needs it.
      contents: of its batches; by default, what the config alone says of them.
      mask_id: the student's mask token, if a loss masks its texts.
    """
    regularizer = regularizers.of(config.regularizer)
    if regularizer.entry.idf and idf is None:
        raise ValueError(
            f"{regularizer.name} needs the idf of each view's terms; count it with"
            " lsrjax.initial.term_statistics.idf_of_views."
        )
    contents, dtype = contents or Contents.of(config), jnp.dtype(config.model.dtype)
    graphdef, _ = retriever.split(spec, dtype=dtype)
    masking = contents.objective.masking
    if masking is not None:
        masking = dataclasses.replace(masking, mask_id=mask_id)
    if teacher is not None and contents.kind == "pair":
        teacher = pooled_as(teacher, spec)
    still = frozen_of(config, spec)
    return Step(
        config=config,
        spec=spec,
        contents=contents,
        regularizer=regularizer,
        graphdef=graphdef,
        optimizer=make_optimizer(config.optim, total_steps, still),
        learning_rate=learning_rate(config.optim, total_steps),
        frozen=still,
        signs=collapse.Signs.of(contents, spec, teacher),
        teacher=retriever.split(teacher, dtype=dtype)[0] if teacher else None,
        idf=idf,
        masking=masking,
    )


def _words(spec, batch: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Ids of encoded texts, and which of them are words, [B, L] each, by name."""
    queries = batch.get(QUERIES) if spec.encodes_queries else None
    found = {}
    for name, (ids_BL, mask_BL) in tokens_of(batch[STUDENT], queries=queries).items():
        special_BL = jnp.isin(ids_BL, jnp.asarray(spec.special_ids, jnp.int32))
        found[name] = ids_BL, mask_BL.astype(bool) & ~special_BL
    return found


def frozen_of(config, spec: retriever.RetrieverSpec) -> dict:
    """A tree of bools: the parameters that the optimizer leaves unchanged.

    Raises:
      InputError: `optim.freeze` or an adapter does not fit the model.
    """
    params = adapters.shapes(config, spec)
    fixed = {name for name, one in trees.named(retriever.fixed(spec)).items() if one}
    return jax.tree.map(
        lambda *reasons: any(reasons),
        frozen(config.optim.freeze, params),
        adapters.frozen(adapters.of(config.adapt), params),
        jax.tree_util.tree_map_with_path(
            lambda path, _: trees.path_name(path) in fixed, params
        ),
    )


def init_state(step: Step, params: dict) -> dict:
    """The train state before the first step.

    Returns:
      `{"step", "params", "opt_state"}`; where lambdas are steered, also "controller",
      the logarithm of each lambda's factor, by field; the weights of groups, if there
      are any; and the state of the policy for bad numbers
      (`lsrjax.training.bad_steps.init`).
    """
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": step.optimizer.init(params),
        **lambda_control.init(step.regularizer.options),
        **step.contents.groups.init(),
        **bad_steps.init(step.config.numbers),
    }
