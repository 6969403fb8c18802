"""How the tasks of a SLURM step find each other: a reserved port on the first node.

JAX's coordinators may share a port on one host without an error in either, and the
processes of two runs are mixed up. So task 0 holds a port that no other program can
hold at the same time, the door, and its coordinator uses the next one. The other tasks
try all possible doors and name the step that they belong to.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Mapping

from lsrjax.errors import InputError

# Above the range that Linux uses for outgoing connections, which ends at 60999.
_FIRST, _DOORS = 61_440, 2_000
# Candidate doors of a step, spaced apart from those of the next jobs.
_TRIED, _STRIDE = 16, 127
# For one answer; another program at a door may never answer.
_ANSWER_SECONDS = 2.0


def meet(environ: Mapping[str, str], seconds: float) -> str:
    """The `host:port` of a step's coordinator; task 0 also reserves it.

    Raises:
      InputError: the first node's name has no address, or it does not answer in
        `seconds` or has no free port.
    """
    host = first_host(environ["SLURM_STEP_NODELIST"])
    job, number = _job_and_step(environ)
    restart = whole(environ, "SLURM_RESTART_COUNT", 0)
    doors = _doors(job, number)
    name = f"lsrjax {job}.{number}.{restart}\n".encode()
    if whole(environ, "SLURM_PROCID", 0) == 0:
        door = hold(doors, name)
    else:
        door = find(host, doors, name, seconds)
    return f"{host}:{door + 1}"


def step(environ: Mapping[str, str]) -> str:
    """The name of the step that this process belongs to, as in `squeue --steps`."""
    return "{}.{}".format(*_job_and_step(environ))


def _job_and_step(environ: Mapping[str, str]) -> tuple[int, int]:
    name = "SLURM_STEP_ID" if "SLURM_STEP_ID" in environ else "SLURM_STEPID"
    return whole(environ, "SLURM_JOB_ID", 0), whole(environ, name, 0)


def whole(environ: Mapping[str, str], name: str, default: int) -> int:
    """A non-negative number from the environment, or InputError; empty is unset."""
    text = environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise InputError(
            f"The environment variable {name} is {text!r}, which is no number. The"
            " launcher sets it: correct it, or unset it for a run of one process."
        )
    return int(text) if text else default


def first_host(nodes: str) -> str:
    """`node007` of `node[007,010-015],login1`."""
    first = re.match(r"([^,\[]*)(?:\[([^,\-\]]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(first.groups(default="")) if first else ""


def _doors(job: int, step: int) -> list[int]:
    """The candidate ports for a step's door, in order; each has its next one spare."""
    first = job + 31 * step
    return [_FIRST + 2 * ((first + _STRIDE * i) % _DOORS) for i in range(_TRIED)]


def hold(doors: list[int], name: bytes) -> int:
    """Holds the first free door until this process ends; InputError if none is free.

    Answers visitors that send `name`.
    """
    for port in doors:
        try:
            listener = _listen(port)
        except OSError:
            continue
        try:
            _listen(port + 1).close()
        except OSError:
            listener.close()
            continue
        thread = threading.Thread(target=_answer, args=(listener, name), daemon=True)
        thread.start()
        return port
    raise InputError(
        f"None of the ports {', '.join(str(port) for port in doors)}, with the next one"
        f" each, is free on {socket.gethostname()}. Set JAX_COORDINATOR_PORT to one"
        " that is, the same for all tasks."
    )


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server(("", port), backlog=1024)


def _answer(listener: socket.socket, name: bytes) -> None:
    while True:
        try:
            visitor, _ = listener.accept()
        except OSError:  # it is closed
            return
        with visitor, contextlib.suppress(OSError):
            visitor.settimeout(_ANSWER_SECONDS)
            if visitor.makefile("rb").readline(len(name)) == name:
                visitor.sendall(name)


def find(host: str, doors: list[int], name: bytes, seconds: float) -> int:
    """The door that task 0 holds under a name.

    Raises:
      InputError: the host has no address, or task 0 does not answer.
    """
    deadline = time.monotonic() + seconds
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise InputError(
            f"The first node of this SLURM step, {host}, has no address on"
            f" {socket.gethostname()} ({error}). Give --coordinator, --num_processes"
            " and --process_id, or set JAX_COORDINATOR_ADDRESS."
        ) from error
    while time.monotonic() < deadline:
        for port in doors:
            if _is_at(host, port, name):
                return port
        time.sleep(0.2)
    raise InputError(
        f"Task 0 did not answer on {host} in {seconds:.0f} s (tried the ports"
        f" {', '.join(str(port) for port in doors)}). Its output may say why; if a"
        " firewall is between the nodes, set JAX_COORDINATOR_PORT to an open port."
    )


def _is_at(host: str, port: int, name: bytes) -> bool:
    try:
        with socket.create_connection((host, port), _ANSWER_SECONDS) as door:
            door.sendall(name)
            return door.makefile("rb").readline(len(name)) == name
    except OSError:
        return False
