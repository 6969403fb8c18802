"""Finds errors of later stages before the first one is trained."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lsrjax import errors
from lsrjax.checkpoint import names_on_disk, saved_model, set_damaged_aside
from lsrjax.config import check_stage, check_tasks, fields
from lsrjax.convert import references
from lsrjax.convert.read import hub
from lsrjax.errors import InputError
from lsrjax.options import Chosen
from lsrjax.training import (
    dev_data,
    memory_plan,
    optimizer,
    pushes,
    stage_batches,
    stage_data,
    stage_models,
    train_step,
)
from lsrjax.training.batch_contents import Contents

# Every model has one of these; a Router and an adapter have no config.json.
KEY_FILES = (
    *("config.json", "modules.json", "adapter_config.json"),
    names_on_disk.MODEL_FILE,
)
LOOK_SECONDS = 120.0  # for a stage's data


def look(run_config, workdir: pathlib.Path) -> None:
    """Opens the data and finds the models of all unfinished stages.

    The data of a run of one stage are left to the training, which opens them at once,
    unless something else is missing.

    Raises:
      InputError: names the stages, and all that cannot be used.
    """
    stages = fields.stages(run_config)
    left = {
        name: stage
        for name, stage in stages.items()
        if set_damaged_aside.finished_steps(workdir / name) is None
    }
    if not left:
        return
    with errors.together() as each:
        list(look_at_tasks(run_config, left, each))
        for name, stage in left.items():
            with each, _named(name):
                pushes.check(stage)
            for field, reference in references.of_stage(stage).items():
                if field != "tokenizer":
                    with each, _named(name):
                        _find(reference, f"config.{field}")
        if len(stages) == 1 and not each.messages:
            return
        for position, (name, stage) in enumerate(left.items()):
            with each, _named(name):
                # The first stage checks its records when it starts.
                _open(stage, Contents.of(stage), LOOK_SECONDS if position else 0.0)
        if not each.messages:
            check_models(memory_plan.plan_stages(run_config), left, each)


def check_models(
    plans: Mapping[str, Any], stages: Mapping[str, Any], each: errors.Each
) -> None:
    """Checks teachers, patterns and lengths against the models of planned stages."""
    for name, stage in stages.items():
        spec, teacher = plans[name].spec, plans[name].teacher
        if teacher is not None:
            with each, _named(name):
                contents = Contents.of(stage)
                stage_models.check_teacher(contents, spec, teacher, stage.teacher.model)
        with each, _named(name):
            still = train_step.frozen_of(stage, spec)
            optimizer.make_optimizer(stage.optim, 1, still)
        with each, _named(name):
            stage_batches.check_languages(Contents.of(stage), (), spec.encoder)
        limit = spec.encoder.max_length
        for field in Contents.of(stage).length_fields:
            with each, _named(name):
                stage_batches.check_length(stage.data, field, limit)


@contextlib.contextmanager
def _named(stage: str):
    """Prefixes errors with the stage's name."""
    try:
        yield
    except InputError as error:
        said = [f"Stage {stage}: {message}" for message in error.args]
        raise InputError(*said) from error


def _find(reference: str, field: str) -> None:
    """Checks that a model exists, without reading weights."""
    if reference.startswith("stage:"):
        return
    if hub.is_local(reference) and saved_model.holds_stages(reference):
        return
    folder = hub.fetch(reference, KEY_FILES)
    found = [folder / name for name in KEY_FILES if (folder / name).is_file()]
    if not found:
        raise InputError(
            f"{field} is {reference!r}, but {folder} has none of"
            f" {', '.join(KEY_FILES)}: it is no model."
        )
    for path in found:
        try:
            json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise InputError(f"{field}: {path} is damaged ({error}).") from error


def look_at_tasks(
    run_config, stages: Mapping[str, Any], each: errors.Each
) -> Iterator[str]:
    """Reads the benchmarks of stages and of the run, and yields a line for each.

    What is missing is known before the training, not after it, and kept in `each`.
    """
    for name, stage in stages.items():
        with each, _named(name):
            if chosen := check_tasks.of_dev(stage):
                yield f"stage {name}: {_read(chosen, 'config.dev.task')}"
    for label, chosen in check_tasks.evaluated(run_config).items():
        where = f"config.evaluate.tasks[{label!r}]"
        with each:
            yield f"evaluation: {_read(chosen, where)}"


def _read(chosen: Chosen, where: str) -> str:
    """Reads the corpora of a benchmark one by one, as long as the time allows."""
    parts = chosen.entry.parts(chosen.options)
    until = time.monotonic() + LOOK_SECONDS
    documents = queries = seen = 0
    try:
        for part in parts:
            task = chosen.entry.load(part)
            documents += len(task.corpus)
            queries += len(task.queries)
            seen += 1
            if time.monotonic() > until:
                break
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    text = f"{chosen.name}, {queries:,} queries, {documents:,} documents"
    few = f" (the first {seen:,} of {len(parts):,} corpora looked at)"
    return text + few * (seen < len(parts))


def _open(stage, contents: Contents, seconds: float) -> None:
    """Opens a stage's training and dev data."""
    with stage_data.tried(stage, contents.kind, seconds) as (sets, *_):
        examples = sum(map(len, sets))
    if stage.dev.source.name:
        dev_data.dev_examples(stage, contents.kind)
    check_stage.check_warmup(stage, contents.steps(examples), "config")
