"""launch/slurm.sbatch on a real SLURM cluster, of two nodes on this machine."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from programs import launch, slurm_cluster

from lsrjax.checkpoint import saved_model

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
TINY = ROOT / "tests" / "configs" / "launched.py"
GOLDEN = ROOT / "tests" / "configs" / "golden_infonce.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(slurm_cluster.missing()),
        reason="SLURM is not installed, as by `apt-get install slurm-wlm munge`:"
        f" {', '.join(slurm_cluster.missing())} missing",
    ),
]


@pytest.fixture(scope="module")
def cluster():
    strip = ("JAX_", "SLURM_", "SBATCH_", "TPU_", "XLA_", "CUDA_VISIBLE")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(strip)}
    environ |= {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    environ["XLA_FLAGS"] = launch.QUICK
    # The path of pytest's own folders may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        started = slurm_cluster.Cluster.start(pathlib.Path(folder), environ)
        try:
            yield started
        finally:
            started.stop()


@pytest.fixture(autouse=True)
def nothing_left(cluster):
    """What a test has left running would slow the next ones down."""
    yield
    cluster.run("scancel", "--user", os.getuid())


def submit(cluster, folder, *flags, config=TINY, nodes=2, doctor="0"):
    """Submits the run of a folder."""
    folder.mkdir(exist_ok=True)
    command = [f"--nodes={nodes}", "--chdir", ROOT, SCRIPT, "--config", config]
    command += ["--workdir", folder / "run", *flags]
    return cluster.submit(folder / "job.out", *command, DOCTOR=doctor)


# A run that can be met in its middle; and the log of every step.
STEPS = 120
LONG = [f"--config.stages.teacher.steps={STEPS}"]
LONG += ["--config.stages.teacher.checkpoint.every=20"]


def metrics(workdir):
    lines = (workdir / "teacher" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def params(workdir):
    return saved_model.load_model(workdir / "teacher").params


@pytest.fixture(scope="module")
def at_once(cluster, tmp_path_factory):
    """Two jobs that run at the same time on the same two nodes: a short, a long one."""
    folder = tmp_path_factory.mktemp("at_once")
    jobs = {
        "long": submit(cluster, folder / "long", *LONG),
        "short": submit(cluster, folder / "short", doctor="1"),
    }
    for job in jobs.values():
        job.wait_for(lambda job=job: job.state() == "RUNNING")
    assert [job.state() for job in jobs.values()] == ["RUNNING", "RUNNING"]
    for job in jobs.values():
        assert job.ends() == "COMPLETED", job.said()
    return folder, jobs


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The short run in one process, without SLURM."""
    folder = tmp_path_factory.mktemp("alone")
    command = ["-m", "lsrjax.main", "--config", str(TINY)]
    command += ["--workdir", str(folder / "run")]
    launch.finish(launch.start(command, folder, processes=1, devices=1), 900)
    return folder / "run"


def test_two_nodes_give_the_losses_of_one_process(at_once, alone):
    folder, _ = at_once
    found, wanted = metrics(folder / "short" / "run"), metrics(alone)
    assert [m["step"] for m in found] == [m["step"] for m in wanted] == [1, 2, 3, 4, 5]
    for a, b in zip(found, wanted, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_two_jobs_at_once_do_not_meet_each_other(at_once, alone):
    folder, _ = at_once
    # Each has the losses of its own run, which are the same in the first steps.
    found = metrics(folder / "long" / "run")
    assert len(found) == STEPS
    for a, b in zip(found, metrics(alone), strict=False):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_the_doctor_goes_first_unless_it_is_switched_off(at_once):
    _, jobs = at_once
    said = jobs["short"].said()
    assert "2 processes" in said and "no error" in said
    assert said.index("no error") < said.index("Stage teacher")
    assert "no error" not in jobs["long"].said()


def assert_same_params(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, params(found), params(wanted))


def test_a_requeued_job_goes_on_to_the_same_end(cluster, at_once, tmp_path):
    folder, _ = at_once
    job = submit(cluster, tmp_path, *LONG)
    first = tmp_path / "run" / "teacher" / "checkpoints" / "20"
    job.wait_for(first.is_dir)
    cluster.run("scontrol", "requeue", job.number)
    job.start_again()
    assert not (tmp_path / "run" / "teacher" / "done.json").exists()
    assert job.ends() == "COMPLETED", job.said()
    said = job.said()
    assert "start 2" in said and said.count("has finished") == 1
    assert_same_params(tmp_path / "run", folder / "long" / "run")


def processes_of(job):
    """The ids of the job's tasks, by their numbers."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_JOB_ID={job.number}".encode() in environ and b"-m" in command[:3]:
            rank = [v[13:] for v in environ if v.startswith(b"SLURM_PROCID=")]
            found[int(rank[0])] = int(entry.name)
    return found


def test_a_task_that_is_killed_ends_the_job_and_is_named(cluster, tmp_path):
    job = submit(cluster, tmp_path, "--config.stages.teacher.steps=100000")
    log = tmp_path / "run" / "teacher" / "metrics.jsonl"
    job.wait_for(log.exists)
    tasks = processes_of(job)
    assert sorted(tasks) == [0, 1]
    os.kill(tasks[1], signal.SIGKILL)
    assert job.ends(200) == "FAILED"
    assert job.exit_code() == 128 + signal.SIGKILL
    (line,) = re.findall(r"slurm\.sbatch: job .* failed .*", job.said())
    assert "exit code 137" in line and "127.0.0.2: task 1: Killed" in line
    assert job.restarts() == 0


def test_what_the_doctor_finds_ends_the_job(cluster, tmp_path):
    flags = ["--config.data.source=files"]
    flags += ["--config.data.source.files=/no/such/file.jsonl"]
    job = submit(cluster, tmp_path, *flags, config=GOLDEN, nodes=1, doctor="1")
    assert job.ends() == "FAILED" and job.exit_code() == 1
    said = job.said()
    assert "/no/such/file.jsonl" in said and "is not started" in said
    assert not (tmp_path / "run").exists()


def test_a_signal_saves_and_requeues(cluster, at_once, tmp_path):
    folder, _ = at_once
    job = submit(cluster, tmp_path, *LONG)
    log = tmp_path / "run" / "teacher" / "metrics.jsonl"
    # Before the first step there is nothing to save.
    job.wait_for(lambda: log.exists() and log.read_text().count("\n") > 1)
    cluster.run("scancel", "--signal=USR1", job.number)
    job.start_again()
    assert "was saved and is queued again" in job.said()
    # A state that no checkpoint was due for is kept beside them.
    saved = (tmp_path / "run" / "teacher").glob("**/checkpoints/*")
    assert [path for path in saved if path.name.isdigit()]
    assert job.ends() == "COMPLETED", job.said()
    assert_same_params(tmp_path / "run", folder / "long" / "run")


def test_the_script_is_for_sbatch():
    ended = subprocess.run([SCRIPT, "--config", TINY], capture_output=True, text=True)
    assert ended.returncode == 2 and "sbatch launch/slurm.sbatch" in ended.stderr
