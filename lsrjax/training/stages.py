"""A run: its stages one after the other, each going on where it stopped."""

import contextlib
import pathlib
import shutil
import traceback

from lsrjax import json_files
from lsrjax.checkpoint import files, set_damaged_aside
from lsrjax.data.batching import loader
from lsrjax.distributed import activity, processes, sharding
from lsrjax.distributed.activity import PROGRESS
from lsrjax.errors import TrainingFailed
from lsrjax.training import (
    loop,
    postmortem,
    saved_states,
    stage_data,
    stage_parts,
    trackers,
    train_step,
)


def run_stage(name: str, config, workdir: pathlib.Path, tracker: trackers.Tracker):
    """Trains a stage, unless it is finished.

    Args:
      name: the stage's.
      config: the stage's.
      workdir: the run's; the stage's folder is `workdir / name`.
      tracker: is told what happens.
    """
    folder = workdir / name
    done = folder / files.DONE_FILE
    newest = saved_states.newest_sound_step(name, folder, tracker)
    if (steps := set_damaged_aside.finished_steps(folder)) is not None:
        tracker.note(f"Stage {name} is finished ({steps} steps).")
        return
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        if not saved_states.has_begun(folder):
            saved_states.forget(folder)
    PROGRESS.stage, PROGRESS.step = name, 0
    with (
        stage_parts.on_devices(config) as mesh,
        saved_states.opened(folder, config, tracker) as checkpoints,
    ):
        train_step.check_batch(config, mesh.shape[sharding.DATA])
        with PROGRESS.at(activity.PREPARING):
            bad = stage_data.bad_records_of(name, folder)
            parts = stage_parts.assemble(
                name, config, workdir, folder, mesh, tracker, bad
            )
            ready = stage_parts.batches_of(name, config, parts)
        while not _trained(
            name, config, folder, parts, ready, checkpoints, newest, tracker
        ):
            newest = saved_states.agreed(f"newest of {name}", checkpoints.latest_step())
    if ready.left_together:
        tracker.note(
            f"  data.unique_texts: {ready.left_together:,} examples stayed in a batch"
            " that has their query or positive text already, for want of others."
        )
    processes.wait_for_all(f"{name} is trained")
    if replaced := stage_data.bad_records_of(name, folder, bad).summary():
        tracker.note(f"  {replaced}")
    tracker.stage_end()
    if processes.is_first():
        json_files.write_json(done, {"steps": parts.total_steps})
        shutil.rmtree(folder / saved_states.KEPT, ignore_errors=True)
    processes.wait_for_all(f"{name} is finished")
    PROGRESS.stage = ""


def _start(name, config, folder, parts, checkpoints, newest, tracker):
    """The state to go on from, and whether it is one that was kept."""
    kept_step = None
    if (folder / saved_states.KEPT).is_dir():
        kept_step = saved_states.newest_sound_step(
            f"{name}/{saved_states.KEPT}", folder / saved_states.KEPT, tracker
        )
    if kept_step is None or kept_step <= (-1 if newest is None else newest):
        return stage_parts.initial_state(config, parts, checkpoints, newest), False
    with saved_states.kept(folder, config, tracker) as kept:
        return stage_parts.initial_state(config, parts, kept, kept_step), True


def _trained(name, config, folder, parts, ready, checkpoints, newest, tracker) -> bool:
    """Trains on from the last state; False: a batch was left out, go back and again."""
    state, owes = _start(name, config, folder, parts, checkpoints, newest, tracker)
    first = int(state["step"])
    tracker.stage(
        name,
        folder,
        first,
        parts.total_steps,
        stage_parts.summary(config, parts, ready),
    )
    for note in parts.layout.notes:
        tracker.note(f"  {note}")
    data, mesh = config.data, parts.layout.mesh
    teacher_params = parts.teacher.params if parts.step.teacher else None
    stream = loader.stream(
        ready,
        first,
        parts.total_steps,
        threads=data.threads,
        prefetch=data.prefetch,
        left_out=postmortem.left_out(folder),
    )
    report = postmortem.PostMortem(
        folder, parts.step, parts.source, ready, teacher_params, mesh
    )

    def keep(state):
        with saved_states.kept(folder, config, tracker) as kept:
            if kept.latest_step() != int(state["step"]):
                kept.save(state, None, last=True)

    def bad(state, error):
        tracker.note(f"  {error} See {report.write(state, error)}")

    def save(state, dev):
        last = int(state["step"]) == parts.total_steps
        checkpoints.save(state, dev, last=last)

    rows = sharding.local_rows(mesh)
    with contextlib.closing(
        sharding.to_global(batch, mesh, rows) for batch in stream
    ) as batches:
        try:
            loop.train(
                config,
                parts.total_steps,
                parts.step,
                state,
                teacher_params,
                batches,
                log=tracker.log,
                save=save,
                evaluate=stage_parts.dev_of(config, parts),
                check=stage_parts.plan_of(config, parts, ready).check,
                poll=checkpoints.poll,
                keep=keep,
                owes=owes,
                bad=bad,
                note=tracker.note,
            )
            return True
        except loop.BadNumbers as error:
            # What the loop holds of the state makes way for an earlier one.
            traceback.clear_frames(error.__traceback__)
            found = error.with_traceback(None)
    del state
    checkpoints.wait()
    try:
        step = saved_states.agreed(f"newest of {name}", checkpoints.latest_step())
        bad(stage_parts.initial_state(config, parts, checkpoints, step), found)
    except Exception as error:
        # It must not hide what it is about.
        tracker.note(f"  {found} There is no post-mortem: {error}")
    most = config.numbers.most
    if config.numbers.policy != "roll_back":
        raise found
    if len(postmortem.left_out(folder)) >= most:
        raise TrainingFailed(
            f"{found} {most} batches have been left out already, and config.numbers"
            f".most is {most}."
        )
    without = postmortem.leave_out(folder, found.step)
    tracker.stage_end()
    tracker.note(f"  Goes back to the last checkpoint, without the batches {without}.")
    return False
