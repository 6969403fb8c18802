"""Trains and evaluates what a config describes.

python -m lsrjax.main --config configs/demo.py [--workdir DIR] [--config.x.y=z …]
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from lsrjax import run
from lsrjax.errors import InputError
from lsrjax.train import TrainingFailed

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a Python file; --config.x.y=z sets a field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints and results go; runs/<config name> if empty."
)


def _main(argv: list[str]) -> None:
    # The libraries below narrate every checkpoint at INFO.
    logging.set_verbosity(logging.WARNING)
    console = Console()
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    try:
        run.run(_CONFIG.value, workdir, console)
    except (InputError, TrainingFailed) as error:
        console.print(f"[bold red]Error:[/] {error}", highlight=False, markup=True)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(_main)
