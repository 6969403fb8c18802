"""Errors that end a run with a message instead of a traceback."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from types import TracebackType


class InputError(ValueError):
    """A config, file, checkpoint or model that cannot be used.

    The message says what was found, where, and what to do; programs print it without
    a traceback and exit with status 2. Several messages are of independent errors.
    """

    def __str__(self) -> str:
        if len(self.args) < 2:
            return super().__str__()
        return "\n".join([f"{len(self.args)} errors:", *(f"- {m}" for m in self.args)])


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that a misspelled one was meant to be, if any is near.

    Args:
      cutoff: how similar it is at least, 0 to 1 (difflib's ratio).
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


class TrainingFailed(RuntimeError):
    """The run cannot continue; earlier checkpoints are unchanged."""


class Each:
    """A context of one of several independent checks; keeps its `InputError`."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Keeps a message, once."""
        if message not in self.messages:
            self.messages.append(message)

    def __enter__(self) -> "Each":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, InputError):
            return False
        for message in error.args:
            self.add(message)
        return True


@contextlib.contextmanager
def together() -> Iterator[Each]:
    """Raises the errors of independent checks as one.

        with together() as each:
            with each:
                check_files()
            with each:
                check_models()

    An error outside of `each` ends the checks, and is raised with those before it.

    Raises:
      InputError: has the message of each.
    """
    each = Each()
    with each:
        yield each
    if each.messages:
        raise InputError(*each.messages)
