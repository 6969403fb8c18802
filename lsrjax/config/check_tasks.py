"""The benchmarks that a config names."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from lsrjax.errors import InputError
from lsrjax.options import Chosen, resolve
from lsrjax.retrieval.results_file import ENGLISH_TEXTS, MIXED_TEXTS
from lsrjax.retrieval.tasks.table import TASKS


def of_dev(config: ConfigDict, where: str = "config") -> Chosen | None:
    """The task that a stage is evaluated on during training, or None.

    Raises:
      InputError: an unknown task or option.
    """
    if not config.dev.task.name:
        return None
    return resolve(TASKS, config.dev.task, f"{where}.dev.task")


def evaluated(config: ConfigDict) -> dict[str, Chosen]:
    """The tasks of a run's evaluation, by the names that its config gives them.

    Such a name is an entry of the table, or the options have one under "name".

    Raises:
      InputError: an unknown task or option.
    """
    found = {}
    for name, given in config.evaluate.tasks.items():
        where = f"config.evaluate.tasks[{name!r}]"
        if not isinstance(given, Mapping | ConfigDict):
            raise InputError(
                f"{where} is {given!r}; give a dict of the task's options, maybe {{}}."
            )
        if name in (ENGLISH_TEXTS, MIXED_TEXTS):
            raise InputError(
                f"{where} has the name of a table of config.evaluate.test. Give it"
                " another one."
            )
        found[name] = resolve(TASKS, {"name": name, **given}, where)
    return found
