"""Looks at the environment variable XLA_FLAGS before XLA does.

XLA ends the whole process at a flag that it does not know, or prints its own hundred
flags if a value is wrong. Which flags there are depends on its version, so it is asked:
in a process of its own, which opens no device.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Mapping

from lsrjax.errors import InputError

_ASK = "from jaxlib import xla_client; xla_client.CompileOptions()"
_SECONDS = 60.0
# An error or fatal error of XLA's log, without its time and place in the source.
_SAID = re.compile(r"^[EF]\d{4} [^\]\n]*\] (.*)$", re.MULTILINE)


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raises an InputError with XLA's own words if it does not take XLA_FLAGS."""
    flags = environ.get("XLA_FLAGS", "")
    if flags.strip() and (said := _refused(flags)):
        raise InputError(
            f"XLA does not take the environment variable XLA_FLAGS, {flags!r}: {said}."
            " Correct it, or unset it. Which flags there are depends on the version of"
            " jaxlib."
        )


@functools.lru_cache(maxsize=4)
def _refused(flags: str) -> str:
    """What XLA says against flags; empty if it takes them."""
    # Without the settings that silence XLA's log.
    silent = {"TF_CPP_MIN_LOG_LEVEL", "GLOG_minloglevel"}
    environ = {k: v for k, v in os.environ.items() if k not in silent}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK],
            env=environ | {"XLA_FLAGS": flags},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        # It is no error of the flags if they cannot be asked for.
        return ""
    said = _SAID.findall(asked.stderr)
    # The first one names the flag. Anything else that fails is not about flags.
    return said[0].strip().rstrip(".")[:500] if asked.returncode and said else ""
