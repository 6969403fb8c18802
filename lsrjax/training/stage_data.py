"""A stage's data: opened, checked against what it was, and guarded."""

import contextlib
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
from rich.console import Console

from lsrjax.checkpoint import set_damaged_aside
from lsrjax.config import fields
from lsrjax.config.check_data import mines, reads_scores
from lsrjax.config.fields import language_weights
from lsrjax.data.batching import mixing
from lsrjax.data.batching.negatives import choice_of
from lsrjax.data.batching.requirements import Documents
from lsrjax.data.reading import bad_records, unchanged_files
from lsrjax.data.reading.bad_records import BadRecords
from lsrjax.data.reading.rows import Rows
from lsrjax.distributed import processes
from lsrjax.training.batch_contents import Contents


def open_sets(config, kind: str, folder: pathlib.Path, bad: BadRecords) -> list:
    """The training data's sets, checked against what they were and guarded."""
    if processes.is_first():
        unchanged_files.check_files(
            folder / unchanged_files.FILE, config.data, config.dev
        )
    sets = guarded_sets(config, kind, bad)
    if processes.is_first():
        unchanged_files.check_versions(folder / unchanged_files.FILE, sets)
    # Too few negatives show before the first step, not when a row is drawn; to every
    # process, so that all end with the same message.
    if kind == "group" and config.data.group_size > 1 and not mines(config):
        look_through(sets)
    return sets


def guarded_sets(config, kind: str, bad: BadRecords) -> list:
    """The training data's sets, whose bad records are replaced and counted."""
    check = documents(config, own=not mines(config)) if kind == "group" else None
    names = list(config.data.sets) or [""]
    return [
        guarded(config, bad, source, name, reads_scores(config), check)
        if isinstance(source, Rows)
        else source
        for name, source in zip(
            names, mixing.open_sets(config.data, kind, mines(config)), strict=True
        )
    ]


def look_through(sets: Sequence, until: float = math.inf) -> int:
    """Finds what is bad in any record of guarded sets, but for texts by id.

    Args:
      sets: as of `guarded_sets`.
      until: by `time.monotonic`, when to leave off.

    Returns:
      How many records were looked at, or are of sources that have no bad ones.

    Raises:
      InputError: more of a set's records are bad than may be.
    """
    return sum(
        one.look_through(until) if isinstance(one, bad_records.Replacing) else len(one)
        for one in sets
    )


@contextlib.contextmanager
def tried(config, kind: str, seconds: float) -> Iterator[tuple[list, int, BadRecords]]:
    """The training data's sets as a stage will find them, without its folder.

    Args:
      kind: of its examples.
      seconds: how long their records are looked through, at most.

    Yields:
      The sets, how many records were looked at, and what is bad.

    Raises:
      InputError: more of a set's records are bad than may be.
    """
    # What is bad is named in the run's own folder once it starts.
    with tempfile.TemporaryDirectory() as folder:
        bad = BadRecords(pathlib.Path(folder))
        sets = guarded_sets(config, kind, bad)
        seen = look_through(sets, time.monotonic() + seconds)
        for one in sets:
            one[0]  # with its texts by id
        yield sets, seen, bad


def guarded(config, bad: BadRecords, source, name: str, scored: bool, check):
    """A source whose bad records are replaced and counted in `bad`.

    Args:
      scored: a record without a teacher's scores is bad.
      check: raises what is wrong with an example; None: nothing is.
    """
    return bad.guard(
        source,
        name=name,
        seed=config.seed,
        share=config.data.bad_records,
        scored=scored,
        check=check or (lambda example: None),
    )


def documents(config, own: bool) -> Documents:
    """What is asked of a group's documents; of its `own` negatives only if asked."""
    data = config.data
    return Documents(
        choice_of(data) if own else None,
        data.group_size,
        data.mixing,
        language_weights(data.document_languages, "document_languages"),
    )


def accept_changed(config, kind: str, folder: pathlib.Path) -> list[str]:
    """Takes changed data of a stage for its own.

    What was made of the old is then made again, see `_made_from`.

    Returns:
      What has changed, in words.

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
    """Takes changed data of the stages that are not finished as it is; says so."""
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
    """What all processes have found, in one file; no process may be looking."""
    if processes.is_first():
        bad_records.merge(folder)
    processes.wait_for_all(f"bad records of {name}")
    if bad is None:
        return BadRecords(folder, jax.process_index())
    bad.reload()
    return bad
