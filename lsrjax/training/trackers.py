"""Where a run's numbers go: the terminal, `metrics.jsonl`, and other trackers."""

import pathlib
import time
from collections.abc import Mapping, Sequence

import jax
from rich.console import Console

from lsrjax.data.batching.drawing import QUERIES, STUDENT
from lsrjax.distributed.activity import Progress
from lsrjax.models import retriever
from lsrjax.trackers import in_thread
from lsrjax.trackers.tracker import COLUMNS
from lsrjax.training import lines_file, other_trackers
from lsrjax.training.lines_file import LinesFile
from lsrjax.training.terminal import Terminal

METRICS_FILE = "metrics.jsonl"
TEXTS_FILE = "texts.jsonl"


class Tracker:
    """Says what a run does, and writes each stage's numbers to its `metrics.jsonl`.

    Attributes:
      others: trackers that the config names.
    """

    def __init__(self, console: Console, progress: Progress | None = None):
        self.terminal = Terminal(console, progress or Progress())
        self.others: Sequence[in_thread.InThread] = ()
        self._metrics: LinesFile | None = None
        self._texts: LinesFile | None = None

    def note(self, text: str) -> None:
        """Prints a line."""
        self.terminal.note(text)

    def start(self, run_config, workdir: pathlib.Path) -> None:
        """Starts a run, also in the other trackers.

        Raises:
          InputError: the library of one is missing, or an account.
        """
        self.others = other_trackers.opened(run_config, workdir, self.note)
        self.terminal.start()

    def begin(self, name: str, number: int = 1, count: int = 1) -> None:
        """Begins stage `number` of `count`, which is prepared next."""
        self.terminal.begin(name, number, count)

    def stage(
        self,
        name: str,
        folder: pathlib.Path,
        first: int,
        total: int,
        summary: Mapping[str, object],
    ) -> None:
        """Begins the steps of a stage, and prints the facts of its summary.

        Drops lines of steps after `first`, left by a killed run, from `metrics.jsonl`.
        """
        facts = ", ".join(f"{key} {_shown(value)}" for key, value in summary.items())
        self.note(f"Stage {name}: {facts}")
        if first:
            self.note(f"  goes on at step {first:,} of {total:,}")
        self._name, self._first, self._total = name, first, total
        self._started = time.monotonic()
        self._folder = folder
        self._metrics = LinesFile(folder / METRICS_FILE, first, self.note)
        self._texts = None
        self.terminal.train(name, first, total)
        for other in self.others:
            other.stage(name, first)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes a step's numbers to the file, shows them, and passes them on."""
        assert self._metrics is not None
        numbers = {k: float(f"{v:.6g}") for k, v in numbers.items()}
        self._metrics.add({"step": step, **numbers})
        dev = any(name.startswith("dev_") for name in numbers)
        spent = time.monotonic() - self._started
        left = spent / max(step - self._first, 1) * (self._total - step)
        seconds = left if not dev and step > self._first else None
        self.terminal.entry(step, numbers, seconds, kept=dev)
        for other in self.others:
            other.log(self._name, step, numbers, "dev" if dev else "")

    def texts(self, step: int, rows: Sequence[Sequence[str]]) -> None:
        """Keeps sample texts with their terms in `texts.jsonl`, and passes them on.

        Args:
          step: of the model.
          rows: as `dev_data.Evaluation.texts` returns them.
        """
        if not rows:
            return
        path = self._folder / TEXTS_FILE
        if self._texts is None:
            self._texts = LinesFile(path, min(step - 1, self._first), self.note)
        for row in rows:
            self._texts.add(dict(zip(COLUMNS, (step, *row), strict=True)))
        if self.others:
            found = lines_file.read(path)
            table = [[row.get(column, "") for column in COLUMNS] for row in found]
            for other in self.others:
                other.texts(self._name, step, table)

    def stage_end(self) -> None:
        """Ends a stage, also after an error."""
        self.terminal.end()
        for file in (self._metrics, self._texts):
            if file:
                file.close()
        self._metrics = self._texts = None

    def close(self, failed: bool) -> None:
        """Ends the run, also after an error."""
        self.stage_end()
        for other in self.others:
            other.end(failed)
        allowed = in_thread.FAILED_SECONDS if failed else in_thread.CLOSE_SECONDS
        until = time.monotonic() + allowed
        for other in self.others:
            other.close(failed, until)
        self.terminal.stop()


class Silent(Tracker):
    """Writes and prints nothing, for all processes of a run but the first."""

    def __init__(self):
        super().__init__(Console(quiet=True))

    def start(self, run_config, workdir) -> None:
        """Does nothing."""

    def begin(self, name, number=1, count=1) -> None:
        """Does nothing."""

    def stage(self, name, folder, first, total, summary) -> None:
        """Does nothing."""

    def log(self, step, numbers) -> None:
        """Does nothing."""

    def texts(self, step, rows) -> None:
        """Does nothing."""


def facts_of(stage) -> dict[str, object]:
    """The facts printed about a stage before it is trained."""
    _, abstract = retriever.split(stage.student.spec)
    config, mesh = stage.config, stage.layout.mesh
    shapes = " | ".join(
        "; ".join(str(table[name]) for name in (QUERIES, STUDENT) if name in table)
        for table in stage.batches.shapes
    )
    return {
        "examples": len(stage.source),
        "format": "; ".join(dict.fromkeys(stage.formats)),
        "batch": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract)),
        **({"trained": stage.step.trained} if stage.step.trained else {}),
        "loss": stage.contents.objective.name,
        "views": stage.student.spec.views,
        "mesh": f"data {mesh.shape['data']} x model {mesh.shape['model']}"
        + (" (fsdp)" if config.mesh.fsdp else ""),
        "texts x tokens of a device": shapes,
    }


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " + ".join(f"{name} {size:,}" for name, size in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
