"""Models for planning: shapes without weights."""

import pathlib
import re
from collections.abc import Mapping

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.config import fields
from lsrjax.convert import open_model
from lsrjax.convert.read.huggingface import SHAPES
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec

# A run's default work directory, and a stage in it.
_RUN = re.compile(r"(?:\./)?runs/([^/]+)(?:/([^/]+))?/?")


class Models:
    """Opens the models that a run's config names, as its stages will find them.

    Attributes:
      specs: of the stages planned so far, by name.
      notes: for the user, models that were planned from a config instead of opened.
    """

    def __init__(self, configs_folder: pathlib.Path | None, seen: tuple[str, ...] = ()):
        """Opens nothing yet.

        `configs_folder` holds the config of the run and of the runs it builds on;
        `seen` are the runs being planned, up to this one.
        """
        self.specs: dict[str, RetrieverSpec] = {}
        self.notes: list[str] = []
        self._configs_folder = configs_folder
        self._seen = seen

    def student(self, name: str, config) -> RetrieverSpec:
        """The retriever of a stage; later stages may name it."""
        self.specs[name] = build_student.student(config, self.opened).spec
        return self.specs[name]

    def opened(self, reference: str) -> SavedModel:
        """The model of a reference; its parameters are abstract.

        Raises:
          InputError: there is neither the model nor a config that makes it.
        """
        if reference.startswith("stage:"):
            name = reference.removeprefix("stage:")
            if name not in self.specs:
                known = ", ".join(self.specs) or "none"
                raise InputError(
                    f"{reference!r} is no stage before this one (there are: {known})."
                )
            return _of(self.specs[name], reference)
        try:
            return open_model.open_model(reference, pathlib.Path(), allowed=SHAPES)
        except InputError as error:
            if (model := self._to_be_made(reference)) is not None:
                return model
            if _RUN.fullmatch(reference):
                raise InputError(
                    f"{error}\nA run that is still to be made is planned from its"
                    " config, named as the run, in this config's folder."
                ) from error
            raise

    def _to_be_made(self, reference: str) -> SavedModel | None:
        """The model of a run that does not exist yet, from the run's config."""
        match = _RUN.fullmatch(reference)
        if not match or self._configs_folder is None or match[1] in self._seen:
            return None
        run, stage = match.groups()
        path = self._configs_folder / f"{run}.py"
        if pathlib.Path(reference).exists() or not path.is_file():
            return None
        stages = fields.stages(fields.load(path))
        if stage is None and len(stages) == 1:
            stage = next(iter(stages))
        if stage not in stages:
            raise InputError(
                f"{reference} is not there yet. {path}, which makes it, has the stages"
                f" {', '.join(stages)}: name one, runs/{run}/STAGE."
            )
        earlier = Models(self._configs_folder, (*self._seen, run))
        spec = _planned(earlier, stages, stage)
        self.notes += [
            *earlier.notes,
            f"{reference} is not there yet: planned as {path} makes it",
        ]
        return _of(spec, reference)


def _planned(models: Models, stages: Mapping, last: str) -> RetrieverSpec:
    """The retriever of the stage `last`; earlier stages are planned first."""
    for name, config in stages.items():
        spec = models.student(name, config)
        if name == last:
            break
    return spec


def _of(spec: RetrieverSpec, reference: str) -> SavedModel:
    return SavedModel(spec, retriever.split(spec)[1], None, None, reference)
