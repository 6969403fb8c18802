"""What a run needs, before it starts: parameters, operations, memory of a device.

Each stage's step is compiled for its longest texts, which shows the memory that the
compiler reserves. No training data and no weights are read; devices may be imaginary.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lsrjax.config import fields
from lsrjax.data.batching.drawing import QUERIES, STUDENT, TEACHER, TEACHER_QUERIES
from lsrjax.data.batching.length_shapes import Shape
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.models import adapters, retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import compiled_steps, flops, train_step
from lsrjax.training.batch_contents import Contents, check_batch
from lsrjax.training.planned_models import Models


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a step runs, as the compiler has laid them out.

    `step` are activations, gradients, vectors, and everything else.
    """

    params: int
    optimizer: int
    teacher: int
    batch: int
    step: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(dataclasses.astuple(self))

    @classmethod
    def of(cls, compiled: jax.stages.Compiled, state, teacher_params, batch):
        """The memory of a compiled step with its arguments, which may be abstract."""
        found: Any = compiled.memory_analysis()
        made = (
            found.temp_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
        )
        return cls(
            params=_bytes(state["params"]),
            optimizer=_bytes(state["opt_state"]),
            teacher=_bytes(teacher_params),
            batch=_bytes(batch),
            step=made,
        )


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage's step, compiled but not run.

    Attributes:
      teacher: the spec of a teacher of views, or None.
      shapes: of the texts on one device, by model.
      said: for the user, models that were planned because they do not exist yet.
    """

    config: ConfigDict
    spec: RetrieverSpec
    teacher: RetrieverSpec | None
    mesh: jax.sharding.Mesh
    shapes: dict[str, Shape]
    said: tuple[str, ...] = ()

    def _step(self) -> tuple[train_step.Step, dict]:
        """The step and its abstract train state."""
        # The memory of a step does not depend on the values.
        idf = {view: np.ones(size, "f4") for view, size in self.spec.views.items()}
        config = build_student.settled(self.config, self.spec)
        step = train_step.make_step(config, 1000, self.spec, self.teacher, idf)
        params = adapters.shapes(self.config, self.spec)
        return step, jax.eval_shape(lambda p: train_step.init_state(step, p), params)

    @property
    def trained(self) -> int:
        """See `train_step.Step`."""
        return self._step()[0].trained

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint's arrays."""
        _, state = self._step()
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def memory(self) -> Memory:
        """The step's memory; compiles it."""
        return self.compiled()[1]

    def compiled(self) -> tuple[jax.stages.Compiled, Memory]:
        """The compiled step, and its memory."""
        step, state = self._step()
        state = self._layout.abstract(state)
        teacher_params = None
        if self.teacher:
            _, abstract = retriever.split(self.teacher)
            layout = sharding.layout_of(
                self.teacher, abstract, self.mesh, self.config.mesh.fsdp
            )
            teacher_params = layout.abstract(abstract)
        batch = self._batch()
        compiled = compiled_steps.compiled(step, state, teacher_params, batch)
        return compiled, Memory.of(compiled, state, teacher_params, batch)

    def check(self, compiled, state, teacher_params, batch) -> None:
        """Raises an `InputError` with advice if a step does not fit into the memory."""
        limit = device_limit()
        memory = Memory.of(compiled, state, teacher_params, batch)
        if limit and memory.total > limit:
            said = (
                f"This does not fit: a step takes {size(memory.total)}, a device has"
                f" {size(limit)}."
            )
            raise InputError("\n".join([said, *advice(self, memory, limit)]))

    @functools.cached_property
    def _layout(self) -> sharding.Layout:
        params = adapters.shapes(self.config, self.spec)
        return sharding.layout_of(self.spec, params, self.mesh, self.config.mesh.fsdp)

    @property
    def notes(self) -> tuple[str, ...]:
        """Parameters that the mesh could not divide."""
        return self._layout.notes

    def _batch(self) -> dict:
        devices = self.mesh.shape[sharding.DATA]
        contents = Contents.of(self.config)
        counts = contents.texts
        read = [TEACHER] if contents.kind == "pair" else list(counts)
        names = {STUDENT: list(counts), TEACHER: read}
        for apart, rest in ((QUERIES, STUDENT), (TEACHER_QUERIES, TEACHER)):
            if apart in self.shapes:
                names[apart] = ["query"]
                names[rest].remove("query")
        batch: dict = {}
        for model, shape in self.shapes.items():
            texts = {
                name: np.empty((self.config.batch_size * counts.get(name, 1),), "i4")
                for name in names[model]
            }
            facts = {"query": "?", "number": "i4"}
            if contents.states_languages and model in (STUDENT, QUERIES):
                facts["language"] = "i4"
            parts = tuple(
                {
                    "ids": np.empty((devices * count, length), "i4"),
                    "mask": np.empty((devices * count, length), "i4"),
                    **{k: np.empty((devices * count,), v) for k, v in facts.items()},
                }
                for count, length in shape.parts
            )
            batch[model] = {"parts": parts, "place": texts}
        batch["targets"] = contents.targets
        where = sharding.over_data(self.mesh)
        return sharding.abstract(batch, jax.tree.map(lambda _: where, batch))

    def encoded_parts(self) -> list[flops.Part]:
        """(texts, tokens) of the parts that the student encodes on one device."""
        names = [QUERIES, STUDENT] if self.spec.encodes_queries else [STUDENT]
        shapes = [self.shapes[name] for name in names if name in self.shapes]
        return [part for shape in shapes for part in shape.parts]

    def operations(self) -> flops.Flops:
        """Floating-point operations of a step, over all devices, by formula."""
        memory, devices = self.config.memory, self.mesh.shape[sharding.DATA]
        total = flops.Flops(0, 0)
        parts = self.encoded_parts()
        chunked = 0 < memory.encode_chunk < sum(texts for texts, _ in parts)
        for texts, length in parts:
            part = (texts * devices, length)
            total += flops.training(
                self.spec, [part], remat=memory.remat, chunked=chunked
            )
        if self.teacher:
            encodes = self.teacher.encodes_queries
            names = [TEACHER_QUERIES, TEACHER] if encodes else [TEACHER]
            shapes = [self.shapes[name] for name in names if name in self.shapes]
            parts = [
                (texts * devices, length)
                for shape in shapes
                for texts, length in shape.parts
            ]
            total += flops.forward(self.teacher, parts)
        return total


def _bytes(tree) -> int:
    """Bytes of a tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def full_shapes(
    config,
    devices: int,
    roles_apart: bool = False,
    teacher: RetrieverSpec | None = None,
) -> dict[str, Shape]:
    """The shapes of the texts on one of `devices`, all at their greatest length.

    With `roles_apart`, queries and documents are encoded separately. `teacher` is a
    teacher of views, which a stage of pairs always has.
    """
    share = config.batch_size // devices
    length = config.data.document_length
    contents = Contents.of(config)
    if contents.kind == "pair":
        student = Shape(((2 * share, length),))
        return {STUDENT: student, TEACHER: Shape(((share, length),))}
    documents = (share * contents.group_size, length)
    queries = (share, config.data.query_length)
    models = [(QUERIES, STUDENT, roles_apart)]
    if teacher is not None:
        models.append((TEACHER_QUERIES, TEACHER, teacher.roles_apart))
    found: dict[str, Shape] = {}
    for of_queries, rest, apart in models:
        if apart:
            found |= {of_queries: Shape((queries,)), rest: Shape((documents,))}
        else:
            found[rest] = Shape((queries, documents))
    return found


def plan_stages(
    run_config,
    configs_folder: pathlib.Path | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, StagePlan]:
    """The plans of a run's stages, by name.

    Args:
      configs_folder: holds this config and those of the runs it builds on; a run that
        does not exist yet is planned from its config.
      devices: in place of the local ones.

    Raises:
      InputError: a model whose shape cannot be found, or that does not fit.
    """
    models = Models(configs_folder)
    plans = {}
    for name, config in fields.stages(run_config).items():
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.model, devices)
        share = mesh.shape[sharding.DATA]
        check_batch(config, share)
        models.notes.clear()
        spec = models.student(name, config)
        teacher = None
        if Contents.of(config).has_views:
            teacher = models.opened(config.teacher.model).spec
        shapes = full_shapes(config, share, spec.roles_apart, teacher)
        said = tuple(models.notes)
        plans[name] = StagePlan(config, spec, teacher, mesh, shapes, said)
    return plans


def size(count: float) -> str:
    """Bytes, formatted."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def taken(memory: Memory, limit: int) -> str:
    """What a step takes of a device's memory, as "22.11 of 80 GB"."""
    unit, name = (1e9, "GB") if limit >= 1e8 else (1e6, "MB")
    return f"{memory.total / unit:.2f} of {limit / unit:.4g} {name}"


def device_limit() -> int:
    """Bytes that one device may use; 0 if unknown, as for imaginary devices."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        if jax.local_device_count() > 1:
            return 0
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def advice(
    plan: StagePlan,
    memory: Memory,
    limit: int,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:
    """What a step that does not fit takes most for, and a change that fits.

    The change is found by compiling a few other steps, which may take minutes each;
    `note` receives a line before each.
    """
    standing = memory.total - memory.step
    if standing > limit:
        yield (
            f"The model alone, with its optimizer, takes {size(standing)}: divide it"
            " over more devices with config.mesh.model, or set config.mesh.fsdp=True."
        )
        return
    texts = sum(count for count, _ in plan.encoded_parts())
    devices = plan.mesh.shape[sharding.MODEL]
    terms = math.ceil(next(iter(plan.spec.views.values())) / devices)
    # Logits and weights of every text and term, and the gradients of both.
    head = 4 * 4 * texts * terms
    length = max(tokens for _, tokens in plan.encoded_parts())
    cause = (
        f"the head: the vectors of {texts:,} texts over {terms:,} terms take about"
        f" {size(head)}"
        if head > memory.step / 2
        else f"the encoder's activations of {texts:,} texts of {length} tokens"
    )
    yield f"Most of it is {cause}."
    for change in _changes(plan.config, texts, plan.mesh.shape[sharding.DATA]):
        wanted = " ".join(f"--config.{field}={v}" for field, v in change.items())
        note(f"Looking for a change that fits: compiling with {wanted}")
        changed = _changed(plan, change).memory()
        if changed.total <= limit:
            yield f"It fits with {wanted}: {taken(changed, limit)}."
            return
    yield (
        "No smaller micro-batch fits: lower config.batch_size, shorten"
        f" config.data.document_length (now {plan.config.data.document_length}), or"
        " raise config.mesh.model."
    )


def _changes(config, texts: int, devices: int) -> Iterator[dict[str, Any]]:
    """Changes that need ever less memory, each with only the fields that it changes."""
    memory, remat = config.memory, {"memory.remat": "layer"}
    tried: list[dict[str, Any]] = [remat]
    # Chunks as large as those of the config would save nothing.
    largest = min(memory.encode_chunk or texts, texts)
    for chunk in dict.fromkeys((largest // 2, largest // 8, largest // 32, 1)):
        if 0 < chunk < largest:
            tried.append(remat | {"memory.encode_chunk": chunk})
    for part in (2, 4, 16):
        if size := config.batch_size // part // devices * devices:
            tried.append(remat | {"memory.encode_chunk": 1, "batch_size": size})
    for change in tried:
        flat = {
            "memory.remat": memory.remat,
            "memory.encode_chunk": memory.encode_chunk,
        }
        change = {k: v for k, v in change.items() if v != flat.get(k)}
        if change:
            yield change


def _changed(plan: StagePlan, change: dict) -> StagePlan:
    config = plan.config.copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    shapes = plan.shapes
    if "batch_size" in change:
        devices = plan.mesh.shape[sharding.DATA]
        shapes = full_shapes(config, devices, plan.spec.roles_apart, plan.teacher)
    return dataclasses.replace(plan, config=config, shapes=shapes)
