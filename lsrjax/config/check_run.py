"""The checks of a run's config, before anything is loaded."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from lsrjax.config import secrets
from lsrjax.config.check_stage import check_references, check_stage
from lsrjax.config.check_tasks import evaluated
from lsrjax.config.fields import blank, get_default, leaves, stages
from lsrjax.config.moved import check_spelling, place
from lsrjax.config.nodes import Entry
from lsrjax.config.other_names import not_a_field
from lsrjax.config.schema import Rows, Run
from lsrjax.data.debian_texts.embedded import LANGUAGES
from lsrjax.data.examples import ANY
from lsrjax.errors import InputError
from lsrjax.options import check_no_effect, checked
from lsrjax.retrieval.result_tables import TASKS


def validate(config: ConfigDict) -> None:
    """Checks a run's config.

    Raises:
      InputError: an unknown field, value or combination, an option without effect, or a
        token; names the field and what to do.
    """
    default = get_default()
    _check_fields(config, default, "config")
    if found := secrets.in_config(config):
        raise InputError("\n".join(secrets.message(*place) for place in found))
    names = list(stages(config))
    if TASKS in names:
        raise InputError(
            f"config.stages has {TASKS!r}, which is the name of the results on tasks in"
            " results.json. Give the stage another name."
        )
    run_fields = ("seed", "stages", "evaluate", "log")
    for position, (name, stage) in enumerate(stages(config).items()):
        where = f"config.stages.{name}" if len(config.stages) else "config"
        _check_fields(stage, default, where)
        if len(config.stages) and len(stage.stages):
            raise InputError(f"{where}.stages: a stage cannot have stages of its own.")
        found = checked(Run, stage, where)
        if len(config.stages):
            because = "a run is evaluated as a whole; set config.evaluate"
            check_no_effect(found, where, ["evaluate"], because)
            because = "trackers are of the whole run; set config.log.trackers"
            check_no_effect(found, where, ["log.trackers"], because)
        for set_name, own in stage.data.sets.items():
            at = f"{where}.data.sets.{set_name}"
            _check_fields(own, blank(Rows), at)
            checked(Rows, own, at)
        if stage.data.mixing == "round_robin":
            _check_round_robin(stage, stage.data.document_languages, where)
        check_stage(stage, found, where)
        check_references(stage, names[:position], where)
    whole = checked(Run, config, "config")
    evaluated(config)
    if config.evaluate.test:
        _check_languages(config.evaluate.examples, "config.evaluate.examples")
    if len(config.stages):
        check_no_effect(
            whole,
            "config",
            [f for f in default if f not in run_fields]
            + [f"log.{f}" for f in default.log if f != "trackers"],
            "the config has stages; set it in each stage",
        )


def _check_round_robin(stage, weights, where) -> None:
    shown = f"{where}.data.document_languages is {stage.data.document_languages!r}"
    if ANY in weights or len(set(weights.values())) > 1 or len(weights) < 2:
        raise InputError(
            f"{shown}, but data.mixing = 'round_robin' shows every query in each"
            ' language: name at least two, all of one weight, as in {"en": 1, "de": 1}.'
        )
    if stage.batch_size % len(weights):
        raise InputError(
            f"{shown}: {len(weights)} languages, but {where}.batch_size is"
            f" {stage.batch_size}. data.mixing = 'round_robin' counts a query once for"
            f" each language: take a multiple of {len(weights)}."
        )


def _check_fields(config, default, where) -> None:
    known = dict(leaves(default))
    found = dict(leaves(config))
    for field, value in found.items():
        if field not in known:
            raise InputError(not_a_field(field, known, where, value))
        check_spelling(where, field, value)
        for option, own in value.items() if isinstance(value, Entry | dict) else ():
            name = f"{field}.{option}"
            if place(name, own):
                raise InputError(not_a_field(name, known, where, own))
            check_spelling(where, name, own)
        if value is None and known[field] is not None:
            raise InputError(
                f"{where}.{field} is None; give a value. Its default is"
                f" {known[field]!r}."
            )
    for field in known:
        if field not in found:
            raise InputError(
                f"{where}.{field} is missing; start from lsrjax.config.get_default()."
            )


def _check_languages(names: Iterable[str], field: str) -> None:
    unknown = sorted(set(names) - set(LANGUAGES))
    if unknown:
        raise InputError(
            f"{field} names {', '.join(unknown)}; the embedded data has"
            f" {', '.join(LANGUAGES)}."
        )
