"""lsrjax: learned sparse retrieval across languages, trained in JAX.

`load`, `search`, `evaluate` and `train` (docs/python.md) are imported when they are
first used, so that `import lsrjax` takes no time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsrjax.api.evaluate import evaluate
    from lsrjax.api.model import load
    from lsrjax.api.search import search
    from lsrjax.api.train import train

__version__ = "0.2.0"
__all__ = ["evaluate", "load", "search", "train"]

_FILES = {name: name for name in __all__} | {"load": "model"}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lsrjax.api.{_FILES[name]}"), name)
