"""Runs a tracker in a thread of its own, so that it can neither stop nor slow a run.

What the run logs goes into a queue of limited length; if the tracker is slow or hangs,
what does not fit is left out. An error of the tracker costs what it was given, and is
reported once.
"""

import contextlib
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsrjax import json_files
from lsrjax.options import Chosen
from lsrjax.trackers.tracker import RunFacts, Tracker

FOLDER = "trackers"  # in the work directory
THREAD = "tracker "  # begins the names of the threads
_WAITING = 1000  # calls at most
# How long a finished run waits for all of its trackers, and one that has failed.
CLOSE_SECONDS, FAILED_SECONDS = 60.0, 5.0
_KEEP_SECONDS = 5.0  # between notes of what has been sent


class InThread:
    """A tracker, whose calls return at once.

    `trackers/NAME.json` in the work directory keeps the run's id in the tracker, and
    the last step of each stage that it has been given: steps that a resumed run takes
    again are the same, and are not sent twice.
    """

    def __init__(self, chosen: Chosen, facts: RunFacts, note: Callable[[str], None]):
        """Starts the thread, which opens the run in the tracker.

        Args:
          chosen: the entry and its options.
          facts: `id` is taken from the work directory.
          note: reports what went wrong.
        """
        self.name = chosen.name
        self._chosen, self._facts, self._note = chosen, facts, note
        file = re.sub(r"[^\w.-]", "_", chosen.name) + ".json"
        self._path = facts.folder / FOLDER / file
        self._id, self._sent = self._read()
        self._queue: queue.Queue = queue.Queue(_WAITING)
        self._lost, self._errors, self._dropped = 0, 0, 0
        self._begun: set[str] = set()
        self._kept_at = 0.0
        self._closing = threading.Event()
        self._failed = False
        self._thread = threading.Thread(
            target=self._work, name=f"{THREAD}{self.name}", daemon=True
        )
        self._thread.start()

    def stage(self, name: str, first: int) -> None:
        """Begins a stage whose next step is behind `first`.

        A stage that begins again in the same process was rolled back: other steps
        follow.
        """
        again = name in self._begun
        self._begun.add(name)
        self._put("stage", name, first, again)

    def log(
        self, stage: str, step: int, numbers: Mapping[str, float], kind: str = ""
    ) -> None:
        """Numbers of a step; `kind` tells apart those that are logged at one step."""
        self._put("log", stage, step, dict(numbers), kind)

    def texts(self, stage: str, step: int, rows: Sequence[Sequence]) -> None:
        """Sample texts; see `Tracker.texts`."""
        self._put("texts", stage, step, list(rows))

    def close(self, failed: bool, until: float) -> None:
        """Ends the run in the tracker; reports what it lacks.

        Args:
          failed: the run ends by an error.
          until: how long to wait, a time of `time.monotonic`.
        """
        self.end(failed)
        self._thread.join(max(until - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._note(
                f"The tracker {self.name} does not answer, and is left; it may lack the"
                f" last {self._queue.qsize() + self._dropped:,} entries."
            )
        elif lost := self._dropped + self._lost:
            self._note(f"The tracker {self.name} lacks {lost:,} entries.")

    def end(self, failed: bool) -> None:
        """Asks the thread to end, without waiting for it."""
        self._failed = failed
        self._closing.set()

    def _put(self, *call: Any) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            if not self._dropped:
                self._note(
                    f"The tracker {self.name} does not keep up; entries are left out of"
                    " it, none of metrics.jsonl."
                )
            self._dropped += 1

    def _work(self) -> None:
        try:
            tracker = self._chosen.entry(
                self._chosen.options, _with_id(self._facts, self._id)
            )
            self._id = tracker.id
            self._keep()
        except Exception as error:
            self._note(
                f"The tracker {self.name} cannot be opened, and the run goes on without"
                f" it ({_said(error)})."
            )
            return
        while True:
            try:
                call = self._queue.get(timeout=0.1)
            except queue.Empty:
                if self._closing.is_set():
                    break
                continue
            self._try(self._call, tracker, *call)
        self._try(lambda: tracker.close(self._failed))
        self._keep()

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            self._lost += 1
            self._errors += 1
            if self._errors == 1:
                self._note(f"The tracker {self.name} failed ({_said(error)}).")

    def _call(self, tracker: Tracker, what: str, stage: str, step: int, *rest) -> None:
        sent = self._sent.setdefault(stage, {})
        if what == "stage":
            if rest[0]:
                for kind in sent:
                    sent[kind] = min(sent[kind], step)
            tracker.stage(stage, max([step, *sent.values()]) if sent else step)
            return
        kind = rest[1] if what == "log" else what
        if step <= sent.get(kind, -1):
            return
        if what == "log":
            tracker.log(stage, step, rest[0])
        else:
            tracker.texts(stage, step, rest[0])
        sent[kind] = step
        if time.monotonic() - self._kept_at > _KEEP_SECONDS:
            self._keep()

    def _read(self) -> tuple[str, dict[str, dict[str, int]]]:
        """The run's id and the last steps; those of a damaged file are unknown."""
        try:
            found = json.loads(self._path.read_text("utf-8"))
            sent = {
                str(stage): {str(kind): int(step) for kind, step in kinds.items()}
                for stage, kinds in found["sent"].items()
            }
            return str(found["id"]), sent
        except FileNotFoundError:
            return "", {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._note(
                f"{self._path} is damaged ({error}); the tracker {self.name} gets a new"
                " run."
            )
            return "", {}

    def _keep(self) -> None:
        self._kept_at = time.monotonic()
        # A full disk is reported by what the run needs.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            json_files.write_json(self._path, {"id": self._id, "sent": self._sent})


def hangs() -> bool:
    """Whether a tracker is left that does not answer, at the end of a run."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


def _with_id(facts: RunFacts, id: str) -> RunFacts:
    return RunFacts(facts.name, facts.folder, facts.parameters, id)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
