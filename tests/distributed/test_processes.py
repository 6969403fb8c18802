"""Several processes are one run: who joins, what is refused, and the same numbers."""

import json
import math
import pathlib
import re
import socket
import time

import jax
import numpy as np
import pytest
from programs import launch

from lsrjax.checkpoint import saved_model
from lsrjax.data.batching.orders import Order
from lsrjax.distributed import processes as hosts
from lsrjax.distributed import slurm as rendezvous
from lsrjax.errors import InputError

TESTS = pathlib.Path(__file__).parents[1]
TWO_MESHES = TESTS / "configs" / "two_meshes.py"
GOLDEN = TESTS / "configs" / "golden_infonce.py"
ALIGNED = f"{TESTS / 'configs' / 'tiny_demo.py'}:aligned"


_PATIENCE = ("initialization_timeout", "heartbeat_timeout_seconds")


class Cluster:
    """Stands for JAX: keeps what it is initialized with, and says what there is."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.settings = {}
        self.error = None
        self.processes, self.devices = 1, 1
        monkeypatch.setattr(jax.distributed, "initialize", self._initialize)
        monkeypatch.setattr(jax.config, "update", self.settings.__setitem__)
        # The ports of it have tests of their own.
        monkeypatch.setattr(rendezvous, "meet", lambda *_: "node1:1234")
        monkeypatch.setattr(jax, "process_count", lambda: self.processes)
        monkeypatch.setattr(jax, "device_count", lambda: self.devices)
        monkeypatch.setattr(
            jax, "local_device_count", lambda: self.devices // self.processes
        )

    def _initialize(self, **options):
        self.calls.append(options)
        if self.error:
            raise self.error

    @property
    def options(self):
        """Of the only call, but for its patience."""
        (options,) = self.calls
        return {k: v for k, v in options.items() if not k.endswith(_PATIENCE)}


@pytest.fixture
def cluster(monkeypatch):
    return Cluster(monkeypatch)


MET = {"coordinator_address": "node1:1234"}
FLAGS = {"coordinator": "first:1234", "num_processes": 3, "process_id": 2}


def slurm(**variables):
    """The environment of a task of a step, such as the docs of SLURM list it."""
    step = {
        "SLURM_JOB_ID": 71,
        "SLURM_PROCID": 0,
        "SLURM_LOCALID": 0,
        "SLURM_NTASKS": 1,
        "SLURM_STEP_NUM_TASKS": 1,
        "SLURM_STEP_NUM_NODES": 1,
        "SLURM_NNODES": 1,
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "1",
    }
    return {name: str(value) for name, value in (step | variables).items()}


EIGHT = "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize(
    "missing",
    [
        "SLURM_JOB_ID",
        "SLURM_STEP_NODELIST",
        "SLURM_NTASKS",
        "SLURM_PROCID",
        "SLURM_LOCALID",
    ],
)
@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_slurm_did_not_set_is_named(cluster, missing, value):
    environ = slurm(SLURM_NTASKS=2, SLURM_STEP_NUM_TASKS=2)
    if value is None:
        del environ[missing]
    else:
        environ[missing] = value
    with pytest.raises(InputError, match=f"SLURM_STEP_NUM_TASKS is 2.*{missing}"):
        hosts.start(environ=environ)
    assert not cluster.calls


@pytest.mark.parametrize(
    "name", ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID"]
)
def test_a_variable_that_is_no_number_is_named(cluster, name):
    environ = slurm(SLURM_NTASKS=2, SLURM_STEP_NUM_TASKS=2) | {name: "2(x2)"}
    with pytest.raises(InputError, match=rf"{name} is '2\(x2\)'"):
        hosts.start(environ=environ)


def test_an_empty_variable_is_as_an_absent_one(cluster):
    hosts.start(environ={"SLURM_STEP_NUM_TASKS": ""})
    assert not cluster.calls
    assert hosts.expected(None, None, None, environ={"SLURM_STEP_NUM_TASKS": ""}) == (
        "",
        1,
        0,
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"coordinator": "first"}, "--coordinator is 'first'"),
        ({"coordinator": "first:port"}, "--coordinator is 'first:port'"),
        ({"coordinator": ":1234"}, "--coordinator is ':1234'"),
        ({"coordinator": "first:99999"}, "--coordinator is 'first:99999'"),
        ({"process_id": 3}, "--process_id is 3"),
        ({"process_id": -1}, "--process_id is -1"),
        ({"num_processes": 0}, "--num_processes is 0"),
    ],
)
def test_flags_that_make_no_run_are_refused(cluster, changed, said):
    with pytest.raises(InputError, match=said):
        hosts.start(**FLAGS | changed, environ={})
    assert not cluster.calls


def test_whom_a_process_waits_for_is_said_until_they_come(monkeypatch, capfd):
    monkeypatch.setattr(hosts, "_SAY_SECONDS", 0.01)
    with hosts._said_while_waiting(4, 1, "all meet at first:1234"):
        time.sleep(0.3)
    said = capfd.readouterr().err
    assert f"Process 1 of 4, on {socket.gethostname()}, waits" in said
    assert "waits for the others (0, 2, 3)" in said and "(all meet at first:1" in said
    time.sleep(0.05)
    assert not capfd.readouterr().err


def test_a_platform_that_there_is_not_is_named(monkeypatch):
    def assertion():
        raise AssertionError

    def error():
        raise RuntimeError("Unable to initialize backend 'tpu': no\nlibtpu.so")

    monkeypatch.setattr(type(jax.config), "jax_platforms", "tpu", raising=False)
    for devices in (assertion, error):
        monkeypatch.setattr(jax, "devices", devices)
        with pytest.raises(InputError, match="JAX_PLATFORMS.*'tpu'"):
            hosts.check_devices()


@pytest.mark.parametrize("given", FLAGS)
def test_flags_that_miss_others_are_refused_and_named(cluster, given):
    with pytest.raises(InputError) as error:
        hosts.start(**{given: FLAGS[given]}, environ={})
    said, _, _ = str(error.value).partition(" is missing")
    named = set(re.findall(r"--(\w+)", said))
    assert named == FLAGS.keys() - {given}
    assert cluster.calls == []


def test_the_process_number_0_is_one(cluster):
    cluster.processes = 3
    hosts.start(**FLAGS | {"process_id": 0}, environ={})
    assert cluster.options["process_id"] == 0


def test_flags_say_who_is_who_whatever_slurm_says(cluster):
    cluster.processes = 3
    environ = slurm(SLURM_NTASKS=16, SLURM_STEP_NUM_TASKS=16, SLURM_GPUS_ON_NODE=8)
    hosts.start(**FLAGS, environ=environ)
    assert cluster.options == {
        "coordinator_address": "first:1234",
        "num_processes": 3,
        "process_id": 2,
    }


def test_without_a_launcher_a_process_is_alone(cluster):
    hosts.start(environ={"CUDA_VISIBLE_DEVICES": EIGHT, "HOME": "/root"})
    assert cluster.calls == [] and cluster.settings == {}


@pytest.mark.parametrize("task", [0, 5, 7])
def test_slurm_with_a_task_for_each_gpu_gives_each_its_own(cluster, task):
    cluster.processes = cluster.devices = 16
    hosts.start(
        environ=slurm(
            SLURM_PROCID=8 + task,
            SLURM_LOCALID=task,
            SLURM_NTASKS=16,
            SLURM_STEP_NUM_TASKS=16,
            SLURM_STEP_NUM_NODES=2,
            SLURM_STEP_TASKS_PER_NODE="8(x2)",
            SLURM_GPUS_ON_NODE=8,
            CUDA_VISIBLE_DEVICES=EIGHT,
        )
    )
    assert cluster.options == MET | {"local_device_ids": [task]}


def test_slurm_that_shows_each_task_one_gpu_gives_it_that_one(cluster):
    cluster.processes = cluster.devices = 8
    hosts.start(
        environ=slurm(
            SLURM_PROCID=5,
            SLURM_LOCALID=5,
            SLURM_NTASKS=8,
            SLURM_STEP_NUM_TASKS=8,
            SLURM_STEP_TASKS_PER_NODE="8",
            SLURM_GPUS_ON_NODE=8,
            CUDA_VISIBLE_DEVICES="5",
        )
    )
    assert cluster.options == MET | {"local_device_ids": [0]}


def test_slurm_with_a_task_for_each_node_gives_it_all_gpus(cluster):
    cluster.processes, cluster.devices = 2, 16
    hosts.start(
        environ=slurm(
            SLURM_PROCID=1,
            SLURM_NTASKS=2,
            SLURM_STEP_NUM_TASKS=2,
            SLURM_STEP_NUM_NODES=2,
            SLURM_STEP_TASKS_PER_NODE="1(x2)",
            SLURM_GPUS_ON_NODE=8,
            CUDA_VISIBLE_DEVICES=EIGHT,
        )
    )
    assert cluster.options == MET | {"local_device_ids": list(range(8))}


def test_slurm_with_two_tasks_for_each_node_halves_its_gpus(cluster):
    cluster.processes, cluster.devices = 4, 16
    hosts.start(
        environ=slurm(
            SLURM_PROCID=3,
            SLURM_LOCALID=1,
            SLURM_NTASKS=4,
            SLURM_STEP_NUM_TASKS=4,
            SLURM_STEP_NUM_NODES=2,
            SLURM_STEP_TASKS_PER_NODE="2(x2)",
            SLURM_GPUS_ON_NODE=8,
            CUDA_VISIBLE_DEVICES=EIGHT,
        )
    )
    assert cluster.options == MET | {"local_device_ids": [4, 5, 6, 7]}


@pytest.mark.parametrize(
    ("visible", "own"), [(EIGHT, "4,5,6,7"), ("2,3", "1"), ("", "1")]
)
def test_processes_apart_take_their_gpus_and_do_not_meet(cluster, visible, own):
    environ = slurm(
        SLURM_PROCID=3,
        SLURM_LOCALID=1,
        SLURM_NTASKS=4,
        SLURM_STEP_NUM_TASKS=4,
        SLURM_STEP_TASKS_PER_NODE="2(x2)",
        CUDA_VISIBLE_DEVICES=visible,
    )
    assert hosts.apart(environ=environ) == (3, 4)
    assert cluster.settings["jax_cuda_visible_devices"] == own
    assert hosts.apart(None, 5, 2, environ=environ) == (2, 5)
    assert hosts.apart(environ={}) == (0, 1)
    assert cluster.calls == []


def test_slurm_without_gpus_leaves_the_devices_to_jax(cluster):
    cluster.processes = cluster.devices = 2
    hosts.start(environ=slurm(SLURM_NTASKS=2, SLURM_STEP_NUM_TASKS=2))
    assert cluster.options == MET | {"local_device_ids": None}


@pytest.mark.parametrize("name", ["JAX_COORDINATOR_PORT", "JAX_COORDINATOR_ADDRESS"])
def test_slurm_with_a_coordinator_of_the_users_leaves_it_to_jax(cluster, name):
    cluster.processes = 2
    hosts.start(environ=slurm(SLURM_STEP_NUM_TASKS=2) | {name: "7777"})
    assert "coordinator_address" not in cluster.options


def test_a_slurm_step_of_one_task_is_alone(cluster):
    # Such as `srun -n 1` in an allocation of 16.
    hosts.start(environ=slurm(SLURM_JOB_NUM_NODES=2, CUDA_VISIBLE_DEVICES=EIGHT))
    assert cluster.calls == []


def test_a_slurm_allocation_without_a_step_is_alone(cluster):
    # The shell that salloc opens.
    hosts.start(environ={"SLURM_JOB_ID": "71", "SLURM_NTASKS": "16"})
    assert cluster.calls == []


def test_the_script_of_a_slurm_job_is_alone(cluster):
    # It runs once, on the first node, however many tasks `srun` would start.
    hosts.start(
        environ={
            "SLURM_JOB_ID": "71",
            "SLURM_NTASKS": "16",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
        }
    )
    assert cluster.calls == []


def test_a_tpu_pod_is_joined_where_it_names_its_hosts(cluster):
    cluster.processes, cluster.devices = 2, 8
    hosts.start(environ={"TPU_WORKER_HOSTNAMES": "first,second"})
    assert cluster.options == {}
    cluster.processes = 1
    wanted = "promised 2 processes, but 1 came"
    with pytest.raises(InputError, match=wanted):
        hosts.start(environ={"TPU_WORKER_HOSTNAMES": "first,second"})


@pytest.mark.parametrize("environ", [{}, {"TPU_WORKER_HOSTNAMES": "localhost"}])
def test_a_tpu_pod_is_joined_where_the_flag_says_so(cluster, environ):
    hosts.start(environ=environ)
    assert cluster.calls == []
    cluster.processes = 4
    hosts.start(tpu_pod=True, environ=environ)
    assert cluster.options == {}


def test_several_tpu_slices_are_as_many_times_the_processes(cluster):
    cluster.processes = 6
    hosts.start(
        environ={
            "TPU_WORKER_HOSTNAMES": "first,second,third",
            "MEGASCALE_NUM_SLICES": "2",
        }
    )
    assert cluster.options == {}


def test_cpus_of_several_processes_can_reduce(cluster):
    cluster.processes = 3
    hosts.start(**FLAGS, environ={})
    assert cluster.settings["jax_cpu_collectives_implementation"] == "gloo"


def test_jax_leaves_sigterm_to_us(cluster):
    cluster.processes = 3
    hosts.start(**FLAGS, environ={})
    assert cluster.settings["jax_enable_preemption_service"] is False


def test_fewer_processes_than_promised_are_refused_with_both_numbers(cluster):
    cluster.processes = 2
    with pytest.raises(InputError, match="promised 3 processes, but 2 came"):
        hosts.start(**FLAGS, environ={})


def test_fewer_devices_than_slurm_has_are_refused_with_both_numbers(cluster):
    cluster.processes, cluster.devices = 2, 2
    with pytest.raises(InputError) as error:
        hosts.start(
            environ=slurm(
                SLURM_NTASKS=2,
                SLURM_STEP_NUM_TASKS=2,
                SLURM_STEP_NUM_NODES=2,
                SLURM_STEP_TASKS_PER_NODE="1(x2)",
                SLURM_GPUS_ON_NODE=8,
                # The wrapper of the job has narrowed it.
                CUDA_VISIBLE_DEVICES="0",
            )
        )
    said = str(error.value)
    assert "promised 16 devices" in said and "see 2 (1 here)" in said


@pytest.mark.parametrize("processes, devices", [(None, None), (3, None), (3, 6)])
def test_what_was_promised_or_never_was_is_fine(cluster, processes, devices):
    cluster.processes, cluster.devices = 3, 6
    hosts.check(processes, devices)


@pytest.mark.parametrize(
    ("flags", "environ", "named"),
    [
        (FLAGS, slurm(SLURM_STEP_NUM_TASKS=3), "meet at first:1234"),
        (
            {},
            slurm(SLURM_STEP_NUM_TASKS=4, SLURM_NTASKS=4, SLURM_STEP_ID=5)
            | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            r"step 71\.5 of SLURM runs on node\[1-2\], tasks on each node 2\(x2\)",
        ),
        ({}, {"TPU_WORKER_HOSTNAMES": "t1,t2"}, "from process 0 on, are t1, t2"),
    ],
)
def test_where_processes_that_do_not_meet_run_is_said(cluster, flags, environ, named):
    cluster.error = RuntimeError("DEADLINE_EXCEEDED")
    with pytest.raises(InputError, match=f"did not find each other.*{named}"):
        hosts.start(**flags, environ=environ)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_processes_that_do_not_meet_are_told_what_to_look_at(cluster, kind):
    cluster.error = kind("DEADLINE_EXCEEDED: 2 of 3 tasks")
    with pytest.raises(InputError, match="2 of 3 tasks.*--coordinator.*http_proxy"):
        hosts.start(**FLAGS, environ={})


def test_alone_the_largest_is_ones_own():
    assert [hosts.largest("shapes", 0, value) for value in (3, 0)] == [3, 0]
    assert hosts.is_first()
    hosts.wait_for_all("nobody")


def start(folder, processes, devices, *flags, config=TWO_MESHES, **options):
    """Starts `lsrjax.main` with `folder / run` for its work directory."""
    command = ["-m", "lsrjax.main", "--config", str(config)]
    return launch.start(
        [*command, "--workdir", str(folder / "run"), *flags],
        folder,
        processes=processes,
        devices=devices,
        **options,
    )


def run(folder, processes, devices, *flags, **options):
    """Runs `lsrjax.main` to its end; returns the work directory and the processes."""
    started = start(folder, processes, devices, *flags, **options)
    launch.finish(started, 900)
    return folder / "run", started


def metrics(workdir, stage):
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same_numbers(found, wanted, steps):
    """Every loss and gradient to 1e-5, and one in the last of the six digits kept."""
    found, wanted = ([m for m in run if "loss" in m] for run in (found, wanted))
    assert [m["step"] for m in found] == [m["step"] for m in wanted] == steps
    for a, b in zip(found, wanted, strict=True):
        for name in ("loss", "grad_norm"):
            digit = 10.0 ** (math.floor(math.log10(b[name])) - 5)
            tolerance = 1e-5 * b[name] + 1.01 * digit
            assert abs(a[name] - b[name]) <= tolerance, (a["step"], name, a, b)
        assert a["lr"] == b["lr"]


def assert_gloo_alone(text):
    """Nothing of ours; on CPU, Gloo writes a line for each of its connections."""
    known = "Gloo Rank is connected to peer ranks Expected number of connected".split()
    assert set(re.findall(r"[^\W\d]+", text)) <= set(known), text


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with four devices: the config's meshes, by texts and by terms."""
    folder = tmp_path_factory.mktemp("alone")
    return run(folder, 1, 4)[0]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two processes with two devices each."""
    return run(tmp_path_factory.mktemp("together"), 2, 2)


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_two_processes_give_the_numbers_of_one(alone, together, stage):
    workdir, _ = together
    found, wanted = metrics(workdir, stage), metrics(alone, stage)
    assert_same_numbers(found, wanted, [1, 2, 3, 4, 5])
    assert len({m["loss"] for m in wanted}) == 5
    for a, b in zip(found, wanted, strict=True):
        active = [name for name in b if name.startswith("active_")]
        assert len(active) >= 2
        for name in active:
            assert np.isclose(a[name], b[name], rtol=1e-2) and b[name] > 0


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_two_processes_leave_the_model_of_one(alone, together, stage):
    found = saved_model.load_model(together[0] / stage)
    wanted = saved_model.load_model(alone / stage)
    assert found.spec == wanted.spec

    def same(a, b):
        # And a thousandth of the learning rate, since Adam makes steps of noise.
        tolerance = 1e-5 * np.abs(b).max() + 1e-6
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)

    jax.tree.map(same, found.params, wanted.params)


def files_of(workdir):
    """All but what other libraries write: checkpoints, compiled programs, their log."""
    paths = [path.relative_to(workdir) for path in workdir.rglob("*")]
    return {
        str(path)
        for path in paths
        if path.parts[0] not in ("compiled", "libraries.log")
        and ("checkpoints" not in path.parts or len(path.parts) <= 3)
    }


def test_two_processes_leave_the_files_of_one(alone, together):
    workdir, _ = together
    assert files_of(workdir) == files_of(alone)
    assert "teacher/checkpoints/5" in files_of(workdir)
    found, wanted = (
        np.load(where / "distill" / "prepared.npz") for where in (workdir, alone)
    )
    np.testing.assert_array_equal(found["negatives"], wanted["negatives"])
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-5)


def test_only_the_first_process_speaks(together):
    _, (first, second) = together
    said = first.stdout.read_text()
    for words in (
        "Stage teacher",
        "Stage distill",
        "Preparing stage distill",
        "stage=distill step=4/5",
    ):
        assert said.count(words) == 1
    assert_gloo_alone(second.stdout.read_text())
    assert second.stderr.read_text() == ""


def mesh(stage, data, model, fsdp=False):
    where = f"--config.stages.{stage}.mesh"
    return [f"{where}.data={data}", f"{where}.model={model}", f"{where}.fsdp={fsdp}"]


@pytest.mark.slow
def test_no_mesh_over_two_processes_changes_the_numbers(alone, tmp_path):
    # The teacher's terms lie in both processes; then each process has half the texts
    # and half the terms.
    flags = [*mesh("teacher", 1, 4), *mesh("distill", 2, 2, fsdp=True)]
    workdir, _ = run(tmp_path, 2, 2, *flags)
    for stage in ("teacher", "distill"):
        found, wanted = metrics(workdir, stage), metrics(alone, stage)
        assert_same_numbers(found, wanted, [1, 2, 3, 4, 5])


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_in_an_alignment(tmp_path):
    one, _ = run(tmp_path / "one", 1, 4, config=ALIGNED)
    two, (_, second) = run(tmp_path / "two", 2, 2, config=ALIGNED)
    for stage in ("teacher", "align"):
        found, wanted = metrics(two, stage), metrics(one, stage)
        assert_same_numbers(found, wanted, [1, 2, 3])
        name = "dev_nDCG@10"
        dev = [[m[name] for m in ms if name in m] for ms in (found, wanted)]
        np.testing.assert_allclose(dev[0], dev[1], atol=2e-3)
        assert len(dev[0]) == 1
    assert_gloo_alone(second.stdout.read_text())


# How long a process may go on without the others. JAX misses one after 50 s.
BOUND = 60


def wait_for(condition, started):
    deadline = time.monotonic() + 200
    while True:
        # First, for the last thing that a process does may be what is waited for.
        running = any(one.process.poll() is None for one in started)
        if condition():
            return
        assert running and time.monotonic() < deadline, started[0].said()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("INTERNAL: Gloo all-reduce failed: Connection closed by peer", True),
        ("UNAVAILABLE: task 1 missed its heartbeats", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes", False),
    ],
)
def test_what_jax_says_of_a_lost_process_is_known(message, lost):
    assert hosts.is_lost_process(RuntimeError(message)) == lost


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other(tmp_path, victim):
    workdir = tmp_path / "run"
    flags = ["--config.stages.teacher.steps=100000"]
    flags += ["--config.stages.teacher.checkpoint.every=50"]
    started = start(tmp_path, 2, 2, *flags)
    try:
        wait_for((workdir / "teacher" / "digests" / "50.json").is_file, started)
        started[victim].process.kill()
        other = started[1 - victim]
        assert other.ends(BOUND) != 0
        said = other.said()
        # Where nothing is told to a process, its watchdog finds the silence.
        assert "lost another" in said or "has been silent" in said, said
        # Nor are the stacks and the exception of C++ said first.
        assert "stack trace" not in said and "terminate called" not in said, said
    finally:
        launch.kill(started)
    # What was saved is whole.
    saved_model.load_model(workdir / "teacher")


@pytest.mark.slow
def test_an_error_in_one_process_is_said_and_ends_the_other(tmp_path):
    reader = 1  # not the one that speaks for all
    rows = [{"query": f"{i}", "pos": [f"text {i}"], "neg": []} for i in range(1024)]
    # Met after the first 32 batches, which every process reads all of; of the others,
    # whose examples are dealt among the next 32, each process reads half of each.
    order = Order(len(rows), 8, seed=0)
    assert order.window(40).start == 32
    _, example = order[40][4 * reader]
    rows[example]["pos"] = [" "]
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--config.data.source=files", f"--config.data.source.files={path}"]
    flags += ["--config.data.bad_records=0", "--config.steps=60"]
    started = start(tmp_path, 2, 2, *flags, config=GOLDEN)
    wanted = f"{path}, row {example} "
    try:
        wait_for(lambda: wanted in started[reader].said(), started)
        assert "Error: 1 bad record (1 empty text)" in started[reader].said()
        for one in started:
            assert one.ends(BOUND) != 0
    finally:
        launch.kill(started)


@pytest.mark.parametrize(
    ("host", "bound"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("192.0.2.1", False),  # of no interface: reserved for documentation
        ("no-such-host.invalid", False),
    ],
)
def test_process_0_listens_where_it_is_told(host, bound, cluster):
    cluster.processes = 2
    address = f"{host}:1234"
    flags = {"coordinator": address, "num_processes": 2}
    hosts.start(**flags, process_id=0, environ={})
    assert cluster.options.get("coordinator_bind_address") == (
        bound and address or None
    )


def test_a_name_that_is_the_loopback_here_is_listened_for_everywhere(
    cluster, monkeypatch
):
    # As Debian writes a host's own name into /etc/hosts.
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    cluster.processes = 3
    hosts.start(**FLAGS | {"process_id": 0}, environ={})
    assert "coordinator_bind_address" not in cluster.options
