"""The tracker `wandb`: Weights & Biases."""

import dataclasses
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from lsrjax import options
from lsrjax.errors import InputError
from lsrjax.options import option
from lsrjax.trackers.tracker import COLUMNS, RunFacts, imported


class Wandb:
    """Weights & Biases; the account is that of `wandb login` or WANDB_API_KEY."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the tracker."""

        project: str = option("lsrjax", "that holds the run")
        entity: str = option("", "user or team; empty: your default")
        group: str = option("", "of runs")
        mode: str = option(
            "",
            "online | offline (files in the work directory, for `wandb sync`) | empty:"
            " WANDB_MODE, or online",
            choices=("", "online", "offline"),
        )

    def __init__(self, options: Any, facts: RunFacts):
        """Opens the run."""
        wandb = self._library = self.library(options)
        self.id = facts.id or uuid.uuid4().hex
        self._run = wandb.init(
            project=options.project,
            entity=options.entity or None,
            group=options.group or None,
            id=self.id,
            name=facts.name,
            dir=str(facts.folder),
            resume="allow",
            mode=_mode(options),
            reinit="create_new",
            settings=wandb.Settings(
                # Nothing of this program's output, files or programs is sent.
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
            ),
        )
        self._run.config.update(dict(facts.parameters), allow_val_change=True)

    @staticmethod
    def library(options: Any) -> Any:
        """Imports wandb, and looks for an account."""
        wandb = imported("wandb", "wandb")
        # Where there is none, wandb.init would ask for one, and wait.
        if _mode(options) == "online" and not wandb.login(prompt=False, verify=False):
            raise InputError(
                "config.log.trackers has 'wandb', but there is no account. Run `wandb"
                " login`, set WANDB_API_KEY, or set mode = 'offline'."
            )
        return wandb

    def stage(self, name: str, after: int) -> None:
        """Draws the stage's numbers over its own steps."""
        self._run.define_metric(f"{name}/step")
        self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Logs them as `stage/name`."""
        named = {f"{stage}/{name}": value for name, value in numbers.items()}
        self._run.log({f"{stage}/step": step, **named})

    def texts(self, stage: str, step: int, rows: Sequence[Sequence]) -> None:
        """Logs the whole table; W&B shows the newest."""
        table = self._library.Table(columns=list(COLUMNS), data=list(map(list, rows)))
        self._run.log({f"{stage}/step": step, f"{stage}/texts": table})

    def close(self, failed: bool) -> None:
        """Ends the run, and waits until all is sent."""
        self._run.finish(exit_code=int(failed))


def _mode(options: Any) -> str:
    return options.mode or os.environ.get("WANDB_MODE", "online")
