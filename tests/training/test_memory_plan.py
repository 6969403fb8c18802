"""What a run will take: said without data, weights or devices, and then true."""

import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from programs import launch, tiny
from rich.console import Console

from lsrjax.cli import dry_run
from lsrjax.config.fields import get_default
from lsrjax.data.batching.length_shapes import Shape
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.training import flops, memory_plan

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "programs" / "step_memory.py"


def stage_plan(**changes):
    """Of a small SPLADE with a vocabulary that takes most of the memory."""
    encoder = tiny.encoder(
        vocab_size=4096,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        max_positions=64,
    )
    spec = RetrieverSpec.of("splade", encoder, tied=True)
    config = get_default()
    config.loss = {"infonce": {}}
    config.batch_size, config.model.dropout = 32, 0.0
    config.data.query_length, config.data.document_length = 16, 32
    config.update_from_flattened_dict(changes)
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    return memory_plan.StagePlan(
        config, spec, None, mesh, memory_plan.full_shapes(config, 1)
    )


def test_languages_that_only_rows_name_are_planned():
    plan = stage_plan(**{"dro.groups": "languages"})
    step, state = plan._step()
    after, _ = jax.eval_shape(step, state, None, plan._batch())
    assert after["group_weights"]["log"].shape == (1,)


def test_texts_are_as_long_as_they_may_be():
    config = get_default()
    config.batch_size, config.data.group_size = 32, 4
    assert memory_plan.full_shapes(config, 4) == {
        "student": Shape(((8, 64), (32, 256)))
    }
    config.loss = {"alignment": {}}
    assert memory_plan.full_shapes(config, 4) == {
        "student": Shape(((16, 256),)),
        "teacher": Shape(((8, 256),)),
    }


def apart(shared, **options):
    """The same stage with queries and documents apart."""
    return dataclasses.replace(
        shared,
        spec=shared.spec.replaced(**options),
        shapes=memory_plan.full_shapes(shared.config, 1, roles_apart=True),
    )


def test_queries_apart_are_planned_apart():
    config = get_default()
    config.batch_size, config.data.group_size = 32, 4
    assert memory_plan.full_shapes(config, 4, roles_apart=True) == {
        "queries": Shape(((8, 64),)),
        "student": Shape(((32, 256),)),
    }
    # A teacher of views has its own roles.
    teacher = RetrieverSpec.of(
        "splade", tiny.encoder(), tied=True, queries="static", special_ids=(1,)
    )
    assert memory_plan.full_shapes(config, 4, teacher=teacher) == {
        "student": Shape(((8, 64), (32, 256))),
        "teacher_queries": Shape(((8, 64),)),
        "teacher": Shape(((32, 256),)),
    }
    shared = stage_plan()
    # Each tower does its part; queries that are not encoded take nothing.
    assert apart(shared, towers="separate").operations() == shared.operations()
    documents = flops.training(shared.spec, [(32, 32)], remat="none", chunked=False)
    assert apart(shared, queries="words").operations() == documents


@pytest.mark.slow
def test_memory_of_two_towers():
    # Of few texts, so that it is the parameters that take the memory.
    shared = stage_plan(batch_size=8)
    separate = apart(shared, towers="separate")
    with jax.set_mesh(shared.mesh):
        one, two = shared.memory(), separate.memory()
    assert two.params == 2 * one.params
    assert two.total > one.total


def test_memory_is_that_of_its_parts():
    stage = stage_plan()
    with jax.set_mesh(stage.mesh):
        memory = stage.memory()
        smaller = stage_plan(**{"memory.encode_chunk": 4}).memory()
    sizes = 4096 * 32 + 64 * 32 + 2 * 32  # the tables alone
    assert 4 * sizes < memory.params < 1.2 * 4 * sizes
    assert 2 * memory.params <= memory.optimizer < 2 * memory.params + 100
    assert memory.teacher == 0
    assert memory.total > memory.params + memory.optimizer + memory.step
    assert smaller.step < memory.step


def test_what_does_not_fit_is_refused_with_what_would():
    stage = stage_plan()
    with jax.set_mesh(stage.mesh):
        memory = stage.memory()
        enough = stage_plan(**{"memory.remat": "layer", "memory.encode_chunk": 1})
        least = enough.memory().total
        text = "\n".join(memory_plan.advice(stage, memory, (least + memory.total) // 2))
        assert "Most of it is " in text
        assert "It fits with --config.memory." in text
        text = "\n".join(memory_plan.advice(stage, memory, memory.params))
        assert "The model alone" in text and "config.mesh.fsdp" in text


def of_chunks(self):
    """A compiled step, in place of compiling: of 1 GB for each text of a chunk."""
    step = (self.config.memory.encode_chunk or 64) * 10**9
    return None, memory_plan.Memory(10**9, 0, 0, 0, step)


def dry_run_of(stage, monkeypatch, device_gb):
    """Prints the plan of a stage whose step is `of_chunks`."""
    monkeypatch.setattr(memory_plan, "plan_stages", lambda *args: {"train": stage})
    monkeypatch.setattr(memory_plan.StagePlan, "compiled", of_chunks)
    monkeypatch.setattr(memory_plan, "device_limit", lambda: 0)
    monkeypatch.setattr(dry_run.check_run, "validate", lambda config: None)
    flags = types.SimpleNamespace(devices=None, topology=None, device_gb=device_gb)
    dry_run.plan(
        types.SimpleNamespace(
            flags=flags, config=stage.config, config_path=pathlib.Path("my.py")
        )
    )


LAYERS = {"memory.remat": "layer", "memory.encode_chunk": 8}


def test_a_dry_run_says_that_a_step_fits(monkeypatch, capsys):
    dry_run_of(stage_plan(**LAYERS), monkeypatch, 80)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Compiling the step of stage train for 1 device"
    assert said[-1] == "  fits: 9.00 of 80 GB of each device"
    dry_run_of(stage_plan(**LAYERS), monkeypatch, None)
    assert "--device_gb GB says whether it fits" in capsys.readouterr().out


def test_a_dry_run_that_does_not_fit_fails_with_what_it_looked_for(monkeypatch, capsys):
    with pytest.raises(InputError, match="does not fit .* memory: train"):
        dry_run_of(stage_plan(**LAYERS), monkeypatch, 2.5)
    lines = capsys.readouterr().out.splitlines()
    after = lines[lines.index("  does not fit: 9.00 of 2.5 GB") + 1 :]
    assert after[0].startswith("  Most of it is ")
    # Its layers are computed again already, so that they are no change.
    *looked, found = after[1:]
    assert looked[-1].startswith("  Looking for a change that fits: compiling with ")
    assert looked[-1].endswith(" --config.memory.encode_chunk=1")
    assert found == "  It fits with --config.memory.encode_chunk=1: 2.00 of 2.5 GB."
    assert "remat" not in " ".join(after)


@pytest.mark.parametrize(
    "memory",
    [("none", 0), ("layer", 0), ("layer", 4), ("none", 4), ("layer", 1)],
)
def test_changes_are_changes_for_less_memory(memory):
    config = get_default()
    config.memory.remat, config.memory.encode_chunk = memory
    config.batch_size = 32
    found = list(memory_plan._changes(config, 64, 1))
    for change in found:
        assert change.get("memory.remat") != memory[0]
        chunk = change.get("memory.encode_chunk", memory[1])
        assert chunk <= memory[1] or memory[1] == 0
        assert chunk != memory[1] or len(change) < 3
        assert change.get("batch_size", 0) < 32
    assert {} not in found
    # The next smaller one is tried first, not one that is far slower.
    halved = (memory[1] or 64) // 2
    chunks = [one.get("memory.encode_chunk") for one in found]
    assert not halved or halved == next(filter(None, chunks))
    assert [one["batch_size"] for one in found if "batch_size" in one] == [16, 8, 2]


def test_a_step_larger_than_the_machine_is_not_taken(monkeypatch):
    stage, taken = stage_plan(), memory_plan.Memory(10, 20, 0, 5, 2000)
    monkeypatch.setattr(memory_plan, "device_limit", lambda: 1000)
    monkeypatch.setattr(memory_plan.Memory, "of", lambda *args: taken)
    # In place of compiling what would fit.
    monkeypatch.setattr(memory_plan.StagePlan, "memory", lambda self: taken)
    with pytest.raises(
        InputError, match="not fit: a step takes 0.0 MB, a device has 0.0 MB"
    ):
        stage.check(None, None, None, None)
    monkeypatch.setattr(memory_plan, "device_limit", lambda: 0)  # unknown
    stage.check(None, None, None, None)


def main(*arguments):
    program = [sys.executable, "-m", "lsrjax.main", *arguments]
    environ = os.environ | {"XLA_FLAGS": launch.QUICK}
    return subprocess.run(
        program, cwd=ROOT, env=environ, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_demo_is_planned_without_training_it(tmp_path):
    result = main(
        *("--config", "configs/demo.py", "--dry_run", "--devices", "2"),
        *("--workdir", str(tmp_path / "run"), "--device_gb", "0.001"),
    )
    assert result.returncode == 2, result.stderr
    assert "Error: What does not fit" in result.stderr
    text = " ".join(result.stdout.split())
    assert "Compiling the step of stage teacher for 2 devices Stage teacher" in text
    assert "Stage teacher: 1,536,128 parameters; bert of 2 layers" in text
    assert "Stage contrast: 6,498,818 parameters, 4,810,242 trained" in text
    assert "mesh data 2 x model 1; float32; batch 128" in text
    assert text.count("memory of a device:") == 3
    assert "The model alone, with its optimizer, takes" in text
    assert not (tmp_path / "run").exists()


def test_devices_need_a_dry_run():
    result = main("--config", "configs/demo.py", "--devices", "2")
    assert result.returncode == 2
    assert "--devices has no effect without --dry_run" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["align", "distill"])
def test_the_published_recipes_are_planned_for_eight_devices(recipe):
    # Stage 2 goes on from a stage 1 that is still to be trained.
    config = f"configs/{recipe}.py"
    result = main("--config", config, "--dry_run", "--devices", "8")
    assert result.returncode == 0, result.stderr
    text = " ".join(result.stdout.split())
    assert "xlm-roberta of 24 layers, 1024 wide; views pivot 30,522" in text
    total = float(text.split("memory of a device: ")[1].split()[0])
    assert 10 < total < 40  # GB, on devices of 80


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    ["4 12 128 256 none 0", "4 12 96 256 layer 0", "2 32 96 256 none 16"],
)
def test_a_step_takes_what_was_planned(sizes):
    # Blocks of any size go back to the system when they are freed.
    environ = {"MALLOC_MMAP_THRESHOLD_": "262144", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(PROGRAM), *sizes.split()],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    planned, taken = map(int, result.stdout.split())
    assert abs(taken / planned - 1) < 0.1


def test_lines_of_a_stage_say_what_is_off():
    stage = stage_plan()
    console = Console(file=io.StringIO(), width=200)
    with jax.set_mesh(stage.mesh):
        dry_run._print("train", stage, memory_plan.Memory(1, 2, 0, 3, 4), console)
    assert "encode_chunk off, remat none" in console.file.getvalue()
