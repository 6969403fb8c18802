"""The training loop: steps, logs, evaluates, saves, and stops on request."""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from lsrjax.distributed import activity
from lsrjax.training.batch_contents import slots_of
from lsrjax.training.compiled_steps import CompiledSteps
from lsrjax.training.mined_again import Feed
from lsrjax.training.patience import Patience
from lsrjax.training.resume import States
from lsrjax.training.stage_parts import Run, Stage
from lsrjax.training.step_numbers import Numbers


def train(stage: Stage, run: Run, states: States, state: dict, batches: Feed) -> dict:
    """Trains from `state` to the stage's last step.

    The loop reads a step's numbers only after it has dispatched the next two, so the
    device never waits for the host.

    Args:
      state: where to start; its buffers are donated.
      batches: start with batch `state["step"]`.

    Raises:
      BadNumbers: the loss or the gradient is not finite, or the loss has jumped, and
        `config.numbers.policy` does not skip such steps.
      TrainingFailed: the model has collapsed.
      lsrjax.distributed.activity.Preempted: the run was asked to stop; the state is
        saved.
    """
    config, total, progress = stage.config, stage.total_steps, run.progress
    take_step, numbers = CompiledSteps(stage.step, stage.check), Numbers(stage, run)

    def keep() -> None:
        """Saves the state; another thread may call this in a phase that keeps it."""
        with progress.saving(int(state["step"])):
            states.keep(state)

    def leave() -> NoReturn:
        numbers.read(state)
        if progress.unsaved:
            keep()
        raise activity.Preempted

    @contextlib.contextmanager
    def aside(what: str) -> Iterator[None]:
        """Work between steps: nothing is in flight, so the state can be saved."""
        numbers.read(state)
        try:
            with numbers.clock.stopped(), progress.at(what), progress.at_rest(keep):
                yield
        except activity.Preempted:
            leave()

    start, patience = int(state["step"]), Patience(config.dev, states.best)
    progress.saved = start
    progress.forward(start)
    for done in range(start, total + 1):
        asked = done == total or (config.dev.every and done % config.dev.every == 0)
        evaluate, dev = stage.evaluate if asked else None, None
        saves = evaluate or done == total or done % config.checkpoint.every == 0
        # The first state is saved already, unless it was kept at a preemption.
        if saves and (done > start or states.owes):
            if evaluate:
                # A state that was resumed may have to be kept again.
                progress.unsaved = True
                with aside(activity.EVALUATING):
                    dev = evaluate(state["params"])
                    texts = evaluate.texts(state["params"])
                run.tracker.log(done, {f"dev_{name}": dev[name] for name in dev})
                run.tracker.texts(done, texts)
                patience.look(dev, done)
            numbers.read(state)
            with numbers.clock.stopped(), progress.saving(done):
                states.save(state, dev, last=done == total or patience.ends(done))
        if done == total or patience.ends(done):
            break
        if batches.due(done):
            with aside(activity.PREPARING):
                batches.mine(state["params"], done)
        progress.forward(done + 1)
        with progress.at(activity.DATA):
            batch = next(batches)
        if progress.point():
            leave()
        if not take_step.knows(batch):
            with aside(activity.COMPILING):
                take_step.compile(state, stage.teacher_params, batch)
        progress.unsaved = True
        with progress.at(activity.STEPPING):
            state, metrics = take_step(state, stage.teacher_params, batch)
            states.poll()
            numbers.add(done + 1, metrics, slots_of(batch))
            numbers.read(state, in_flight=2)
    if done < total:
        run.tracker.note(f"  Stopped at step {done:,}: {patience}")
    return state
