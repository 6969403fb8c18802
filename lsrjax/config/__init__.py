"""Every field with its default; the checks of a whole run."""

from lsrjax.config.fields import data_set, get_default

__all__ = ["data_set", "get_default"]
