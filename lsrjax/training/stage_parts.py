"""Builds everything a stage trains with from its config."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lsrjax.config.check_stage import check_warmup
from lsrjax.data.batching import loader, mixing
from lsrjax.data.batching.turns import Turns
from lsrjax.data.reading.bad_records import BadRecords
from lsrjax.distributed import sharding
from lsrjax.distributed.activity import Progress
from lsrjax.initial import build_student
from lsrjax.models import adapters
from lsrjax.training import (
    dev_data,
    made_data,
    memory_plan,
    model_origins,
    postmortem,
    stage_batches,
    stage_data,
    stage_models,
    trackers,
    train_step,
)
from lsrjax.training.batch_contents import Contents, check_batch
from lsrjax.training.mined_again import MinedAgain


@dataclasses.dataclass(frozen=True)
class Run:
    """The folder, tracker and progress that the stages of a run share."""

    workdir: pathlib.Path
    tracker: trackers.Tracker
    progress: Progress


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything a stage trains with.

    Attributes:
      formats: of each data set, with what it was recognized by.
      student: the retriever before training.
      layout: shardings of the student's parameters.
      teacher_params: of a teacher of views, or None.
      check: refuses a compiled step that does not fit into the device's memory.
      evaluate: of parameters on the dev data, or None without.
      mined_again: negatives of the stage's own model, or None.
    """

    name: str
    config: Any
    folder: pathlib.Path
    contents: Contents
    source: Sequence
    formats: tuple[str, ...]
    bad_records: BadRecords
    student: build_student.Student
    layout: sharding.Layout
    step: train_step.Step
    total_steps: int
    teacher_params: dict | None
    batches: loader.Batches | Turns
    check: Callable[..., None]
    evaluate: dev_data.Evaluation | None
    post_mortem: postmortem.PostMortem
    mined_again: MinedAgain | None

    def initial_state(self, checkpoints, step: int | None) -> dict:
        """The state of the checkpoint at `step`, or a fresh one if `step` is None."""
        init = functools.partial(train_step.init_state, self.step)
        abstract = adapters.shapes(self.config, self.student.spec)
        state = jax.eval_shape(init, abstract)
        if step is not None:
            return checkpoints.restore(self.layout.abstract(state), step)
        with sharding.on_one_device():
            params = self.student.params(self.source)
            found = adapters.of(self.config.adapt)
            params = adapters.added(found, self.student.spec, params, self.config.seed)
        shardings = self.layout.shardings(state)
        params = sharding.place(params, shardings["params"])
        return jax.jit(init, out_shardings=shardings)(params)


def assemble(name: str, config, mesh: jax.sharding.Mesh, run: Run) -> Stage:
    """Opens data and models, and builds the step.

    Raises:
      InputError: data or a model that cannot be read, or that do not fit together.
    """
    check_batch(config, mesh.shape[sharding.DATA])
    folder, contents = run.workdir / name, Contents.of(config)
    bad = stage_data.bad_records_of(name, folder)
    models = model_origins.checked(config, run.workdir, folder)
    sets = stage_data.open_sets(config, contents.kind, folder, bad)
    student = stage_models.open_student(config, run.workdir, folder)
    spec = student.spec
    teacher = stage_models.open_teacher(contents, spec, run.workdir, mesh)
    of_views = teacher if contents.has_views else None
    teacher_spec = of_views.spec if of_views else None
    stage_batches.check_languages(contents, sets, spec.encoder)
    contents = contents.of_sets(sets)
    made = made_data.Made(contents, folder, models, run.tracker, run.progress.poll)
    given: Any = sets[0] if len(sets) == 1 else mixing.Concatenated(sets)
    # What has no order is refused before a teacher scores for hours.
    order = made.order(given, sets, student)
    source, prepared = given, None
    if contents.kind == "group" and made.prepares:
        beside = stage_models.open_beside(config, run.workdir, mesh)
        prepared = made.prepared(given, bad, teacher, beside)
        source = prepared.first(stage_models.open_miner(config, run.workdir, mesh))
    total_steps = contents.steps(len(source))
    check_warmup(config, total_steps, f"stage {name}: config")
    step = train_step.make_step(
        build_student.settled(config, spec),
        total_steps,
        spec,
        teacher_spec,
        stage_models.idf_of(config, student, source),
        contents,
        mask_id=stage_models.mask_id_of(contents, student),
    )
    batches = stage_batches.batches(
        name, contents, source, order, student, of_views, mesh
    )
    plan = memory_plan.StagePlan(config, spec, teacher_spec, mesh, batches.shapes[-1])
    teacher_params = of_views.params if of_views else None
    return Stage(
        name=name,
        config=config,
        folder=folder,
        contents=contents,
        source=source,
        formats=tuple(one.description for one in sets),
        bad_records=bad,
        student=student,
        layout=sharding.layout_of(
            spec, adapters.shapes(config, spec), mesh, config.mesh.fsdp
        ),
        step=step,
        total_steps=total_steps,
        teacher_params=teacher_params,
        batches=batches,
        check=plan.check,
        evaluate=dev_data.evaluation(config, contents.kind, student, run.progress.poll),
        post_mortem=postmortem.PostMortem(
            folder, step, batches, teacher_params, mesh, run.tracker.note
        ),
        mined_again=prepared.again(student, step.frozen) if prepared else None,
    )
