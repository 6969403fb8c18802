"""Binds a work directory to the config it was started with."""

import contextlib
import copy
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator

from lsrjax import json_files, options
from lsrjax.config import fields
from lsrjax.config.schema import Rows, Run
from lsrjax.distributed import processes
from lsrjax.errors import InputError
from lsrjax.retrieval.results_file import RESULTS_FILE
from lsrjax.training import left_out, resume

FILE = "config.json"
# Fields that change no result; a resumed run may change them, as for other devices.
_FREE = re.compile(
    r"\.(mesh|memory|log|watchdog)\.|\.checkpoint\.(on_full_disk|push|push_when)$|"
    r"\.data\.(threads|prefetch|length_parts|length_multiple|bad_records)$"
)
# In place of a stage's name, for fields that only the evaluation reads.
_EVALUATION = ""
_SHOWN = 20


def keep(run_config, workdir: pathlib.Path) -> None:
    """Stores the config in the work directory; refuses one that conflicts with it.

    A stage's fields bind once it has saved a state, the evaluation's once it has
    results. Until then the config may be corrected.

    Raises:
      InputError: a binding field differs, or the stored config is damaged.
    """
    path = workdir / FILE
    values = json.loads(run_config.to_json())
    changed = set()
    if path.is_file():
        changed = _changed(path, values, workdir)
    # Every process has read the file before the first one overwrites it.
    processes.wait_for_all("config is read")
    if processes.is_first():
        for stage in changed - {_EVALUATION}:
            (workdir / stage / left_out.FILE).unlink(missing_ok=True)
        json_files.write_json(path, values)
    processes.wait_for_all("config")


def _changed(path: pathlib.Path, values: dict, workdir: pathlib.Path) -> set[str]:
    """The stages whose config has changed; refuses those that may not change."""
    begun = {one.name for one in workdir.iterdir() if resume.has_begun(one)}
    if (workdir / RESULTS_FILE).is_file():
        begun.add(_EVALUATION)
    advice = (
        "So it cannot be said whether the run was begun with this config. If it was,"
        " delete that file, and start again: it is written anew."
    )
    try:
        found = json_files.read_json(path, advice, _config)
    except InputError:
        if not begun:
            return set()
        raise
    found, values = _with_all_options(found), _with_all_options(values)
    default = _with_all_options(json.loads(fields.get_default().to_json()))
    default["stages"] = dict.fromkeys((*found["stages"], *values["stages"]), default)
    several = bool(found["stages"]) and bool(values["stages"])
    differences = [
        (_owner(field, several), f"  {field}: there {there!r}, asked {asked!r}")
        for field, there, asked in _differences(found, values, default)
        if not _FREE.search(field)
    ]
    binding = [line for stage, line in differences if stage in begun]
    if binding:
        raise InputError(
            f"{workdir} holds a run with another config:\n"
            + "\n".join(binding[:_SHOWN])
            + "\nUse another --workdir, or remove this one to start over. (Stages that"
            " have saved nothing yet may have another config.)"
        )
    return {stage for stage, _ in differences}


def _config(values: dict) -> dict:
    if not isinstance(values.get("stages"), dict):
        raise ValueError("it holds no config")
    return values


def _with_all_options(values: dict) -> dict:
    """A config whose entries have every option: a default may be spelled out."""
    values = copy.deepcopy(values)
    if values["stages"]:
        # What binds a stage is the seed that it had.
        with contextlib.suppress(KeyError, TypeError):
            for stage in values["stages"].values():
                stage["seed"] += values["seed"]
            values["seed"] = 0
    for stage in (values, *values["stages"].values()):
        # Entries of an earlier lsrjax may be unknown: they differ.
        with contextlib.suppress(InputError, KeyError, TypeError, AttributeError):
            _spell_out(stage, Run)
            sets = stage["data"]["sets"]
            for name, own in sets.items():
                sets[name] = json.loads(fields.blank(Rows).to_json()) | own
                _spell_out(sets[name], Rows)
    # As JSON has them, whose lists are no tuples.
    return json.loads(json.dumps(values))


def _spell_out(values: dict, kind: type) -> None:
    """Gives the entries among a group's fields all of their options."""
    for field in dataclasses.fields(kind):
        if field.metadata.get("table") is not None:
            given = values[field.name]
            found = options.named_by(field, given, FILE, options.find_known)
            values[field.name] = options.plain(found)
        elif dataclasses.is_dataclass(field.default_factory):
            _spell_out(values[field.name], field.default_factory)


def _owner(field: str, several: bool) -> str:
    """The stage of a field; of several stages, outside fields are the evaluation's."""
    parts = field.split(".")
    if parts[1] == "stages" and len(parts) > 2:
        return parts[2]
    return _EVALUATION if several or parts[1] == "evaluate" else fields.ONLY_STAGE


def _differences(found, wanted, default, prefix="config") -> Iterator[tuple]:
    """Fields that differ; one unknown to an earlier lsrjax counts as its default."""
    for key in [*found, *(k for k in wanted if k not in found)]:
        # A stage has no default: it exists or not.
        unset = None if prefix == "config.stages" else default.get(key)
        a, b = found.get(key, unset), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            below = default.get(key)
            below = below if isinstance(below, dict) else {}
            yield from _differences(a, b, below, f"{prefix}.{key}")
        elif a != b:
            yield f"{prefix}.{key}", a, b
