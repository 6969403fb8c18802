"""Records which models a stage started with, so that their names keep their meaning.

A folder's files may be replaced, and a hub id names the newest commit. So a stage
records the digests of a folder's files, and the commit of a repository, in its
`models.json`, and compares them at every start.
"""

import hashlib
import json
import pathlib

from lsrjax import json_files
from lsrjax.checkpoint import digests, names_on_disk, saved_model
from lsrjax.convert import references
from lsrjax.convert.read import hub
from lsrjax.distributed import processes
from lsrjax.errors import InputError

FILE = "models.json"
# Weights, configs and vocabularies; other files of a folder, as a README, may change.
_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")
_KEY_FILES = ("config.json", "modules.json", "tokenizer.json", names_on_disk.MODEL_FILE)
_SHOWN = 5


def checked(config, workdir: pathlib.Path, folder: pathlib.Path) -> dict | None:
    """`of_stage`, compared with what the stage started with; None but in process 0."""
    if not processes.is_first():
        return None
    found = of_stage(config, workdir)
    check(folder / FILE, found)
    return found


def of_stage(config, workdir: pathlib.Path) -> dict[str, dict]:
    """The state of the models that a stage's config names, by field.

    Returns:
      For each field that names a model: its `name`, and the `commit` of a hub
      repository or the digests of the `files` of a stage or folder.
    """
    found = {}
    for field, name in references.of_stage(config).items():
        if not name.startswith("embedded:"):
            found[field] = {"name": name, **_state(name, workdir)}
    return found


def _state(name: str, workdir: pathlib.Path) -> dict:
    if name.startswith("stage:"):
        return {"files": _stage_files(workdir / name.removeprefix("stage:"))}
    if hub.is_local(name):
        folder = hub.local_folder(name)
        stages = saved_model.stage_folders(folder)
        if stages:
            return {"files": _stage_files(stages[0])}
        paths = [p for p in folder.rglob("*") if p.suffix in _SUFFIXES and p.is_file()]
        return {"files": digests.of_files(folder, paths)}
    # The hub's client caches files in a folder named by the commit.
    return {"commit": hub.fetch(name, _KEY_FILES).name}


def _stage_files(folder: pathlib.Path) -> dict[str, str]:
    """The digest of the last checkpoint's record, which covers all its files."""
    steps = digests.recorded_steps(folder)
    paths = [digests.record_path(folder, step) for step in steps[-1:]]
    return digests.of_files(folder, paths)


def check(path: pathlib.Path, found: dict[str, dict]) -> None:
    """Compares a stage's models with those it started with; records them if new.

    Raises:
      InputError: a model has changed; says the field, the name, and what differs.
    """
    known = {}
    if path.is_file():
        advice = "Delete it; it is made again from the models."
        known, changes = json_files.read_json(
            path, advice, lambda known: (known, _all_changes(known, found))
        )
        if changes:
            shown = "\n".join(f"  {change}" for change in changes[:_SHOWN])
            raise InputError(
                f"A model has changed since the stage began ({path} has what it was):\n"
                f"{shown}\nPut it back as it was, or start over with another --workdir."
                " Of the hub, a model is pinned as id@commit. To go on with the other"
                f" model all the same, delete {path}."
            )
    if found and known != found:
        json_files.write_json(path, found)


def _all_changes(known: dict, found: dict) -> list[str]:
    return [
        change
        for field, now in found.items()
        if (then := known.get(field)) and then["name"] == now["name"]
        for change in _changes(field, then, now)
    ]


def _changes(field: str, then: dict, now: dict):
    # A stage of this run is bound by its own checkpoints.
    if then["name"].startswith("stage:"):
        return
    model = f"config.{field} = {now['name']!r}"
    if then.get("commit") != now.get("commit"):
        yield f"{model}: was commit {then.get('commit')}, and is {now.get('commit')}"
    before, after = then.get("files", {}), now.get("files", {})
    for file in sorted(before.keys() | after.keys()):
        if file not in after:
            yield f"{model}: {file} is missing"
        elif file not in before:
            yield f"{model}: {file} is new"
        elif before[file] != after[file]:
            yield f"{model}: {file} has changed"


def key(*parts) -> str:
    """A digest of values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
