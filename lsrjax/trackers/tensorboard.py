"""The tracker `tensorboard`: event files in the work directory."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lsrjax import options
from lsrjax.options import option
from lsrjax.trackers.tracker import COLUMNS, RunFacts, imported, markdown


class TensorBoard:
    """Event files of TensorBoard, a folder for each stage: `tensorboard --logdir`."""

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the tracker."""

        folder: str = option(
            "", "of the event files; empty: `tensorboard` in the work directory"
        )

    def __init__(self, options: Any, facts: RunFacts):
        """Opens no file yet; each stage has its own."""
        # A run has no other name than its folder.
        self.id = options.folder or "tensorboard"
        self._folder = facts.folder / self.id
        self._library, self._parameters = self.library(options), facts.parameters
        self._writer: Any = None

    @staticmethod
    def library(options: Any) -> Any:
        """Imports tensorboardX, which writes event files without TensorFlow."""
        return imported("tensorboardX", "tensorboard")

    def stage(self, name: str, after: int) -> None:
        """Opens a file; what others of the stage hold behind `after` is left out."""
        self.close(False)
        folder = self._folder / name
        # Names have seconds; files of the same one keep their order by a number.
        number = len(list(folder.glob("events.*")))
        self._writer = self._library.SummaryWriter(
            str(folder), purge_step=after + 1, filename_suffix=f".{number:04d}"
        )
        rows = list(self._parameters.items())
        self._writer.add_text("config", markdown(("parameter", "value"), rows), 0)

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """A curve for each number; those of languages are in a group."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def texts(self, stage: str, step: int, rows: Sequence[Sequence]) -> None:
        """The rows of this step, as Markdown; TensorBoard has a slider for steps."""
        newest = [row for row in rows if row[0] == step]
        self._writer.add_text("texts", markdown(COLUMNS, newest), step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
