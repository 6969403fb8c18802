"""The table of search engines.

An entry is a class with `Options`; `kinds`, the kinds of vectors that it takes;
`searching`, the options that only affect searches; `build(folder, vectors, options)`,
which reads the blocks of `Vectors` once and writes the engine's files into a folder;
`open(folder, options)`, which gives an `Engine`; maybe `needs`, the module of a package
and the extra that brings it; maybe `asked`, options that a search takes from its caller
only, never from an index; and maybe `living`, files that change after the build.
"""

import importlib.util
from typing import Any

from lsrjax.errors import InputError
from lsrjax.retrieval.engines.exact import Exact
from lsrjax.retrieval.engines.maxsim import MaxSim
from lsrjax.retrieval.engines.milvus import Milvus
from lsrjax.retrieval.engines.seismic import Seismic

ENGINES: dict[str, Any] = {
    "exact": Exact,
    "seismic": Seismic,
    "milvus": Milvus,
    "maxsim": MaxSim,
}


def check_installed(name: str) -> None:
    """An `InputError` if an engine's package is missing."""
    module, extra = getattr(ENGINES[name], "needs", ("", ""))
    if module and importlib.util.find_spec(module) is None:
        raise InputError(
            f"The engine {name!r} needs {module}, which is not installed: pip install"
            f" 'lsrjax[{extra}]'. The engine 'exact' needs nothing."
        )
