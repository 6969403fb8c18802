"""launch/: usage, processes of one machine, and what would go to a TPU pod."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lsrjax.checkpoint import saved_model

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
LOCAL, POD, SLURM = LAUNCH / "local.sh", LAUNCH / "tpu_pod.sh", LAUNCH / "slurm.sbatch"
TINY = ROOT / "tests" / "configs" / "launched.py"


def environment(**variables):
    kept = ("PATH", "HOME", "TMPDIR", "PYTHONPATH")
    environ = {name: os.environ[name] for name in kept if name in os.environ}
    return environ | {"CUDA_VISIBLE_DEVICES": ""} | variables


def run(script, *arguments, **variables):
    return subprocess.run(
        [script, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", [LOCAL, POD, SLURM], ids=lambda path: path.name)
def test_usage(script):
    asked, bare = run(script, "-h"), run(script)
    assert (asked.returncode, bare.returncode) == (0, 2)
    assert asked.stdout == bare.stdout
    assert "--config" in asked.stdout and "python -m lsrjax.main" in asked.stdout
    # Every variable that it reads is listed.
    text = script.read_text()
    read = set(re.findall(r"\$\{([A-Z_]+):-", text))
    read -= {n for n in read if n.startswith("SLURM")} | {"CUDA_VISIBLE_DEVICES"}
    assert len(read) >= 3
    for name in read:
        assert re.search(rf"^    {name} ", asked.stdout, re.MULTILINE), name


@pytest.mark.parametrize("script", [LOCAL, POD, SLURM], ids=lambda path: path.name)
def test_scripts_are_clean(script):
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_container_file_is_clean():
    hadolint = pathlib.Path(sys.executable).with_name("hadolint")
    found = subprocess.run(
        [hadolint, ROOT / "launch" / "Dockerfile"], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    # What it copies is there.
    copied = re.findall(
        r"^COPY (.+) \S+$", (ROOT / "launch/Dockerfile").read_text(), re.MULTILINE
    )
    names = " ".join(copied).split()
    assert len(names) == 6 and all((ROOT / name).exists() for name in names)


@pytest.fixture
def stub(tmp_path):
    """An executable that takes the place of the interpreter."""
    path = tmp_path / "python stub"
    program = ROOT / "tests" / "programs" / "stub_main.py"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} {program} " + '"$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def started(output):
    """What each process was started with, by its number."""
    lines = re.findall(r"^\[(\d+)\] (\{.*\})$", output, re.MULTILINE)
    return {int(number): json.loads(line) for number, line in lines}


def test_processes_get_the_arguments_as_they_are_and_their_numbers(stub):
    given = ["--config", "my config.py", "--config.x=$HOME '*'"]
    ended = run(LOCAL, "3", *given, PYTHON=stub)
    assert ended.returncode == 0, ended
    found = started(ended.stdout)
    assert sorted(found) == [0, 1, 2]
    addresses = set()
    for number, one in found.items():
        assert one["argv"][: 2 + len(given)] == ["-m", "lsrjax.main", *given]
        address, *flags = one["argv"][3 + len(given) :]
        addresses.add(address)
        assert flags == ["--num_processes", "3", "--process_id", str(number)]
        assert f"[{number}] {number} leaves" in ended.stderr
    (address,) = addresses
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    again = started(run(LOCAL, "2", *given, PYTHON=stub).stdout)
    assert address not in again[0]["argv"]


def test_one_process_is_alone(stub):
    found = started(run(LOCAL, "1", "--config", "a.py", PYTHON=stub).stdout)
    assert found[0]["argv"] == ["-m", "lsrjax.main", "--config", "a.py"]


def test_output_goes_to_a_file_for_each_process(stub, tmp_path):
    ended = run(LOCAL, "2", "--config", "a", PYTHON=stub, LOG_DIR=str(tmp_path / "l"))
    assert ended.stdout == ended.stderr == ""
    for number in (0, 1):
        said = (tmp_path / "l" / f"{number}.log").read_text()
        assert '"--process_id", "' + str(number) in said and "leaves" in said


@pytest.mark.parametrize(("processes", "shares"), [(2, ["4,5", "6,7"]), (1, [None])])
def test_gpus_are_shared_out(stub, processes, shares):
    environ = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    found = started(run(LOCAL, str(processes), "--x", PYTHON=stub, **environ).stdout)
    wanted = [share or "4,5,6,7" for share in shares]
    assert [found[i]["devices"] for i in range(processes)] == wanted


@pytest.mark.parametrize(
    ("first", "devices", "why"),
    [
        ("two", "", "number of processes, not 'two'"),
        ("0", "", "number of processes, not '0'"),
        ("--config", "", "number of processes, not '--config'"),
        ("3", "0,1,2,3", "4 GPUs do not divide over 3"),
        ("2", "0", "1 GPUs do not divide over 2"),
    ],
)
def test_what_cannot_be_started_is_refused(stub, first, devices, why):
    ended = run(LOCAL, first, "--x", PYTHON=stub, CUDA_VISIBLE_DEVICES=devices)
    assert ended.returncode == 2 and why in ended.stderr and ended.stdout == ""


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("exit 0", "exit 0", 0),
        ("exit 3", "hang", 3),  # hangs: ended by SIGTERM
        ("hang", "exit 3", 3),
        ("exit 75", "exit 75", 75),
        ("exit 0", "exit 75", 75),
        ("exit 75", "exit 2", 2),
        ("exit 5", "signals", 5),  # does not end at SIGTERM: killed
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(stub, first, second, code):
    then = time.monotonic()
    ended = run(LOCAL, "2", "--x", PYTHON=stub, STUB_0=first, STUB_1=second, GRACE="1")
    assert ended.returncode == code, ended
    assert time.monotonic() - then < 30  # the stub would wait for 60
    if code:
        assert f"ended with exit code {code}." in ended.stderr
    assert ("are killed" in ended.stderr) == (second == "signals")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_signals_reach_every_process(stub, tmp_path, name):
    environ = environment(PYTHON=stub, **{f"STUB_{i}": "signals" for i in range(3)})
    environ["LOG_DIR"] = str(tmp_path)
    script = subprocess.Popen([LOCAL, "3", "--x"], env=environ, stderr=subprocess.PIPE)
    logs = [tmp_path / f"{number}.log" for number in range(3)]

    def wait(words, count):
        deadline = time.monotonic() + 30
        while [log.read_text().count(words) for log in logs if log.exists()] != count:
            assert time.monotonic() < deadline and script.poll() is None
            time.sleep(0.05)

    try:
        wait("waits", [1, 1, 1])
        script.send_signal(getattr(signal, name))
        wait(f"got {name}", [1, 1, 1])
        script.send_signal(signal.SIGTERM)
        # They say so when they are started again.
        assert script.wait(timeout=30) == 75
    finally:
        script.kill()
        script.communicate()


def metrics(workdir):
    lines = (workdir / "teacher" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_train(tmp_path):
    environ = {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable}
    models = []
    for processes, workdir in (("1", tmp_path / "one"), ("2", tmp_path / "two")):
        command = [LOCAL, processes, "--config", TINY, "--workdir", workdir]
        ended = subprocess.run(
            command,
            env=environment(**environ),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        models.append(saved_model.load_model(workdir / "teacher").params)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [m["step"] for m in two] == [m["step"] for m in one] == [1, 2, 3, 4, 5]
    for a, b in zip(two, one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert "[0] " in ended.stdout and "stage=teacher step=5/5" in ended.stdout
    close = {"rtol": 0, "atol": 1e-5}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), *models)


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """A fake one, which records its arguments, and gives back what CODE says."""
    record = tmp_path / "calls.jsonl"
    path = tmp_path / "bin" / "gcloud"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(record)!r}, 'a') as file:\n"
        "    file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit(int(os.environ.get('CODE', '0')))\n"
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    def calls():
        lines = record.read_text().splitlines() if record.exists() else []
        return [json.loads(line) for line in lines]

    return calls


def words(call):
    """The command of a call, as the shell of a worker splits it."""
    return shlex.split(call[call.index("--command") + 1])


def test_a_pod_runs_the_same_command_on_all_workers(gcloud):
    given = ["--config", "my config.py", "--config.x=$HOME '*'", "--workdir", "/b/r"]
    ended = run(
        POD,
        *given,
        TPU="pod-1",
        ZONE="us-central2-b",
        PROJECT="mine",
        HF_HUB_OFFLINE="1",
        FOLDER="~/code",
        GCLOUD_OPTIONS="--internal-ip --quiet",
    )
    assert ended.returncode == 0, ended
    for call, module in zip(gcloud(), ("doctor", "main"), strict=True):
        assert call[:6] == [
            "compute",
            "tpus",
            "tpu-vm",
            "ssh",
            "pod-1",
            "--internal-ip",
        ]
        assert {"--worker=all", "--quiet"} <= set(call)
        assert call[call.index("--zone") + 1] == "us-central2-b"
        assert call[call.index("--project") + 1] == "mine"
        said = words(call)
        assert said[:6] == ["cd", "~/code", "&&", "export", "HF_HUB_OFFLINE=1", "&&"]
        assert said[6:] == ["python3", "-m", f"lsrjax.{module}", *given, "--tpu_pod"]


def test_a_pod_is_not_started_where_the_doctor_finds_errors(gcloud):
    ended = run(POD, "--config", "a.py", TPU="pod", CODE="1")
    assert ended.returncode == 1 and "not started" in ended.stderr
    assert len(gcloud()) == 1


def test_a_pod_gives_back_what_gcloud_gives(gcloud):
    ended = run(POD, "--config", "a.py", TPU="pod", DOCTOR="0", CODE="7")
    (call,) = gcloud()
    assert ended.returncode == 7 and "--zone" not in call
    assert words(call)[-4:] == ["lsrjax.main", "--config", "a.py", "--tpu_pod"]


def test_a_pod_is_stopped_by_a_signal(gcloud):
    assert run(POD, "stop", TPU="pod").returncode == 0
    (call,) = gcloud()
    assert words(call) == ["pkill", "-TERM", "-f", "--", "-m [l]srjax.main"]


def test_a_pod_needs_a_name(gcloud):
    ended = run(POD, "--config", "a.py")
    assert ended.returncode == 2 and "set TPU" in ended.stderr and gcloud() == []
