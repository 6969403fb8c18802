"""The parts of a folder of vectors as they are made: by any processes, in any order.

    FOLDER/manifest.json         comes last, when all parts are there
    FOLDER/parts/part-00000.npz  the vectors of a range of texts
    FOLDER/records/00000.json    what the part is made of, its bytes and digest
    FOLDER/records/00000.partial what an unfinished part has so far

With several views, `manifest.json` and `parts/` are in a folder of each view. Which
process makes a part, and in how many goes, changes no byte of it.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from lsrjax import json_files
from lsrjax.distributed import trees
from lsrjax.errors import InputError
from lsrjax.retrieval.vector_formats.parts import MANIFEST, PARTS, Part, digest_of
from lsrjax.retrieval.vector_formats.table import Format
from lsrjax.retrieval.vector_formats.vectors import About
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles

_RECORDS = "records"


@dataclasses.dataclass(frozen=True)
class PartFolder:
    """A folder of parts of `rows` texts each.

    Attributes:
      abouts: of each view; the only one has no name.
      texts: of the whole corpus.
      made_of: JSON values that the vectors depend on.
      whole: weights are whole numbers.
    """

    folder: pathlib.Path
    format: Format
    abouts: Mapping[str, About]
    texts: int
    rows: int
    made_of: dict[str, Any]
    whole: bool = False

    @property
    def count(self) -> int:
        """The number of parts; one even without texts."""
        return max(math.ceil(self.texts / self.rows), 1)

    def range(self, number: int) -> tuple[int, int]:
        """The first text of a part, and the one after its last."""
        first = number * self.rows
        return first, min(first + self.rows, self.texts)

    @functools.cached_property
    def _targets(self) -> dict[str, Target]:
        found = {}
        for view, about in self.abouts.items():
            target = Target.of(self.folder, self.format, about, self.whole)
            # The manifest names the terms, once for all parts.
            own = dataclasses.replace(about, terms=None)
            found[view] = dataclasses.replace(target, about=own)
        return found

    def check(self, numbers: Iterable[int]) -> list[int]:
        """The parts among these that are missing or damaged; the latter are removed.

        Raises:
          InputError: parts were made of something else, or the folder is another's.
        """
        self._check_own()
        missing = []
        for number in numbers:
            record = self._record(number)
            if record is None:
                missing.append(number)
                continue
            for view, part in record.items():
                if problem := part.problem(self._of(view)):
                    path = self._of(view) / PARTS / part.file
                    print(f"{path} {problem}: it is encoded again.", flush=True)
                    self._forget(number)
                    missing.append(number)
                    break
        return missing

    def open(self, number: int) -> VectorFiles:
        """The files of a part, begun or resumed."""
        first, _ = self.range(number)
        targets = {}
        for view, target in self._targets.items():
            path = self._of(view) / PARTS / self._file(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Complete, but the process ended before the record said so.
            path.unlink(missing_ok=True)
            targets[view] = dataclasses.replace(target, path=path)
        partial = self.folder / _RECORDS / f"{number:05}.partial"
        return VectorFiles(partial, targets, self.made_of, first=first, beside=False)

    def record(self, number: int) -> None:
        """Writes that a part is complete."""
        first, end = self.range(number)
        views = {}
        for view in self.abouts:
            path = self._of(view) / PARTS / self._file(number)
            size = path.stat().st_size
            part = Part(path.name, end - first, size, digest_of(path))
            views[view] = dataclasses.asdict(part)
        values = {"made_of": self.made_of, "views": views}
        json_files.write_json(self._record_path(number), values)

    def complete(self) -> bool:
        """Writes the manifests if all parts are there; whether they are.

        Processes that do it at once write the same.
        """
        records = []
        for number in range(self.count):
            record = self._record(number)
            if record is None:
                return False
            records.append(record)
        for view, about in self.abouts.items():
            parts = [dataclasses.asdict(record[view]) for record in records]
            values = json.loads(about.json()) | {"parts": parts}
            _write(self._of(view) / MANIFEST, values)
        if "" not in self.abouts:
            _write(self.folder / MANIFEST, {"views": [*self.abouts]})
        return True

    def _check_own(self) -> None:
        if (self.folder / _RECORDS).exists() or not self.folder.is_dir():
            return
        # Another process may be making it.
        own = {_RECORDS, PARTS, MANIFEST, *self.abouts}
        names = sorted(
            path.name
            for path in self.folder.iterdir()
            if path.name not in own and not path.name.startswith(".")
        )
        if names:
            raise InputError(
                f"--out {self.folder} has other files ({', '.join(names[:3])}"
                f"{', …' * (len(names) > 3)}). Name a new folder for the vectors."
            )

    def _of(self, view: str) -> pathlib.Path:
        return self.folder / view if view else self.folder

    def _file(self, number: int) -> str:
        return f"part-{number:05}{self.format.suffix}"

    def _record_path(self, number: int) -> pathlib.Path:
        return self.folder / _RECORDS / f"{number:05}.json"

    def _record(self, number: int) -> dict[str, Part] | None:
        path = self._record_path(number)
        if not path.is_file():
            return None
        advice = f"Remove it; the texts of {self._file(number)} are encoded again."
        made_of, views = json_files.read_json(
            path,
            advice,
            lambda v: (
                dict(v["made_of"]),
                {n: Part(**p) for n, p in v["views"].items()},
            ),
        )
        trees.check_same(made_of, self.made_of, f"{self.folder} was begun")
        if views.keys() != self.abouts.keys():
            raise InputError(f"{path} is damaged (other views). {advice}")
        return views

    def _forget(self, number: int) -> None:
        """Removes a part, and before it what says that it is there."""
        for view in self.abouts:
            (self._of(view) / MANIFEST).unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self._record_path(number).unlink(missing_ok=True)
        for view in self.abouts:
            (self._of(view) / PARTS / self._file(number)).unlink(missing_ok=True)


def _write(path: pathlib.Path, values: Any) -> None:
    """Writes JSON that other processes may be writing at once, too."""
    own = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    json_files.write_json(own, values)
    own.replace(path)
