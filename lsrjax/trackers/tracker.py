"""What a tracker is, and what it receives of a run."""

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lsrjax.errors import InputError

# Of the table of sample texts.
COLUMNS = ("step", "role", "language", "text", "view", "terms")


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """A run, as a tracker shows it.

    Attributes:
      name: of the run.
      folder: its work directory.
      parameters: the config by dotted name, git revision and version.
      id: of the run in the tracker, as `Tracker.id` was when the run was begun; empty
        if the tracker has not seen the run.
    """

    name: str
    folder: pathlib.Path
    parameters: Mapping[str, str | int | float | bool]
    id: str = ""


class Tracker(Protocol):
    """An entry of `TRACKERS`: a class whose instances are made of options and facts.

    `library` is called first, in the main thread; everything else in one thread of the
    tracker's own, where it may fail or hang.

    Attributes:
      id: names the run in the tracker; a resumed run is opened under it again.
    """

    id: str

    def __init__(self, options: Any, facts: RunFacts):
        """Opens the run, again if `facts.id` names it."""

    @staticmethod
    def library(options: Any) -> Any:
        """Imports what the tracker needs.

        Raises:
          InputError: it is not installed, or there is no account to use.
        """

    def stage(self, name: str, after: int) -> None:
        """Begins or goes on with a stage; what comes is of steps behind `after`."""

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step; those by language are named `name/language`."""

    def texts(self, stage: str, step: int, rows: Sequence[Sequence]) -> None:
        """Sample texts: rows of `COLUMNS`, of all steps so far."""

    def close(self, failed: bool) -> None:
        """Ends the run; `failed` if by an error."""


def imported(module: str, tracker: str) -> Any:
    """A tracker's library.

    Raises:
      InputError: it is not installed; names the extra, which is called as the tracker.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"config.log.trackers has {tracker!r}, whose library cannot be imported"
            f" ({error}). Install it with: pip install 'lsrjax[{tracker}]'"
        ) from error


def markdown(columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table as Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
