"""The tracker `mlflow`: MLflow, on a server or in a local database."""

import dataclasses
import itertools
import logging
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lsrjax import options
from lsrjax.options import option
from lsrjax.trackers.tracker import COLUMNS, RunFacts, imported

_PARAMETERS = 100  # of a request, at most
_LENGTH = 500  # of a parameter in every version
_NAME = re.compile(r"[^A-Za-z0-9_./: -]")  # what a name may not have


class Mlflow:
    """MLflow; without a server, its database `mlflow.db` in the current folder.

    Artifacts of a local database are beside it, in `mlruns`.
    """

    @dataclasses.dataclass(frozen=True)
    class Options(options.Options):
        """Options of the tracker."""

        uri: str = option(
            "", "http://host:5000, sqlite:///file.db, …; empty: MLFLOW_TRACKING_URI"
        )
        experiment: str = option("lsrjax", "that holds the run")

    def __init__(self, options: Any, facts: RunFacts):
        """Opens the run."""
        mlflow = self._library = self.library(options)
        uri = options.uri or mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        if facts.id:
            self.id = facts.id
            self._client.update_run(self.id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(options.experiment)
        experiment = (
            found.experiment_id
            if found
            else self._client.create_experiment(options.experiment, _artifacts(uri))
        )
        created = self._client.create_run(experiment, run_name=facts.name)
        self.id = created.info.run_id
        # Later ones may differ in what changes no result, and MLflow would refuse them.
        parameters = iter(facts.parameters.items())
        while some := list(itertools.islice(parameters, _PARAMETERS)):
            of = [
                mlflow.entities.Param(_name(key), str(value)[:_LENGTH])
                for key, value in some
            ]
            self._client.log_batch(self.id, params=of)

    @staticmethod
    def library(options: Any) -> Any:
        """Imports mlflow."""
        found = imported("mlflow", "mlflow")
        # It would say that it makes a database.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return found

    def stage(self, name: str, after: int) -> None:
        """A stage needs no beginning."""

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Logs them as `stage/name` or `stage/name.language`, with `_` for `@`."""
        now = int(1000 * time.time())
        metrics = [
            self._library.entities.Metric(_name(f"{stage}/{name}"), value, now, step)
            # Where names are files, one that has a number can be no folder of others.
            for name, value in _dotted(numbers).items()
        ]
        self._client.log_batch(self.id, metrics=metrics)

    def texts(self, stage: str, step: int, rows: Sequence[Sequence]) -> None:
        """Writes the whole table as the artifact `texts/STAGE.json`."""
        made = {"columns": list(COLUMNS), "data": list(map(list, rows))}
        self._client.log_dict(self.id, made, f"texts/{stage}.json")

    def close(self, failed: bool) -> None:
        """Ends the run."""
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def _artifacts(uri: str) -> str | None:
    """Where a new experiment's artifacts go; None: as the server or the folder has it.

    Those of a local database would go to the folder in which the run is started.
    """
    database = re.fullmatch(r"sqlite:///([^?]+).*", uri)
    if database is None:
        return None
    return (pathlib.Path(database[1]).absolute().parent / "mlruns").as_uri()


def _dotted(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("/", "."): value for name, value in numbers.items()}


def _name(name: str) -> str:
    return _NAME.sub("_", name)
