"""`lsrjax.main` in forks of a program that has imported everything and used no device.

Importing takes longer than a tiny run. Import this before JAX.
"""

import os
import pathlib
import runpy
import sys

from launch import QUICK

# Before JAX looks.
os.environ["XLA_FLAGS"] = QUICK
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Everything that a run imports, ahead of the forks.
import jax  # noqa: E402, F401

from lsrjax.training import stages  # noqa: E402, F401


def spawn(
    config: pathlib.Path, workdir: pathlib.Path, prepare=lambda: None, flags=()
) -> int:
    """Starts the run, or starts it again; what it says is added to `<workdir>.out`.

    Args:
      config: its file.
      workdir: its folder.
      prepare: is called in its process before it starts.
      flags: further ones.

    Returns:
      The process.
    """
    child = os.fork()
    if child:
        return child
    with open(workdir.with_suffix(".out"), "a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    code = 1
    try:
        prepare()
        sys.argv[1:] = ["--config", str(config), "--workdir", str(workdir)]
        sys.argv += flags
        runpy.run_module("lsrjax.main", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Waits for a process; its exit status, or the negative signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
