"""Files of training rows, written block by block, that get their name when complete.

Rows are written to a folder `<file>.partial`: a program that was stopped resumes after
the last block. Beside the finished file, `_<file>.json` says what it was made of; data
folders are read without files whose names begin with an underscore.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from lsrjax import json_files
from lsrjax.distributed import trees
from lsrjax.errors import InputError

_STATE, _LINES = "state.json", "lines.jsonl"


def facts_file(path: pathlib.Path) -> pathlib.Path:
    """Where the facts about a finished file are."""
    return path.with_name(f"_{path.name}.json")


def _state(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {"made_of": dict, "blocks": int, "counts": dict, "bytes": int}
    return {name: kind(values[name]) for name, kind in kinds.items()}


class RowsFile:
    """Rows being written to a JSONL file.

    Attributes:
      folder: of the unfinished file, for what else has to survive a stop.
      blocks: written so far.
      counts: sums over the blocks so far, by name.
    """

    def __init__(self, path: pathlib.Path, made_of: Mapping[str, Any]):
        """Opens a new file, or resumes an unfinished one.

        Args:
          made_of: JSON values that the rows depend on.

        Raises:
          InputError: the file exists, is no .jsonl, or was begun with other values.
        """
        if path.suffix != ".jsonl":
            raise InputError(f"--out {path}: name a .jsonl file.")
        if path.exists():
            raise InputError(f"{path} exists. Remove it, or name another --out.")
        self.path, self.folder = path, path.with_name(path.name + ".partial")
        self.made_of = json.loads(json.dumps(dict(made_of)))
        known = self._begun()
        self.blocks, self.counts = known["blocks"], known["counts"]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / _STATE).is_file():
            self._record(0)
        self._file = open(self.folder / _LINES, "ab")  # noqa: SIM115  (closed by `close`)
        # Rows written after the last recorded block are written again.
        self._file.truncate(known["bytes"])

    def _begun(self) -> dict[str, Any]:
        path = self.folder / _STATE
        if not path.is_file():
            return {"blocks": 0, "counts": {}, "bytes": 0}
        advice = f"Remove {self.folder}; its rows are made again."
        state = json_files.read_json(path, advice, _state)
        if state["made_of"] != self.made_of:
            differences = trees.differences(
                state["made_of"], self.made_of, ("there", "asked")
            )
            raise InputError(
                f"{self.folder} was begun with something else:\n"
                + "\n".join(differences)
                + "\nAsk for the same again, remove it, or name another --out."
            )
        written = self.folder / _LINES
        if (written.stat().st_size if written.is_file() else 0) < state["bytes"]:
            raise InputError(f"{written} is shorter than it was. {advice}")
        return state

    def add(self, rows: Iterable[Any], counts: Mapping[str, int]) -> None:
        """Adds a block of rows, which survive a stop, and its counts."""
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.blocks += 1
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        self._record(self._file.tell())

    def _record(self, size: int) -> None:
        state = {
            "made_of": self.made_of,
            "blocks": self.blocks,
            "counts": self.counts,
            "bytes": size,
        }
        json_files.write_json(self.folder / _STATE, state)

    def finish(self) -> None:
        """Writes what the file was made of, and gives it its name."""
        self._file.close()
        facts = {"made_of": self.made_of, "counts": self.counts}
        json_files.write_json(facts_file(self.path), facts)
        (self.folder / _LINES).replace(self.path)
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Closes the file; what is written stays."""
        self._file.close()
