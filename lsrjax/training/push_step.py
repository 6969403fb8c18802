"""Exports a checkpoint and uploads it to the hub, in a process of its own.

    python -m lsrjax.training.push_step '{"folder": …, "step": …, "repo": …}'

`lsrjax.training.pushes` starts it beside a run, whose devices it leaves alone.
"""

import json
import pathlib
import sys
import tempfile

from lsrjax.checkpoint import saved_model
from lsrjax.convert import targets
from lsrjax.convert.read import hub
from lsrjax.errors import InputError
from lsrjax.models import heads
from lsrjax.models.backbones import table


def push(folder: str, step: int, repo: str, head: str = "", family: str = "") -> str:
    """Uploads the model of a stage's step in the first format that can hold it.

    Args:
      folder: the stage's.
      repo: "name" or "owner/name"; made, private, if there is none.
      head: the dotted name of the user's own head, if the model has one.
      family: that of their own family of encoders.

    Returns:
      The address of the repository.

    Raises:
      InputError: a damaged checkpoint, or the hub refuses.
    """
    if head:
        heads.own_head(head, "config.model.head")
    if family:
        table.chosen(family, "config.model.family")
    model = saved_model.load_model(folder, step=step)
    with tempfile.TemporaryDirectory() as made:
        out = pathlib.Path(made) / "model"
        targets.write_first(model, out)
        return hub.push(out, repo)


if __name__ == "__main__":
    try:
        print(push(**json.loads(sys.argv[1])))
    except InputError as error:
        sys.exit(str(error))
