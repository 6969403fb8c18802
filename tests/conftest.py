"""How tests compile: quickly; programs that they start compile as those of users.

And their order: files that take minutes come first, so that none is left for one of two
processes at the end. And where they run: each process of several has cores of its own,
since threads of all on every core wait for each other.
"""

import os

from programs import launch

worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    number, count = int(worker), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    # XLA and torch have as many threads as cores are allowed; so have programs started.
    os.sched_setaffinity(0, cores[number::count] or cores)

before = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{launch.QUICK} {before}"

import jax  # noqa: E402

# Flags are read when something is compiled first.
jax.jit(lambda: 0)()
if before:
    os.environ["XLA_FLAGS"] = before
else:
    del os.environ["XLA_FLAGS"]

# A process that has begun a file with a single test gets the one after the next, too.
FIRST = (
    "test_sharding.py",
    "test_processes.py",
    "test_every_family.py",
    "test_slurm.py",
    "test_sentence_transformers_folders.py",
    "test_memory_plan.py",
    "test_preemption.py",
    "test_recipes.py",
    "test_milco_hf.py",
    "test_resume.py",
    "test_fuzz.py",
    "test_bucket.py",
    "test_mesh_restore.py",
    "test_prompted_exports.py",
    "test_colbert_programs.py",
)


def pytest_collection_modifyitems(items):
    """Sorts the tests; those of other files stay as they were collected."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))
