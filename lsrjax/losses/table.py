"""The losses by name; a config names one or a weighted sum of several.

To add one: a file beside this with the function, its source, and a `Loss`; and a line
here.
"""

from lsrjax.losses import (
    alignment,
    contrast,
    distillation,
    reconstruction,
    self_prediction,
)
from lsrjax.losses.loss import Loss

LOSSES: dict[str, Loss] = {
    "alignment": alignment.ENTRY,
    "kl": distillation.KL,
    "language_kl": distillation.LANGUAGE_KL,
    "margin_mse": distillation.MARGIN_MSE,
    "reconstruction": reconstruction.ENTRY,
    "m3": contrast.M3,
    "infonce": contrast.INFONCE,
    "mlm": self_prediction.MLM,
    "bag_of_words": self_prediction.BAG_OF_WORDS,
}
