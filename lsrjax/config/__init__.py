"""The fields of a config with their defaults, and the checks of a run's config."""

from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry

__all__ = ["data_set", "entry", "get_default"]
