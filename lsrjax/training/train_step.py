"""The training step, one pure function."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lsrjax.config.fields import language_weights
from lsrjax.data.batching import mixing
from lsrjax.data.batching.drawing import QUERIES, STUDENT
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.losses import lambda_control, objective, regularizers
from lsrjax.models import retriever
from lsrjax.models.batch import apply_batch, tokens_of
from lsrjax.models.dense_heads import fired
from lsrjax.training import bad_steps, collapse
from lsrjax.training.optimizer import frozen, learning_rate, make_optimizer


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """What the training step is made of.

    Attributes:
      config: the stage's.
      total_steps: optimizer steps of the stage.
      graphdef: the student's structure.
      optimizer: an optax transformation.
      frozen: tree of bools: the parameters that the optimizer leaves as they are.
      teacher: the structure of a teacher of views, or None.
      idf: of the terms of each view, for a regularizer that takes it.
      sizes: of the views.
      compared: by text and view, the text whose tokens show what the view has added.
    """

    config: Any
    total_steps: int
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    frozen: Mapping[str, Any]
    teacher: nnx.GraphDef | None = None
    idf: Mapping[str, np.ndarray] | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    compared: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def __call__(
        self, state: dict, teacher_params: dict | None, batch: dict
    ) -> tuple[dict, dict[str, jax.Array]]:
        """One optimizer step.

        Args:
          state: as `init_state` makes it.
          teacher_params: of the frozen teacher of views, or None.
          batch: as `lsrjax.data.batching.loader` builds it.

        Returns:
          The next state, and scalars to log; beside them, under "by_language", what
          `health.active_by_language` gives.
        """
        config, step, params = self.config, state["step"], state["params"]
        (loss, (parts, active, seen, activated)), grads = self._gradient(
            state, teacher_params, batch
        )
        updates, opt_state = self.optimizer.update(grads, state["opt_state"], params)
        metrics = {
            "loss": loss,
            **parts,
            **{f"active_{view}": number for (_, view), number in active.items()},
            **seen,
            "grad_norm": optax.tree.norm(grads),
            "tokens": sum(part["mask"].sum() for part in parts_of(batch)),
            "lr": learning_rate(config.optim, self.total_steps)(step),
            **{
                f"lambda_{field}": weight
                for field, weight in lambda_control.lambdas(
                    config.regularizer, state
                ).items()
            },
        }
        updated = optax.apply_updates(params, updates)
        params = retriever.after_step(updated, activated)
        after = {"step": step + 1, "params": params, "opt_state": opt_state}
        after |= lambda_control.steered(
            config.regularizer, state, {field: n for (field, _), n in active.items()}
        )
        norm = metrics["grad_norm"]
        after, judged = bad_steps.guarded(config.numbers, state, after, loss, norm)
        return after, metrics | judged

    def examined(
        self, state: dict, teacher_params: dict | None, batch: dict
    ) -> tuple[dict[str, jax.Array], dict]:
        """What a step would see, for a post-mortem; the state stays as it is.

        Args:
          state: as in a step.
          teacher_params: as in a step.
          batch: as in a step.

        Returns:
          The loss and its parts, and the gradients, a tree like the parameters.
        """
        (loss, (parts, *_)), grads = self._gradient(state, teacher_params, batch)
        return {"loss": loss, **parts}, grads

    def _gradient(self, state: dict, teacher_params: dict | None, batch: dict):
        """The loss, what else is seen on the way to it, and the gradient."""
        config, params = self.config, state["params"]
        memory = config.memory
        targets = dict(batch["targets"])
        if self.teacher is not None:
            targets |= apply_batch(
                self.teacher,
                teacher_params,
                batch["teacher"],
                chunk=memory.encode_chunk,
            )
        targets["languages"] = repeats_of(config)
        key = jax.random.fold_in(jax.random.key(config.seed), state["step"])

        def weighted_sum(params):
            views = apply_batch(
                self.graphdef,
                params,
                batch[STUDENT],
                queries=batch.get(QUERIES),
                chunk=memory.encode_chunk,
                remat=memory.remat,
                dropout_key=key if config.model.dropout > 0 else None,
            )
            parts = objective.of(config.loss)(views, targets)
            parts |= regularizers.penalties(
                config.regularizer, views, lambdas, self.idf
            )
            active = regularizers.active_terms(views)
            seen = self._signs(views, targets, batch)
            return sum(parts.values()), (parts, active, seen, fired(views))

        lambdas = lambda_control.lambdas(config.regularizer, state)
        found, grads = jax.value_and_grad(weighted_sum, has_aux=True)(params)
        return found, jax.tree.map(
            lambda g, f: jnp.zeros_like(g) if f else g, grads, self.frozen
        )

    def _signs(self, views, targets: dict, batch: dict) -> dict:
        """What `training.collapse` sees in a batch, depending on the config."""
        config = self.config
        if not config.log.health:
            return collapse.signs(views, None)
        seen = collapse.signs(views, self.sizes)
        tokens = tokens_of(batch[STUDENT], queries=batch.get(QUERIES))
        if self.teacher is not None:
            tokens |= tokens_of(batch["teacher"])
        compared = {view: tokens[text] for view, text in self.compared.items()}
        seen |= collapse.expansion(views, compared)
        if languages := languages_of(config):
            shown = {text: targets[f"{text}_language"].reshape(-1) for text in views}
            found = collapse.active_by_language(views, shown, len(languages))
            # On every device, so that each process can read them.
            seen["by_language"] = {
                name: sharding.constrain(sums, None, None)
                for name, sums in found.items()
            }
        return seen


def languages_of(config) -> tuple[str, ...]:
    """The languages that a stage's log tells apart; none where it does not."""
    if not config.log.health or "document" not in objective.of(config.loss).texts:
        return ()
    return mixing.languages(config.data)


def repeats_of(config) -> int:
    """How often an example is in a batch: once in each language, in round robin."""
    if config.data.mixing != "round_robin":
        return 1
    return len(language_weights(config.data.document_languages, "document_languages"))


def entries_of(config) -> int:
    """Examples in a batch, each once, in however many languages it is shown."""
    return config.batch_size // repeats_of(config)


def targets_of(config) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what a batch holds beside its texts, by name."""
    B, G = config.batch_size, config.data.group_size
    shapes = objective.of(config.loss).arrays(B, G)
    if languages_of(config):
        shapes["query_language"] = jax.ShapeDtypeStruct((B,), jnp.int32)
        shapes["document_language"] = jax.ShapeDtypeStruct((B, G), jnp.int32)
    return shapes


def texts_of(config) -> dict[str, int]:
    """Texts of an example that the student encodes, by name."""
    return {
        name: config.data.group_size if name == "document" else 1
        for name in objective.of(config.loss).texts
    }


def make_step(
    config,
    total_steps: int,
    spec: retriever.RetrieverSpec,
    teacher=None,
    idf: Mapping[str, np.ndarray] | None = None,
) -> Step:
    """The step of a stage.

    Args:
      config: the stage's.
      total_steps: optimizer steps of the stage.
      spec: the student's.
      teacher: the spec of a teacher of views, or None; its views are pooled as the
        student's are.
      idf: of the terms of each view, where the regularizer takes it
        (`regularizers.REGULARIZERS`).

    Raises:
      ValueError: the regularizer takes an idf, and there is none.
    """
    name = config.regularizer.name
    if regularizers.REGULARIZERS[name].idf and idf is None:
        raise ValueError(
            f"{name} needs the idf of each view's terms; count it with"
            " lsrjax.initial.term_statistics.idf_of_views."
        )
    dtype = jnp.dtype(config.model.dtype)
    graphdef, abstract = retriever.split(spec, dtype=dtype)
    if teacher is not None:
        teacher = dataclasses.replace(teacher, pool_mask=spec.pool_mask)
    texts = objective.of(config.loss).texts
    compared = {(text, view): text for text in texts for view in spec.expands(text)}
    if teacher is not None and "pivot" in spec.views:
        # The teacher's English text is the one that both texts of a pair stand for.
        compared |= {(text, "pivot"): "teacher" for text in texts}
    still = jax.tree.map(
        operator.or_, frozen(config.optim.freeze, abstract), retriever.counted(spec)
    )
    return Step(
        config=config,
        total_steps=total_steps,
        graphdef=graphdef,
        optimizer=make_optimizer(config.optim, total_steps, still),
        frozen=still,
        teacher=retriever.split(teacher, dtype=dtype)[0] if teacher else None,
        idf=idf,
        sizes=spec.views,
        compared=compared,
    )


def check_batch(config, devices: int) -> None:
    """Checks that a stage's batch divides over the mesh's `data` axis.

    Raises:
      InputError: it does not.
    """
    size = config.batch_size
    if size % devices:
        near = sorted(
            {size // devices * devices or devices, -(-size // devices) * devices}
        )
        raise InputError(
            f"config.batch_size is {size}, which does not divide over the {devices}"
            f" devices of config.mesh.data. Take {' or '.join(map(str, near))}."
        )


def lowered(
    step: Step, state: dict, teacher_params: dict | None, batch: dict
) -> jax.stages.Lowered:
    """The step for arguments of these shapes and shardings, which may be abstract.

    The next state has the placement of the one given, whose buffers it takes over.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return jitted.lower(state, teacher_params, batch)


def compiled(
    step: Step, state: dict, teacher_params: dict | None, batch: dict
) -> jax.stages.Compiled:
    """`lowered`, compiled."""
    return lowered(step, state, teacher_params, batch).compile()


def init_state(step: Step, params: dict) -> dict:
    """The train state before the first step.

    Returns:
      `{"step", "params", "opt_state"}` and, where lambdas are steered, "controller":
      the logarithm of what each is multiplied by, by field; and what the policy for bad
      numbers has to know (`lsrjax.training.bad_steps.init`).
    """
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": step.optimizer.init(params),
        **lambda_control.init(step.config.regularizer),
        **bad_steps.init(step.config.numbers),
    }


def slots_of(batch: dict) -> int:
    """Tokens of the student's texts in a batch, with padding."""
    return sum(part["ids"].size for part in parts_of(batch))


def parts_of(batch: dict) -> list[dict]:
    """The parts of the student's texts in a batch, of queries cut apart as well."""
    cuts = [batch[name] for name in (QUERIES, STUDENT) if name in batch]
    return [part for cut in cuts for part in cut["parts"]]


def steps_of(config, num_examples: int) -> int:
    """Optimizer steps of a stage: `steps`, or `epochs` over the examples."""
    if config.steps:
        return config.steps
    return max(int(np.ceil(config.epochs * num_examples / config.batch_size)), 1)
