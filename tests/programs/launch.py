"""Starts the processes of a run on simulated devices, and waits for them."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

# Makes XLA read its flags, and compiles nothing.
_READ_FLAGS = "from jaxlib import xla_client as x; x.CompileOptions()"


def known(flags: Sequence[str]) -> str:
    """Those of XLA's flags that this XLA has: it aborts on any other.

    Releases add flags and drop them, and only XLA can say which it has.

    Args:
      flags: each as in `--xla_…=value`.

    Returns:
      What `XLA_FLAGS` takes.
    """
    command = [sys.executable, "-c", _READ_FLAGS]
    environ = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    if not subprocess.run(command, env=environ, capture_output=True).returncode:
        return environ["XLA_FLAGS"]
    if len(flags) == 1:
        return ""
    return " ".join(filter(None, (known([flag]) for flag in flags)))


# Steps that run a few times compile longer than they run. The program is divided and
# fused as ever; its machine code is made with fewer passes and by the older emitter.
QUICK = known(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    )
)


@dataclasses.dataclass(frozen=True)
class Started:
    """A process, and the files that its output goes to."""

    process: subprocess.Popen
    stdout: pathlib.Path
    stderr: pathlib.Path

    def ends(self, seconds: float) -> int:
        """Its exit status; a process that goes on after so long is killed."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def said(self) -> str:
        """All that it has written so far."""
        return self.stdout.read_text() + self.stderr.read_text()


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(
    command: Sequence[str],
    folder: pathlib.Path,
    *,
    processes: int,
    devices: int,
    xla_flags: str = QUICK,
) -> list[Started]:
    """Starts `python <command>` as the processes of one run, over loopback.

    Args:
      command: a program and its flags; those of the processes are added, unless there
        is one.
      folder: where the output goes, to `stdout.<number>` and `stderr.<number>`.
      processes: of the run.
      devices: simulated ones of each process.
      xla_flags: besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    # What says how JAX starts, in this program or by its user, is not for them.
    strip = ("JAX_", "SLURM_", "TPU_", "XLA_", "CUDA_VISIBLE")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(strip)}
    environ["JAX_PLATFORMS"] = "cpu"
    environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} {xla_flags}"
    )
    started = []
    for number in range(processes):
        flags = [
            *("--coordinator", f"127.0.0.1:{port}"),
            *("--num_processes", str(processes), "--process_id", str(number)),
        ]
        files = [folder / f"{name}.{number}" for name in ("stdout", "stderr")]
        with files[0].open("w") as out, files[1].open("w") as err:
            process = subprocess.Popen(
                [sys.executable, *command, *(flags if processes > 1 else [])],
                env=environ,
                stdout=out,
                stderr=err,
            )
        started.append(Started(process, *files))
    return started


def finish(started: Sequence[Started], seconds: float = 300) -> None:
    """Waits until all have ended well; else kills them and shows what they said."""
    deadline = time.monotonic() + seconds
    try:
        while any(one.process.poll() is None for one in started):
            failed = any(one.process.poll() for one in started)
            assert not failed, "a process failed"
            assert time.monotonic() < deadline, f"not finished in {seconds} s"
            time.sleep(0.05)
        assert all(one.process.poll() == 0 for one in started), "a process failed"
    except AssertionError as error:
        said = "\n".join(f"process {i}:\n{one.said()}" for i, one in enumerate(started))
        raise AssertionError(f"{error}\n{said}") from None
    finally:
        kill(started)


def kill(started: Sequence[Started]) -> None:
    """Kills those that still run."""
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
