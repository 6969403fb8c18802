"""The trackers that a run's config names, with what they receive of the run."""

import json
import pathlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lsrjax
from lsrjax import options
from lsrjax.config import fields
from lsrjax.trackers.in_thread import InThread
from lsrjax.trackers.table import TRACKERS
from lsrjax.trackers.tracker import RunFacts

_GIT_SECONDS = 10


def opened(
    run_config, workdir: pathlib.Path, note: Callable[[str], None]
) -> list[InThread]:
    """The trackers of `config.log.trackers`, each in its own thread.

    Raises:
      InputError: a library is missing, or an account.
    """
    chosen = options.resolve_each(
        TRACKERS, run_config.log.trackers, "config.log.trackers"
    )
    if not chosen:
        return []
    for one in chosen:
        one.entry.library(one.options)
    facts = RunFacts(
        workdir.absolute().name, workdir.absolute(), parameters(run_config)
    )
    return [InThread(one, facts, note) for one in chosen]


def parameters(run_config) -> dict[str, str | int | float | bool]:
    """A run's config by dotted name, with the version and git revision."""
    given = run_config.log.trackers
    found: dict[str, Any] = {"lsrjax": lsrjax.__version__, **revision()}
    for name, stage in fields.stages(run_config).items():
        values = json.loads(stage.to_json())
        values.pop("stages")
        # Where the numbers go is no parameter of theirs, and may name a server.
        values["log"].pop("trackers")
        found |= _flat(values, f"{name}." if len(run_config.stages) else "")
    return found | {"trackers": ", ".join(given)}


def revision() -> dict[str, str]:
    """The git revision of the current folder, whose configs the run is made from.

    Returns:
      `git_revision`, with `+` if files differ from it; nothing outside of git.
    """
    try:
        found = [
            subprocess.run(
                ["git", *command],
                capture_output=True,
                text=True,
                timeout=_GIT_SECONDS,
                check=True,
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_revision": found[0] + ("+" if found[1] else "")}


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            yield f"{prefix}{key}", value if plain else json.dumps(value)
