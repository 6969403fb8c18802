"""Ends a stage that gains nothing: early stopping by `dev.patience`."""

from collections.abc import Callable


class Patience:
    """The best evaluation of a stage, and whether it is too long ago.

    Only steps are counted, so that a resumed run finds the same.

    Args:
      dev: `config.dev`.
      best: gives the best value so far with its step, the later one of equal values;
        None before the first.
    """

    def __init__(self, dev, best: Callable[[], tuple[float, int] | None]):
        self._dev = dev
        self._best = best() if dev.patience else None

    def look(self, values: dict[str, float], done: int) -> None:
        """Takes in the evaluation after step `done`."""
        if self._dev.patience:
            found = values[self._dev.metric], done
            self._best = max(self._best or found, found)

    def ends(self, done: int) -> bool:
        """Whether the last `dev.patience` evaluations were below the best one."""
        dev = self._dev
        if not (dev.patience and self._best) or done % dev.every:
            return False
        return (done - self._best[1]) // dev.every >= dev.patience

    def __str__(self) -> str:
        assert self._best
        return (
            f"dev.patience is {self._dev.patience}, and the best {self._dev.metric} is"
            f" that of step {self._best[1]:,}."
        )
