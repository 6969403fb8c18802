"""Every field with its default; the checks of a whole run."""

from lsrjax.config.fields import data_set, get_default
from lsrjax.config.nodes import entry

__all__ = ["data_set", "entry", "get_default"]
