"""The tracker `trackio`: on this machine, or in a Space of Hugging Face."""

import contextlib
import dataclasses
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lsrjax import options
from lsrjax.options import option
from lsrjax.trackers.tracker import COLUMNS, RunFacts, imported


class Trackio:
    """trackio, which keeps runs in TRACKIO_DIR: `trackio show`."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the tracker."""

        project: str = option("lsrjax", "that holds the run")
        space: str = option("", "user/name of a Space to send to; empty: this machine")

    def __init__(self, options: Any, facts: RunFacts):
        """Opens the run."""
        trackio = self._library = self.library(options)
        self.id = facts.id or f"{facts.name}-{uuid.uuid4().hex[:8]}"
        with _said_to_the_log(trackio, trackio.utils):
            self._run = trackio.init(
                project=options.project,
                name=self.id,
                space_id=options.space or None,
                config=dict(facts.parameters),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    @staticmethod
    def library(options: Any) -> Any:
        """Imports trackio."""
        return imported("trackio", "trackio")

    def stage(self, name: str, after: int) -> None:
        """A stage needs no beginning."""

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Logs them as `stage/name`."""
        named = {f"{stage}/{name}": value for name, value in numbers.items()}
        self._run.log(named, step=step)

    def texts(self, stage: str, step: int, rows: Sequence[Sequence]) -> None:
        """Logs the whole table."""
        table = self._library.Table(columns=list(COLUMNS), data=list(map(list, rows)))
        self._run.log({f"{stage}/texts": table}, step=step)

    def close(self, failed: bool) -> None:
        """Ends the run, and waits until all is stored."""
        with _said_to_the_log(self._library, self._library.run):
            self._run.finish()


@contextlib.contextmanager
def _said_to_the_log(*modules: Any) -> Iterator[None]:
    """What a library prints goes to Python's log, not between the lines of a run."""

    def say(*words: object, **_: object) -> None:
        logging.getLogger("trackio").info("%s", " ".join(map(str, words)))

    for module in modules:
        module.print = say
    try:
        yield
    finally:
        for module in modules:
            del module.print
