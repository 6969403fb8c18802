"""How tests compile: quickly; programs that they start compile as those of users."""

import os

from programs import launch

before = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{launch.QUICK} {before}"

import jax  # noqa: E402

# Flags are read when something is compiled first.
jax.jit(lambda: 0)()
if before:
    os.environ["XLA_FLAGS"] = before
else:
    del os.environ["XLA_FLAGS"]
