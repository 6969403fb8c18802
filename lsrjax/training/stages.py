"""Runs one stage: opens it, trains it from where it stopped, marks it finished."""

import contextlib
import shutil
import traceback

from lsrjax import json_files
from lsrjax.checkpoint import names_on_disk, set_damaged_aside
from lsrjax.distributed import activity, processes, sharding
from lsrjax.training import (
    language_counts,
    loop,
    resume,
    stage_data,
    stage_parts,
    trackers,
)
from lsrjax.training.bad_steps import BadNumbers
from lsrjax.training.mined_again import Feed
from lsrjax.training.resume import States
from lsrjax.training.roll_back import roll_back
from lsrjax.training.stage_parts import Run, Stage


def run_stage(name: str, config, run: Run, number: int = 1, count: int = 1) -> None:
    """Trains stage `number` of `count` in `run.workdir / name`, if not finished."""
    folder, tracker, progress = run.workdir / name, run.tracker, run.progress
    newest = resume.newest_sound_step(name, folder, tracker.note)
    if (steps := set_damaged_aside.finished_steps(folder)) is not None:
        tracker.note(f"Stage {name} is finished ({steps} steps).")
        return
    if processes.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        resume.forget_unless_begun(folder)
    progress.stage, progress.step, progress.saved = name, 0, 0
    tracker.begin(name, number, count)
    with (
        sharding.on_mesh(config.mesh.data, config.mesh.model) as mesh,
        resume.opened(name, folder, config, newest, run) as states,
    ):
        with progress.at(activity.PREPARING):
            stage = stage_parts.assemble(name, config, mesh, run)
        while found := _train(stage, states, run):
            roll_back(stage, states, run, found)
        states.look_again()
        done = {"steps": states.newest or stage.total_steps}
        if config.checkpoint.use == "best" and (best := states.best()):
            done["use"] = best[1]
    _finish(stage, run, done)
    progress.stage = ""


def _train(stage: Stage, states: States, run: Run) -> BadNumbers | None:
    """Trains from the newest state; returns the bad step to roll back, if any."""
    with run.progress.at(activity.PREPARING):
        state = states.start(stage.initial_state)
    first = int(state["step"])
    summary = trackers.facts_of(stage)
    run.tracker.stage(stage.name, stage.folder, first, stage.total_steps, summary)
    for note in stage.layout.notes:
        run.tracker.note(f"  {note}")
    for note in language_counts.notes(stage.batches):
        run.tracker.note(note)
    if processes.is_first():
        language_counts.write(stage.folder, stage.batches)
    with contextlib.closing(Feed(stage, first)) as batches:
        try:
            loop.train(stage, run, states, state, batches)
            return None
        except BadNumbers as error:
            # Frees the loop's state, to make room for an earlier one.
            traceback.clear_frames(error.__traceback__)
            return error.with_traceback(None)


def _finish(stage: Stage, run: Run, done: dict[str, int]) -> None:
    """Reports on a trained stage, and marks it finished."""
    name, folder, tracker = stage.name, stage.folder, run.tracker
    if together := stage.batches.left_together:
        tracker.note(
            f"  data.unique_texts: {together:,} examples stayed in a batch that has"
            " their query or positive text already, for want of others."
        )
    processes.wait_for_all(f"{name} is trained")
    if replaced := stage_data.bad_records_of(name, folder, stage.bad_records).summary():
        tracker.note(f"  {replaced}")
    tracker.stage_end()
    if processes.is_first():
        json_files.write_json(folder / names_on_disk.DONE_FILE, done)
        shutil.rmtree(folder / resume.KEPT, ignore_errors=True)
    processes.wait_for_all(f"{name} is finished")
