"""Rolls back to the last checkpoint after a bad step, to go on without its batch."""

from lsrjax.errors import TrainingFailed
from lsrjax.training.bad_steps import BadNumbers
from lsrjax.training.left_out import leave_out, left_out
from lsrjax.training.resume import States
from lsrjax.training.stage_parts import Run, Stage


def roll_back(stage: Stage, states: States, run: Run, found: BadNumbers) -> None:
    """Makes the stage skip the batch of a bad step, if the config says so.

    Raises:
      BadNumbers: the policy is another one.
      TrainingFailed: too many batches are skipped already.
    """
    states.wait()
    try:
        states.look_again()
        stage.post_mortem.write(states.checkpoint(stage.initial_state), found)
    except Exception as error:
        # A failing post-mortem must not hide the bad step.
        run.tracker.note(f"  {found} There is no post-mortem: {error}")
    most = stage.config.numbers.most
    if stage.config.numbers.policy != "roll_back":
        raise found
    if len(left_out(stage.folder)) >= most:
        raise TrainingFailed(
            f"{found} {most} batches have been left out already, and config.numbers"
            f".most is {most}."
        )
    without = leave_out(stage.folder, found.step)
    run.tracker.stage_end()
    run.tracker.note(
        f"  Goes back to the last checkpoint, without the batches {without}."
    )
