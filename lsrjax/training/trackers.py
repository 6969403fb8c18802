"""Reports of a run: a live line in the terminal, and `metrics.jsonl`."""

import io
import json
import pathlib
import time
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lsrjax import json_files
from lsrjax.data.batching.drawing import QUERIES, STUDENT
from lsrjax.models import retriever
from lsrjax.training import live_line

METRICS_FILE = "metrics.jsonl"


class Tracker:
    """Prints to a console, and writes each stage's numbers to its `metrics.jsonl`."""

    def __init__(self, console: Console):
        self.console = console
        self._live: Live | None = None
        self._file: io.FileIO | None = None
        self._unwritten = b""

    def note(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, highlight=False, markup=False)

    def stage(
        self,
        name: str,
        folder: pathlib.Path,
        first: int,
        total: int,
        summary: Mapping[str, object],
    ) -> None:
        """Begins a stage, and prints the facts of its summary.

        Drops lines of steps after `first`, left by a killed run, from `metrics.jsonl`.
        """
        facts = ", ".join(f"{key} {_shown(value)}" for key, value in summary.items())
        self.note(f"Stage {name}: {facts}")
        if first:
            self.note(f"  goes on at step {first:,} of {total:,}")
        self._name, self._first, self._total = name, first, total
        self._started = time.monotonic()
        path = folder / METRICS_FILE
        kept, damaged = _lines_up_to(path, first)
        if damaged:
            self.note(f"  {path}: {damaged:,} damaged lines are left out.")
        json_files.write_whole(path, "".join(kept))
        # Unbuffered, so that bytes that a full disk refuses are known and kept.
        self._file = path.open("ab", buffering=0)
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes a step's numbers to the file and shows them."""
        record = {"step": step, **{k: float(f"{v:.6g}") for k, v in numbers.items()}}
        self._write(json.dumps(record) + "\n")
        spent = time.monotonic() - self._started
        left = spent / max(step - self._first, 1) * (self._total - step)
        seconds = left if "loss" in numbers and step > self._first else None
        line = live_line.line(self._name, step, self._total, numbers, seconds)
        if any(name.startswith("dev_") for name in numbers):
            self.note(line)
        elif self._live:
            self._live.update(Text(line))
        elif step % (10 * max(self._total // 100, 1)) == 0 or step == self._total:
            # Without a terminal, about ten lines a stage.
            self.note(line)

    def _write(self, text: str = "") -> None:
        """Appends to the file; after a disk error, retries at the next call."""
        assert self._file is not None
        said = bool(self._unwritten)
        self._unwritten += text.encode("utf-8")
        try:
            while self._unwritten:
                written = self._file.write(self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            if not said:
                self.note(
                    f"{self._file.name} cannot be written ({error.strerror}); its lines"
                    " are kept until it can."
                )

    def stage_end(self) -> None:
        """Ends a stage, also after an error."""
        if self._live:
            self._live.stop()
            self._live = None
        if self._file:
            self._write()
            if self._unwritten:
                lines = self._unwritten.count(b"\n")
                self.note(f"{self._file.name} lacks its last {lines:,} lines.")
                self._unwritten = b""
            self._file.close()
            self._file = None


class Silent(Tracker):
    """Writes and prints nothing, for all processes of a run but the first."""

    def __init__(self):
        super().__init__(Console(quiet=True))

    def stage(self, name, folder, first, total, summary) -> None:
        """Does nothing."""

    def log(self, step, numbers) -> None:
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


def _lines_up_to(path: pathlib.Path, step: int) -> tuple[list[str], int]:
    """The sound lines of a file up to a step, and the number of damaged ones."""
    if not path.is_file():
        return [], 0
    kept, damaged = [], 0
    *lines, _ = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            text = line.decode("utf-8")
            number = json.loads(text)["step"]
            if number > step:
                break
        # JSON that is not a step's record raises TypeError or KeyError.
        except (ValueError, TypeError, KeyError):
            damaged += 1
            continue
        kept.append(text + "\n")
    # An unfinished line was cut off when the run was killed; its step comes again.
    return kept, damaged
