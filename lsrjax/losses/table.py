"""The losses by name; a config names one or a weighted sum of several.

To add one: a file beside this with the function, its source, and a `Loss`; and a line
here.
"""

from lsrjax.losses import (
    alignment,
    batch_distillation,
    contrast,
    distillation,
    embedding,
    graded_lists,
    graded_pairs,
    mann_whitney,
    passage_centric,
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
    "batch_kl": batch_distillation.KL,
    "batch_margin_mse": batch_distillation.MARGIN_MSE,
    "embedding": embedding.ENTRY,
    "mann_whitney": mann_whitney.ENTRY,
    "passage_centric": passage_centric.ENTRY,
    "listnet": graded_lists.LISTNET,
    "wasserstein": graded_lists.WASSERSTEIN,
    "cosent": graded_pairs.COSENT,
    "angle": graded_pairs.ANGLE,
    "mlm": self_prediction.MLM,
    "bag_of_words": self_prediction.BAG_OF_WORDS,
}
