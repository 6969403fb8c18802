"""The models that a plan starts from: their shapes, without weights."""

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

# A run's work directory, unless it is given another; and a stage in it.
_RUN = re.compile(r"(?:\./)?runs/([^/]+)(?:/([^/]+))?/?")


class Models:
    """Opens what the config of a run names, as its stages will find it.

    Attributes:
      specs: of the stages planned so far, by name.
      notes: what was planned in place of something else, for the user.
    """

    def __init__(self, configs_folder: pathlib.Path | None, seen: tuple[str, ...] = ()):
        """Opens nothing yet.

        Args:
          configs_folder: of the run's config and of those whose runs it goes on from.
          seen: runs that are being planned, of which this is one.
        """
        self.specs: dict[str, RetrieverSpec] = {}
        self.notes: list[str] = []
        self._configs_folder = configs_folder
        self._seen = seen

    def student(self, name: str, config) -> RetrieverSpec:
        """The retriever of a stage, which later stages may name."""
        self.specs[name] = build_student.student(config, self.opened).spec
        return self.specs[name]

    def opened(self, reference: str) -> SavedModel:
        """The model of a reference; its parameters have shapes alone.

        Raises:
          InputError: there is none, nor a config that makes it.
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
                    " config, which has the run's name and lies beside this one."
                ) from error
            raise

    def _to_be_made(self, reference: str) -> SavedModel | None:
        """The model of a run that is not there yet, from the config that makes it."""
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
    """The retriever of a stage, with those before it."""
    for name, config in stages.items():
        spec = models.student(name, config)
        if name == last:
            break
    return spec


def _of(spec: RetrieverSpec, reference: str) -> SavedModel:
    return SavedModel(spec, retriever.split(spec)[1], None, None, reference)
