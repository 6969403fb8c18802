"""What this process is at, for whoever watches it: its phase, its step, its last beat.

The command makes one `Progress` for the process and passes it down. The training thread
writes to it; the threads of `preemption` and `watchdog` read it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

# Phases in which steps are expected: one that takes longer than the watchdog allows is
# a stall.
DATA = "waiting for data"
STEPPING = "stepping"
SAVING = "saving"
EVALUATING = "evaluating"
STEADY = (DATA, STEPPING, SAVING, EVALUATING)
# The others take as long as they take.
STARTING = "starting"
PREPARING = "preparing"
COMPILING = "compiling"
RESULTS = "writing results"
LEAVING = "leaving"


class Preempted(BaseException):
    """The run was asked to leave, and nothing is lost if it does so here.

    No `Exception`, so that nothing on the way up takes it for an error.
    """


class Progress:
    """What the training thread is at.

    Attributes:
      phase: one of the phases above.
      stage: name of the stage, or nothing.
      step: the step that is worked on, from 1; 0 before the first.
      saved: steps of the stage's newest saved state, from which it goes on.
      beat: when it last came forward, seconds of `time.monotonic`.
      unsaved: whether there is a state that no checkpoint holds.
      asked: set once the process was asked to leave.
      held: who saves holds it; whoever ends the process takes it and keeps it.
      points: passed so far.
      pending: waits until what is being written is written.
      last: does what is left to do before the process ends, once; returns what could
        not be done, or nothing.
      rest: saves the state while the training thread does something long that leaves
        it alone, or None.
    """

    def __init__(self):
        self.phase, self.stage, self.step = STARTING, "", 0
        self.saved = 0
        self.beat = time.monotonic()
        self.points = 0
        self.unsaved = False
        self.asked = threading.Event()
        self.held = threading.RLock()
        self.pending: Callable[[], None] = lambda: None
        self.last: Callable[[], str] = lambda: ""
        self.rest: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._frozen = False
        self._stop_at: int | None = None
        self._agreed = threading.Event()

    @contextlib.contextmanager
    def at(self, phase: str) -> Iterator[None]:
        """Is in a phase, and behind it in the one before again."""
        before, self.phase = self.phase, phase
        self.beat = time.monotonic()
        try:
            yield
        finally:
            self.phase = before
            self.beat = time.monotonic()

    def forward(self, step: int | None = None) -> None:
        """Came forward, to work on a step."""
        if step is not None:
            self.step = step
        self.beat = time.monotonic()

    @contextlib.contextmanager
    def at_rest(self, save: Callable[[], None]) -> Iterator[None]:
        """Lets another thread `save` within, since the state stays as it is."""
        self.rest = save
        try:
            yield
        finally:
            # Who is saving has the lock, and the process ends in its hands.
            with self.held:
                self.rest = None

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """Within it, the state after `step` is saved; no other thread may exit."""
        with self.held, self.at(SAVING):
            yield
            self.unsaved, self.saved = False, step

    def poll(self) -> None:
        """Passes a point of long work that has no state of its own to save.

        Raises:
          Preempted: the process was asked to leave, and this is where.
        """
        if self.point():
            raise Preempted

    def point(self) -> bool:
        """Passes a point, of which all processes of a run pass the same ones in order.

        Returns:
          Whether to stop here, since the processes have agreed on it.
        """
        self.beat = time.monotonic()
        with self._lock:
            if not self._frozen:
                self.points += 1
                return False
        # The other processes' numbers come from threads that do not wait for a step,
        # so that this ends.
        self._agreed.wait()
        with self._lock:
            if self.points >= self._stop_at:
                return True
            self.points += 1
        return False

    def freeze(self) -> int:
        """Lets no more points be passed until `stop_at`.

        Returns:
          How many have been passed.
        """
        with self._lock:
            self._frozen = True
            self.asked.set()
            return self.points

    def stop_at(self, points: int) -> None:
        """Says behind how many points to stop: the most that any process has passed."""
        self._stop_at = points
        self._agreed.set()
