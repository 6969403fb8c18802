"""A run that trains adapters, and what opens its stage."""

import io

import numpy as np
import pytest
from rich.console import Console

from configs import golden_infonce
from lsrjax import errors
from lsrjax.checkpoint import saved_model
from lsrjax.convert import open_model
from lsrjax.distributed import trees
from lsrjax.models import low_rank
from lsrjax.training import early_checks, memory_plan, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stage trained with LoRA for two steps, each saved, and what was printed."""
    c = golden_infonce.get_config()
    c.adapt = {"lora": {"rank": 2, "alpha": 3.0, "also": "^head/echo/"}}
    c.steps, c.checkpoint.every, c.checkpoint.keep = 2, 1, 3
    workdir = tmp_path_factory.mktemp("adapted")
    console = Console(file=io.StringIO(), width=200)
    run.run(c, workdir, console)
    return workdir / "train", console.file.getvalue()


@pytest.mark.slow
def test_a_stage_is_opened_with_the_merged_matrices(trained):
    folder, said = trained
    steps = [
        trees.named(saved_model.host_arrays(folder / "checkpoints" / step)["params"])
        for step in ("1", "2")
    ]
    moved = {name for name in steps[0] if (steps[0][name] != steps[1][name]).any()}
    factors = {name for name in steps[0] if low_rank.is_factor(name)}
    whole = {name for name in steps[0] if name.startswith("head/echo/")}
    assert moved == factors | whole and len(factors) == 8
    count = sum(steps[0][name].size for name in factors | whole)
    assert f"{count:,}" in next(line for line in said.splitlines() if "trained" in line)
    opened = open_model.open_portable(str(folder))
    up = {part: steps[1][f"encoder/layers/up/kernel/{part}"] for part in "ab"}
    base = steps[1]["encoder/layers/up/kernel/base"]
    found = opened.params["encoder"]["layers"]["up"]["kernel"]
    np.testing.assert_allclose(found, base + 1.5 * up["a"] @ up["b"], rtol=1e-5)
    assert (found != base).any() and len(opened.factors) == 4


def test_rates_of_what_adapters_freeze_are_refused_before_the_first_stage():
    c = golden_infonce.get_config()
    c.adapt = {"lora": {"rank": 2}}
    c.optim.groups = {"/kernel/[ab]$": {"times": 2.0}}
    stages, each = {"train": c}, errors.Each()
    early_checks.check_models(memory_plan.plan_stages(c), stages, each)
    assert not each.messages
    c.optim.groups = {"^encoder/embeddings/": {"times": 2.0}}
    early_checks.check_models(memory_plan.plan_stages(c), stages, each)
    (said,) = each.messages
    assert "no parameter whose learning rate it could set" in said
