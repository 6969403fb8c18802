"""The table of trackers."""

from collections.abc import Mapping

from lsrjax.trackers.mlflow import Mlflow
from lsrjax.trackers.tensorboard import TensorBoard
from lsrjax.trackers.tracker import Tracker
from lsrjax.trackers.trackio import Trackio
from lsrjax.trackers.wandb import Wandb

TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
    "trackio": Trackio,
}
