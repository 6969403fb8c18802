"""Opens a stage's data, checks that it is unchanged, and guards it from bad records."""

import contextlib
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from rich.console import Console

from lsrjax.checkpoint import set_damaged_aside
from lsrjax.config import fields
from lsrjax.config.check_data import (
    has_languages,
    mines,
    reads_scores,
    reads_views,
)
from lsrjax.data import sources
from lsrjax.data.batching import languages, mixing
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.batching.requirements import Documents, check_stated
from lsrjax.data.examples import Pair
from lsrjax.data.reading import bad_records, unchanged_files
from lsrjax.data.reading.bad_records import BadRecords
from lsrjax.distributed import processes
from lsrjax.errors import InputError
from lsrjax.training.batch_contents import Contents


def open_sets(config, kind: str, folder: pathlib.Path, bad: BadRecords) -> list:
    """The training data sets, checked to be unchanged, and guarded."""
    if processes.is_first():
        unchanged_files.check_files(
            folder / unchanged_files.FILE, config.data, config.dev
        )
    sets = guarded_sets(config, kind, bad)
    if processes.is_first():
        unchanged_files.check_versions(folder / unchanged_files.FILE, sets)
    # Finds too few negatives before the first step, not when a row is drawn; on every
    # process, so that all end with the same message.
    several = max(mixing.group_sizes(config.data)) > 1
    if kind == "group" and several and not mines(config):
        look_through(sets)
    return sets


def guarded_sets(config, kind: str, bad: BadRecords) -> list:
    """The training data sets, whose bad records are replaced and counted."""
    own, names = not mines(config), list(config.data.sets) or [""]
    sizes = mixing.group_sizes(config.data)
    opened = mixing.open_sets(config.data, kind, mines(config))
    found = []
    for name, size, source in zip(names, sizes, opened, strict=True):
        check: Any = _translation if Contents.of(config).states_languages else None
        if kind == "group":
            check = documents(config, size, own)
        if hasattr(source, "place"):  # reading it may find a bad record
            scored = reads_scores(config)
            source = guarded(config, bad, source, name, scored, check)
        found.append(source)
    _check_languages(config, found)
    return found


def _check_languages(config, sets: Sequence) -> None:
    """Refuses what is by language where the data sets name none, or not enough.

    Raises:
      InputError: weights without effect, groups of a single language, or batches of
        languages that are to be of topics or data sets, too.
    """
    data = config.data
    stated = any(languages.named_by(one) for one in sets) or has_languages(
        config, "queries"
    )
    dev = sources.chosen(config.dev.source).entry
    by_language = languages.asked(data) or stated
    if languages.weighted(data) and dev.rows and not by_language:
        raise InputError(
            f"config.data.query_languages = {dict(data.query_languages)!r} would have"
            " no effect: the data names no language of its texts. Give rows a column"
            " language (or lang), or plain texts as a dict by language; or remove the"
            " weights."
        )
    if config.dro.groups == "languages":
        known = Contents.of(config).of_sets(sets).languages
        if len(known) < 2:
            raise InputError(
                "config.dro.groups is 'languages', but the texts are in"
                f" {', '.join(known) or 'no stated language'}: there are no two groups"
                " to weigh. Leave it empty, or name languages in the rows."
            )
    asked = {
        "data.topics": bool(data.topics),
        "data.batches_from = 'one'": data.batches_from == "one",
        "dro.groups = 'sets'": config.dro.groups == "sets",
    }
    if languages.scheduled(data, sets) and any(asked.values()):
        raise InputError(
            f"config.{', '.join(name for name, one in asked.items() if one)}: here"
            " languages have shares of the draws (data.batches_from = 'language',"
            " data.language_temperature, or data.query_languages of rows that name"
            " their language), which are not by topic or data set. Give up one of them."
        )


def look_through(sets: Sequence, until: float = math.inf) -> int:
    """Checks the records of guarded sets, except for texts given by id.

    Args:
      sets: from `guarded_sets`.
      until: time of `time.monotonic` at which to stop.

    Returns:
      The number of records checked; sources that cannot have bad records count whole.

    Raises:
      InputError: a set has more bad records than allowed.
    """
    return sum(
        one.look_through(until) if isinstance(one, bad_records.Replacing) else len(one)
        for one in sets
    )


@contextlib.contextmanager
def tried(config, kind: str, seconds: float) -> Iterator[tuple[list, int, BadRecords]]:
    """The training data sets as a stage will find them, without its folder.

    Yields:
      The sets, the number of records checked within `seconds`, and the bad records.

    Raises:
      InputError: a set has more bad records than allowed.
    """
    # The list of bad records in the run's own folder is written when it starts.
    with tempfile.TemporaryDirectory() as folder:
        bad = BadRecords(pathlib.Path(folder))
        sets = guarded_sets(config, kind, bad)
        seen = look_through(sets, time.monotonic() + seconds)
        for one in sets:
            one[0]  # with its texts by id
        yield sets, seen, bad


def guarded(config, bad: BadRecords, source, name: str, scored: bool, check):
    """A source whose bad records are replaced, and counted in `bad`.

    Args:
      scored: a record without the teacher's scores is bad.
      check: raises on a bad example; None: no further check.
    """
    return bad.guard(
        source,
        name=name,
        seed=config.seed,
        share=config.data.bad_records,
        scored=scored,
        check=check or (lambda example: None),
    )


def documents(config, size: int, own: bool) -> Documents:
    """The requirements on a group's documents; on its own negatives only if `own`."""
    data = config.data
    return Documents(
        choice_of(data) if own else None,
        size,
        data.mixing,
        data.document_languages,
        reads_views(config),
        Contents.of(config).states_languages,
    )


def _translation(pair: Pair) -> None:
    """The requirement on a pair, if each text is encoded in its own language."""
    check_stated(pair.id, "translation", [pair.language])


def accept_changed(config, kind: str, folder: pathlib.Path) -> list[str]:
    """Records a stage's changed data as its own; returns descriptions of the changes.

    What was made from the old data is then made again, see `made_data`.

    Raises:
      InputError: data that is missing or broken.
    """
    path = folder / unchanged_files.FILE
    if not path.is_file():
        return []
    sets = mixing.open_sets(config.data, kind, mines(config))
    changes = unchanged_files.accept(path, config.data, config.dev, sets)
    if changes:
        bad_records.remove(folder)
    return changes


def accept_all_changed(run_config, workdir: pathlib.Path, console: Console) -> None:
    """Accepts changed data of the unfinished stages, and prints what changed."""
    if processes.is_first():
        for name, stage in fields.stages(run_config).items():
            if set_damaged_aside.finished_steps(workdir / name) is not None:
                continue
            kind = Contents.of(stage).kind
            for change in accept_changed(stage, kind, workdir / name):
                console.print(
                    f"Stage {name}: accepted, as --accept_changed_data says: {change}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
    processes.wait_for_all("changed data")


def bad_records_of(name: str, folder: pathlib.Path, bad=None) -> BadRecords:
    """All processes' bad records, merged into one file; none may be reading data."""
    if processes.is_first():
        bad_records.merge(folder)
    processes.wait_for_all(f"bad records of {name}")
    if bad is None:
        return BadRecords(folder, jax.process_index())
    bad.reload()
    return bad
