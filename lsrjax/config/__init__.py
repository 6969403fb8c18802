"""The config of a run: `get_default` has every field, with its default."""

from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry

__all__ = ["data_set", "entry", "get_default"]
