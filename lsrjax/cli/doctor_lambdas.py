"""The doctor's check of regularizers: lambdas that are far above those in use."""

from collections.abc import Iterator

from lsrjax.cli.doctor_checks import OK, WARNING, Finding
from lsrjax.config import fields
from lsrjax.losses import objective, regularizers

# Ten times the largest lambda of the recipes, 0.5 of FLOPS beside MarginMSE, whose
# values are the largest among the losses. With InfoNCE 1e-3 is usual.
_LARGE = 5.0


def lambdas(run_config) -> Iterator[Finding]:
    """Compares each stage's lambdas, as shares of its loss's weight, with usual ones.

    Which lambda is too large depends on the scale of the loss, so that it is a warning.
    """
    for name, stage in fields.stages(run_config).items():
        found = regularizers.of(stage.regularizer).options.lambdas
        if not found:
            continue
        weight = max(objective.of(stage.loss).weights.values())
        large = [
            f"config.regularizer.{field} = {value:g}"
            for field, value in found.items()
            if value > _LARGE * weight
        ]
        if not large:
            yield Finding(OK, "lambdas", f"stage {name}: of a usual size")
            continue
        beside = f" beside a loss of weight {weight:g}" if weight != 1 else ""
        yield Finding(
            WARNING,
            "lambdas",
            f"stage {name}: {' and '.join(large)}{beside}, over {_LARGE:g} times the"
            " loss's weight: a regularizer this strong can empty all vectors. The"
            " recipes have 1e-6 to 0.5; begin with 1e-3, or give a number of terms"
            " (regularizer.active_document).",
        )
