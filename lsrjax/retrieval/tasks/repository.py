"""Data sets in folders: clones of repositories of the Hugging Face hub, or fetched."""

import glob
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lsrjax import paths
from lsrjax.data.reading import plain
from lsrjax.data.reading.files import read_files
from lsrjax.data.reading.ids import as_id
from lsrjax.data.reading.jsonl import Lines
from lsrjax.data.reading.judgements import (
    DOCUMENT,
    GRADE,
    QUERY,
    Judged,
    read_qrels,
)
from lsrjax.errors import InputError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class Repository:
    """The files of a data set: a folder, or an id of the hub, whose files are fetched.

    It remembers which files were asked for: `facts` describes their contents.
    """

    def __init__(self, path: str, field: str):
        """Fetches nothing yet.

        Args:
          path: a folder, or `owner/name` or `owner/name@revision` on the hub.
          field: the option that says so, for errors.

        Raises:
          InputError: neither.
        """
        self.name, self._field = path, field
        local = pathlib.Path(paths.local(path, field))
        self._folder = local if local.is_dir() else None
        self._revision: str | None = None
        self._used: dict[str, pathlib.Path] = {}
        if self._folder is None and not _HUB_ID.fullmatch(path):
            raise InputError(
                f"{field} is {path!r}, which is no folder (from {pathlib.Path.cwd()}),"
                " and no id of a data set of the Hugging Face hub. Give one of them."
            )

    def files(self, *patterns: str) -> list[pathlib.Path]:
        """The files that match the first pattern that any file matches, sorted.

        A file packed with .gz, .zst or .bz2 matches like the file itself.

        Raises:
          InputError: there is none, or the hub cannot be reached.
        """
        folder = self._folder or self._fetched(patterns)
        for pattern in patterns:
            found = _matches(folder, pattern)
            if found:
                for path in found:
                    plain.check_fetched(path)
                    self._used[str(path.relative_to(folder))] = path
                return found
        raise InputError(
            f"{self._field}: {self.name} has no file {' or '.join(patterns)}"
            f" (in {folder}). Name the folder or the data set that has this layout."
        )

    def table(self, config: str, split: str) -> list[pathlib.Path]:
        """The files of a configuration and a split of a data set of the hub.

        As its README.md says, else by their names: `corpus/train-*.parquet`,
        `corpus.jsonl`. A configuration with only one split has it under any name.

        Raises:
          InputError: there are none.
        """
        readme = _matches(self._folder or self._fetched(["README.md"]), "README.md")
        if readme and (named := _data_files(readme[0], config)):
            if split not in named and len(named) > 1:
                raise InputError(
                    f"{self._field}: {self.name}, {config} has no split {split!r}; it"
                    f" has {', '.join(named)}."
                )
            patterns = named.get(split) or next(iter(named.values()))
            return [path for one in patterns for path in self.files(one)]
        return self.files(
            *(f"{config}/{part}-*.parquet" for part in (split, config, "train")),
            *(f"{config}/{part}.*" for part in (split, config, "train")),
            *(f"{config}.jsonl", f"{config}.parquet"),
        )

    def facts(self) -> dict[str, Any]:
        """Where the files are from, the revision if known, and a digest of them all."""
        known = {"revision": self._revision} if self._revision else {}
        digest = hashlib.sha256()
        for name, path in sorted(self._used.items()):
            digest.update(f"{name} {_digest(path)}\n".encode())
        return {"source": self.name, **known, "sha256": digest.hexdigest()}

    def _fetched(self, patterns: Sequence[str]) -> pathlib.Path:
        import huggingface_hub

        name, _, revision = self.name.partition("@")
        try:
            folder = huggingface_hub.snapshot_download(
                name,
                repo_type="dataset",
                revision=revision or None,
                allow_patterns=[
                    f"{one}{end}" for one in patterns for end in ("", ".*")
                ],
            )
        # The hub's client raises errors of its HTTP library, which differs by release.
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(
                f"{self._field}: there is no folder {self.name!r} here, and the data"
                f" set of this id could not be fetched from the hub ({said}). Check the"
                " network and HF_HUB_OFFLINE, or give the folder of a clone."
            ) from error
        # .../snapshots/<commit>
        self._revision = pathlib.Path(folder).name
        return pathlib.Path(folder)


def _matches(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    start = glob.escape(str(folder))
    for end in ("", ".gz", ".zst", ".bz2"):
        found = sorted(glob.glob(f"{start}/{pattern}{end}", recursive=True))
        if files := [pathlib.Path(path) for path in found if os.path.isfile(path)]:
            return files
    return []


def _data_files(readme: pathlib.Path, config: str) -> dict[str, list[str]]:
    """The patterns of each split of a configuration, if README.md has them."""
    import huggingface_hub

    try:
        known = huggingface_hub.metadata_load(readme) or {}
        found: dict[str, list[str]] = {}
        for one in known.get("configs") or []:
            if one["config_name"] != config:
                continue
            files = one["data_files"]
            if isinstance(files, str):
                files = [{"split": "train", "path": files}]
            for part in files:
                path = part["path"]
                found[part["split"]] = [path] if isinstance(path, str) else list(path)
        return found
    except Exception as error:  # YAML of any kind
        raise InputError(
            f"{readme}: the part between --- at its start cannot be read as that of a"
            f" data set ({type(error).__name__}: {error}). Fetch the file again."
        ) from error


def _digest(path: pathlib.Path) -> str:
    # Files of the hub's cache are links to blobs.
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def judgements_in(
    files: Sequence[pathlib.Path], *, last_counts: bool = False
) -> Judged:
    """The judgements of files: TREC's, or tables with the columns of BEIR or mteb.

    A table without grades holds relevant documents only.

    Args:
      files: .parquet, .jsonl or lines of any other name.
      last_counts: of different grades of a document for a query, the last one counts.

    Raises:
      InputError: a line or a table of another form; without `last_counts`, a document
        with two grades.
    """
    judged: Judged = {}
    for path in files:
        if plain.kind_of(path) not in (plain.PARQUET, plain.JSON):
            found = read_qrels(path, last_counts=last_counts)
            for query, grades in found.items():
                judged.setdefault(query, {}).update(grades)
            continue
        for query, document, grade in _table_rows(path):
            known = judged.setdefault(query, {}).setdefault(document, grade)
            if known != grade and not last_counts:
                raise InputError(
                    f"{path}: the document {document!r} of the query {query!r} has the"
                    f" grades {known:g} and {grade:g}. Remove one of the two."
                )
            judged[query][document] = grade
    if not any(grade > 0 for of in judged.values() for grade in of.values()):
        raise InputError(f"{files[0]} has no judgement above 0. Take another split.")
    return judged


def _table_rows(path: pathlib.Path) -> Iterator[tuple[str, str, float]]:
    ((_, rows),) = read_files(str(path))
    names = rows.column_names
    chosen = {}
    for what, known in (("query", QUERY), ("document", DOCUMENT), ("grade", GRADE)):
        found = [name for name in known if name in names]
        if found:
            chosen[what] = found[0]
        elif what != "grade":
            raise InputError(
                f"{path} has no column for the {what}; its columns are"
                f" {', '.join(names)}. Name it {' or '.join(known)}."
            )
    rows.select(chosen)
    for place in range(len(rows)):
        row, where = rows.row(place), f"{path}, row {place}"
        try:
            grade = float(row.get("grade", 1.0))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{where}: the grade is {row['grade']!r}; a number is needed."
            ) from error
        yield as_id(row["query"], where), as_id(row["document"], where), grade


def topics(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Id and text of each query in lines with a tab between, as TREC's tasks have them.

    Raises:
      InputError: a line without a tab, or not in UTF-8.
    """
    for number, _, line in Lines(path):
        try:
            key, tab, text = line.decode().rstrip("\r\n").partition("\t")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not UTF-8 ({error})."
            ) from error
        if not tab:
            raise InputError(
                f"{path}, line {number} is {line[:80]!r}; an id and a query with a tab"
                " between are needed."
            )
        yield as_id(key.strip(), f"{path}, line {number}"), text.strip()


def objects(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the object of each line of a JSONL file; InputError if broken."""
    for number, _, line in Lines(path):
        where = f"{path}, line {number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}).") from error
        if not isinstance(found, dict):
            raise InputError(f"{where} is {line[:80]!r}; an object is needed.")
        yield where, found
