"""Imports a command; JAX looks at its environment variables as it is imported."""

import importlib
import os
import re
import signal
import sys
import types

# How JAX names what it does not take of its environment, as it is imported.
_JAX_NAMES = re.compile(r"environment '(JAX_\w+)'|JAX flag (jax_\w+)")


def command(module: str) -> types.ModuleType:
    """The module of a command; exits if JAX does not take its environment.

    Until the command guards it, Ctrl-C ends the program without a traceback: imports
    take seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return importlib.import_module(module)
    except ValueError as error:
        if not (named := _JAX_NAMES.search(str(error))):
            raise
        name = (named[1] or named[2]).upper()
        print(
            f"Error: JAX does not take the environment variable {name},"
            f" {os.environ.get(name)!r}: {error}. Correct it, or unset it.",
            file=sys.stderr,
        )
        sys.exit(2)
