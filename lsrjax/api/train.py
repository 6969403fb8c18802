"""Trains what a config describes."""

import pathlib

from ml_collections import ConfigDict
from rich.console import Console

from lsrjax import paths
from lsrjax.api.model import Model, load
from lsrjax.config import fields
from lsrjax.training import resume, run, work_folder


def train(
    config: ConfigDict | str | pathlib.Path,
    workdir: str | pathlib.Path,
    *,
    console: Console | None = None,
) -> Model:
    """Trains and evaluates a run, or what remains of it, in this process.

    Whatever ends it, Ctrl-C included, leaves the newest checkpoint; the same call goes
    on from there. After Ctrl-C, a line says where that is. A run of several processes
    is started by `lsrjax train`.

    Args:
      config: of `lsrjax.config.fields.get_default`, the file of an experiment, or the
        name of one that comes with lsrjax, such as "demo".
      workdir: where checkpoints and results go; a folder, or gs://BUCKET/PATH or
        s3://BUCKET/PATH.
      console: where progress is printed; by default to the standard output.

    Returns:
      The model of the last stage.

    Raises:
      InputError: a config, file or model that cannot be used.
      lsrjax.errors.TrainingFailed: the loss is not finite, or the model collapsed.
    """
    if not isinstance(config, ConfigDict):
        config = fields.load(*fields.located(str(config)))
    place = paths.workdir(workdir, "workdir")
    console = console or Console()
    with work_folder.located(place, console) as folder:
        try:
            run.run(config, folder, console)
        except KeyboardInterrupt:
            stands = resume.standing(folder, fields.stages(config))
            console.print(
                f"Interrupted: with the same call, {stands}.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            raise
    return load(str(folder))
