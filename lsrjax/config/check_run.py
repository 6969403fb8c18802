"""The checks of a run's config, before anything is loaded."""

import re
from collections.abc import Iterable

from ml_collections import ConfigDict

from lsrjax import errors
from lsrjax.config import secrets
from lsrjax.config.check_stage import check_references, check_stage
from lsrjax.config.check_tasks import evaluated
from lsrjax.config.fields import blank, get_default, given_stages, leaves
from lsrjax.config.moved import check_spelling, place
from lsrjax.config.nodes import Entry
from lsrjax.config.other_names import not_a_field
from lsrjax.config.schema import Rows, Run
from lsrjax.data.debian_texts.embedded import LANGUAGES
from lsrjax.errors import InputError
from lsrjax.options import check_no_effect, checked


def validate(config: ConfigDict) -> None:
    """Checks a run's config.

    Raises:
      InputError: unknown fields, values or combinations, options without effect, or
        tokens: all that are found, each with its field and what to do.
    """
    default, several = get_default(), len(config.stages) > 0
    parts = {
        f"config.stages.{name}" if several else "config": stage
        for name, stage in given_stages(config).items()
    }
    with errors.together() as each:
        whole = [
            _check_fields(part, default, where, each)
            for where, part in {"config": config, **parts}.items()
        ]
        for place_of in secrets.in_config(config):
            each.add(secrets.message(*place_of))
        if all(whole):
            with each:
                _check_values(config, parts)


def _check_values(config: ConfigDict, parts: dict[str, ConfigDict]) -> None:
    """Checks a run's config that has all of its fields."""
    several = len(config.stages) > 0
    names = list(given_stages(config))
    with errors.together() as each:
        for position, (where, stage) in enumerate(parts.items()):
            with each:
                found = checked(Run, stage, where)
                with each:
                    check_references(stage, names[:position], where)
                for name, own in stage.data.sets.items():
                    checked(Rows, own, f"{where}.data.sets.{name}")
                if several:
                    _check_name(names[position])
                    _check_in_stages(stage, found, where)
                check_stage(stage, found, where)
        with each:
            whole = checked(Run, config, "config")
            with each:
                evaluated(config)
            if config.evaluate.test:
                with each:
                    _check_languages(config.evaluate.examples)
            if several:
                default, of_run = get_default(), ("seed", "stages", "evaluate", "log")
                own = [f for f in default if f not in of_run]
                own += [f"log.{f}" for f in default.log if f != "trackers"]
                because = "the config has stages; set it in each stage"
                check_no_effect(whole, "config", own, because)


# Beside the stages' folders in a work directory.
_TAKEN = ("compiled", "damaged", "lock", "stacks", "trackers")


def _check_name(name: str) -> None:
    """Refuses a stage's name that cannot be that of its folder."""
    if not re.fullmatch(r"\w([\w -]*\w)?", name) or name in _TAKEN:
        raise InputError(
            f"config.stages has {name!r}, but a stage's name is that of its folder in"
            " the work directory: letters, digits, blanks, _ and -, and none of"
            f" {', '.join(_TAKEN)}. Give it another name."
        )


def _check_in_stages(stage: ConfigDict, found: Run, where: str) -> None:
    """Refuses in one of several stages what belongs to the run."""
    if len(stage.stages):
        raise InputError(f"{where}.stages: a stage cannot have stages of its own.")
    because = "a run is evaluated as a whole; set config.evaluate"
    check_no_effect(found, where, ["evaluate"], because)
    because = "trackers are of the whole run; set config.log.trackers"
    check_no_effect(found, where, ["log.trackers"], because)


def _check_fields(config, default, where: str, each: errors.Each) -> bool:
    """Adds the errors in names of fields to `each`.

    Returns:
      Whether values can be checked: all fields are there, and none is written as in an
      earlier release.
    """
    made = "get_default" if "data" in default else "data_set"
    start = f"start from lsrjax.config.{made}()."
    if not isinstance(config, ConfigDict):
        each.add(f"{where} is {config!r}; {start}")
        return False
    known = dict(leaves(default))
    found = dict(leaves(config))
    old = errors.Each()
    for field, value in found.items():
        own = value.items() if isinstance(value, Entry | dict) else ()
        options = {f"{field}.{option}": of for option, of in own}
        for name, of in {field: value, **options}.items():
            if name not in known and place(name, of):
                old.add(not_a_field(name, known, where, of))
            elif name not in known and name == field:
                each.add(not_a_field(name, known, where, of))
            with old:
                check_spelling(where, name, of)
    for message in old.messages:
        each.add(message)
    missing = [field for field in known if field not in found]
    empty = [field for field in known if found.get(field, known[field]) is None]
    empty = [field for field in empty if known[field] is not None]
    for field in missing:
        each.add(f"{where}.{field} is missing; {start}")
    for field in empty:
        each.add(
            f"{where}.{field} is None; give a value. Its default is {known[field]!r}."
        )
    own_sets = [
        _check_fields(own, blank(Rows), f"{where}.data.sets.{name}", each)
        for name, own in (config.data.sets.items() if "data.sets" in found else ())
    ]
    return not (old.messages or missing or empty) and all(own_sets)


def _check_languages(names: Iterable[str]) -> None:
    unknown = sorted(set(names) - set(LANGUAGES))
    if unknown:
        raise InputError(
            f"config.evaluate.examples names {', '.join(unknown)}; the embedded data"
            f" has {', '.join(LANGUAGES)}."
        )
