"""Records that cannot be trained on: counted, listed, and replaced by others.

Which record replaces a bad one is a function of (seed, its index), so every process,
thread and restart sees the same examples.
"""

import itertools
import json
import math
import pathlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.data.batching.orders import REPLACE
from lsrjax.data.examples import Group, Items, Pair
from lsrjax.errors import InputError
from lsrjax.json_files import write_whole

FILE = "bad_records.jsonl"
# The kinds of errors.
EMPTY = "empty text"
TYPE = "wrong type"
UTF8 = "broken UTF-8"
JSON = "broken JSON"
SCORE = "bad score"
UNSCORED = "no scores"
ID = "unknown id"
POSITIVE = "no positive"
NEGATIVE = "too few negatives"
LANGUAGE = "missing language"
SHOWN = 200  # characters of a record in `FILE`
_BLOCK = 1024  # records between checks of the time
_EXAMPLES, _SENTENCE = 5, 300  # in the error; characters of each


class BadRecord(InputError):
    """A record that cannot be trained on.

    Attributes:
      kind: one of those above.
      place: the file, and the line or row, if the record knows them.
    """

    def __init__(self, kind: str, message: str, place: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.kind, self.place = kind, dict(place or {})


class BadRecords:
    """The bad records of a stage's data, over all of its processes and starts.

    Each process appends to its own file. `merge` makes one of them, without duplicates
    and in the order of the data.
    """

    def __init__(self, folder: pathlib.Path, process: int = 0):
        """Reads what was found before; `merge` comes first, in one process."""
        self._folder = folder
        self._own = folder / (f"bad_records.{process}.jsonl" if process else FILE)
        self._lock = threading.Lock()
        self._guarded: list[Replacing] = []
        self.reload()

    def reload(self) -> None:
        """Reads the files again, after they were merged."""
        with self._lock:
            self._entries: dict[tuple, dict] = {}
            self._counts: Counter[str] = Counter()  # of records, by data set
            self._read_up_to: dict[pathlib.Path, int] = {}
        self._refresh()

    def guard(
        self,
        source,
        *,
        name: str,
        seed: int,
        share: float,
        scored: bool,
        check: Callable[[Any], None] = lambda example: None,
    ) -> "Replacing":
        """The source with its bad records replaced.

        Args:
          source: `Rows`, whose reading raises `BadRecord`.
          name: of the data set among several, or "".
          share: of its records that may be bad.
          scored: whether examples without a teacher's scores are bad, too.
          check: raises `BadRecord` for other examples that are bad.

        Raises:
          InputError: more than the share of the texts by id cannot be read, or more
            records than the share were found before.
        """
        guarded = Replacing(
            source,
            self,
            name=name,
            seed=seed,
            share=share,
            scored=scored,
            check=check,
        )
        self._guarded.append(guarded)
        self._check_texts(source, share)
        guarded.check()
        return guarded

    def _check_texts(self, source, share: float) -> None:
        bad = getattr(source, "bad_texts", ())
        for error in bad:
            self.add(_entry("", None, error, error.place))
        total = getattr(source, "texts", 0) + len(bad)
        if len(bad) > share * total:
            what = "lines of the files of texts by id"
            raise InputError(_refusal(map(str, bad), _kinds(bad), total, share, what))

    def add(self, entry: dict) -> None:
        """Records an entry, unless it is known."""
        with self._lock:
            if self._take(entry):
                with open(self._own, "a", encoding="utf-8") as file:
                    file.write(_line(entry))

    def count(self, name: str) -> int:
        """Bad records of a data set that any process has found."""
        self._refresh()
        return self._counts[name]

    def of(self, name: str) -> list[dict]:
        """The entries of these records, in order."""
        with self._lock:
            found = [e for e in self._entries.values() if e["index"] is not None]
        return sorted((e for e in found if e["set"] == name), key=_order)

    def reasons(self, most: int) -> list[str]:
        """Why some of the records are bad, at most `most`."""
        with self._lock:
            entries = itertools.islice(self._entries.values(), most)
            return [entry["reason"][:_SENTENCE] for entry in entries]

    def summary(self) -> str:
        """The number of replaced records, by kind; InputError if too many in a set."""
        for guarded in self._guarded:
            guarded.check()
        with self._lock:
            entries = list(self._entries.values())
        said = []
        for texts, one, more in (
            (False, "record was replaced", "records were replaced"),
            (True, "text left out", "texts left out"),
        ):
            chosen = [e for e in entries if (e["index"] is None) == texts]
            if chosen:
                kinds = Counter(e["kind"] for e in chosen)
                what = one if len(chosen) == 1 else more
                said.append(f"{len(chosen):,} bad {what} ({_counts(kinds)})")
        shown = f"; {self._folder / FILE} names them" if said else ""
        return " and ".join(said) + shown

    def _refresh(self) -> None:
        with self._lock:
            for path in _files(self._folder):
                start = self._read_up_to.get(path, 0)
                with open(path, "rb") as file:
                    file.seek(start)
                    new = file.read()
                whole = new[: new.rfind(b"\n") + 1]
                self._read_up_to[path] = start + len(whole)
                for entry in _entries(whole):
                    self._take(entry)

    def _take(self, entry: dict) -> bool:
        """Adds an entry; whether it is a new one."""
        if _key(entry) in self._entries:
            return False
        self._entries[_key(entry)] = entry
        if entry["index"] is not None:
            self._counts[entry["set"]] += 1
        return True


def merge(folder: pathlib.Path) -> None:
    """Makes one file of those of the processes; no process may be writing.

    Records for which the run had not found a replacement are left out: they will be
    found again.
    """
    found: dict[tuple, dict] = {}
    paths = _files(folder)
    for path in paths:
        for entry in _entries(path.read_bytes()):
            if entry["index"] is None or entry["replaced_by"] is not None:
                found.setdefault(_key(entry), entry)
    if not paths:
        return
    write_whole(folder / FILE, "".join(map(_line, sorted(found.values(), key=_order))))
    for path in paths:
        if path.name != FILE:
            path.unlink()


def remove(folder: pathlib.Path) -> None:
    """Deletes what was found, for other data; no process may be writing."""
    for path in _files(folder):
        path.unlink()


class Replacing(Items[Pair | Group]):
    """A source in which other records replace the bad ones."""

    def __init__(
        self,
        source,
        found: BadRecords,
        *,
        name: str,
        seed: int,
        share: float,
        scored: bool,
        check: Callable[[Any], None],
    ):
        """Like `BadRecords.guard`."""
        self.description = source.description
        self._source, self._found, self._name = source, found, name
        self._seed, self._share, self._scored = seed, share, scored
        self._fits = check
        self._lock = threading.Lock()
        self._bad: set[int] = set()
        self._replaced: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int):
        """The example, or its replacement; InputError if too many are bad."""
        try:
            return self._read(self._replaced.get(index, index))
        except BadRecord as error:
            bad = error
        with self._lock:
            if index not in self._replaced:
                self._replace(index, bad)
        return self._read(self._replaced[index])

    @property
    def names_languages(self) -> bool:
        """Whether the source's rows name their language."""
        return getattr(self._source, "names_languages", False)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the source's rows name."""
        return getattr(self._source, "languages", ())

    @property
    def documents(self) -> Sequence:
        """The documents of the source's corpus."""
        return getattr(self._source, "documents", ())

    def place(self, index: int) -> dict[str, Any]:
        """The place of the record that replaces an example, or of its own."""
        return self._source.place(self._replaced.get(index, index))

    def look_through(self, until: float = math.inf) -> int:
        """Finds and replaces bad records, without reading texts by id.

        Stops at `until`, as of `time.monotonic`. Returns how many were checked.

        Raises:
          InputError: too many records are bad.
        """
        read = getattr(self._source, "peek", self._source.__getitem__)
        bad: list[tuple[int, BadRecord]] = []
        kinds: Counter[str] = Counter()
        seen = len(self)
        for index in range(len(self)):
            if index % _BLOCK == 0 and time.monotonic() > until:
                seen = index
                break
            try:
                self._checked(read(index))
            except BadRecord as error:
                kinds[error.kind] += 1
                if len(bad) <= self._share * len(self):
                    bad.append((index, error))
        if kinds.total() > self._share * len(self):
            entries = (
                _entry(self._name, index, error, self._source.place(index))
                for index, error in bad
            )
            raise InputError(self._too_many(entries, kinds))
        for index, _ in bad:
            self[index]
        return seen

    def check(self) -> None:
        """Raises InputError if all processes together found too many bad records."""
        if self._found.count(self._name) > self._share * len(self):
            entries = self._found.of(self._name)
            kinds = Counter(e["kind"] for e in entries)
            raise InputError(self._too_many(entries, kinds))

    def _too_many(self, entries: Iterable[dict], kinds: Counter) -> str:
        what = f"records of config.data{self._name and f'.sets.{self._name}'}"
        reasons = (
            (f"line {e['line']}: " if "line" in e else "") + e["reason"]
            for e in entries
        )
        return _refusal(reasons, kinds, len(self), self._share, what)

    def _read(self, index: int):
        return self._checked(self._source[index])

    def _checked(self, example):
        if self._scored and example.scores is None:
            raise BadRecord(
                UNSCORED,
                f"{example.id}: no teacher scores (pos_scores, neg_scores), which the"
                " loss or the choice of negatives needs. Add them, let"
                " config.prepare.scores compute them, or, where labels are the scores,"
                " set the format's option grades.",
            )
        self._fits(example)
        return example

    def _replace(self, index: int, error: BadRecord) -> None:
        todo = {index: error}
        while todo:
            bad, error = todo.popitem()
            self._bad.add(bad)
            chosen = None
            for other in self._others(bad):
                if len(self._bad) > self._share * len(self):
                    break
                if other in self._bad:
                    continue
                try:
                    self._read(other)
                except BadRecord as another:
                    todo[other] = another
                    self._bad.add(other)
                else:
                    chosen = other
                    break
            place = self._source.place(bad)
            self._found.add(_entry(self._name, bad, error, place, chosen))
            if chosen is not None:
                self._replaced[bad] = chosen
        self.check()

    def _others(self, index: int) -> Iterator[int]:
        """The candidate replacements, in order: a function of (seed, index)."""
        for attempt in itertools.count():
            rng = np.random.default_rng((self._seed, REPLACE, index, attempt))
            yield int(rng.integers(len(self)))


def _entry(name, index, error: BadRecord, place, replaced_by=None) -> dict:
    return {
        "set": name,
        "index": index,
        "kind": error.kind,
        "reason": str(error)[: 2 * SHOWN],
        **place,
        "replaced_by": replaced_by,
    }


def _key(entry: Mapping) -> tuple:
    if entry["index"] is not None:
        return entry["set"], entry["index"]
    return entry["file"], entry.get("line"), entry.get("row")


def _order(entry: Mapping) -> tuple:
    texts = entry["index"] is None
    place = entry.get("line", entry.get("row")) if texts else entry["index"]
    return texts, entry["set"], entry["file"] if texts else "", place


def _line(entry: Mapping) -> str:
    # Escaped, so that lone surrogates, which a record may contain, can be written.
    return json.dumps(entry) + "\n"


def _entries(lines: bytes) -> Iterator[dict]:
    """The entries of complete lines: a killed run may have left a partial one."""
    for line in lines.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("bad_records*.jsonl"))


def _kinds(errors: Iterable[BadRecord]) -> Counter:
    return Counter(error.kind for error in errors)


def _counts(kinds: Counter) -> str:
    return ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items()))


def _refusal(reasons, kinds: Counter, total: int, share: float, what: str) -> str:
    count = kinds.total()
    shown = "\n".join(
        f"  {reason[:_SENTENCE]}" for reason in itertools.islice(reasons, _EXAMPLES)
    )
    if set(kinds) == {UNSCORED}:
        return (
            f"{count:,} record{'s' * (count != 1)} so far among {total:,} {what}"
            " without a teacher's scores, which the loss or the choice of negatives"
            f" needs:\n{shown}\nLet a teacher compute them: config.prepare.scores ="
            " 'teacher' and config.teacher.model, an English SPLADE or a cross-encoder."
            " If they are in other columns, name these in config.data.format"
            " (pos_scores, neg_scores). Or train without them, as with"
            " config.loss = {'infonce': {}}."
        )
    if set(kinds) == {NEGATIVE} and count == total:
        return (
            f"None of the {total:,} {what} has enough negatives:\n{shown}\nMine them"
            " (config.prepare.negatives = 'bm25'), loosen the filters, or lower"
            " config.data.group_size: at 1, a query has its positive only."
        )
    # Rounded up, so that it suffices.
    needed = math.ceil(count / total * 1e6) / 1e6
    # With all of them bad, there is none to replace them by.
    allow = (
        f", or allow more: config.data.bad_records = {needed:g} or above replaces as"
        " many by others."
    )
    return (
        f"{count:,} bad record{'s' * (count != 1)} ({_counts(kinds)}) so far among"
        f" {total:,} {what};"
        f" config.data.bad_records = {share:g} allows"
        f" {math.floor(share * total):,}:\n{shown}\nPut the data right"
        + (allow if needed < 1 else ".")
    )
