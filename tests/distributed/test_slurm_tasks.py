"""Tasks of SLURM steps meet, each with their own, whatever else listens on the host."""

import contextlib
import socket
import threading

import pytest

from lsrjax.distributed import slurm
from lsrjax.errors import InputError


def task(rank, job, step=0, restart=0):
    return {
        "SLURM_STEP_NODELIST": "127.0.0.[1-2]",
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": str(step),
        "SLURM_RESTART_COUNT": str(restart),
        "SLURM_PROCID": str(rank),
    }


@pytest.fixture(autouse=True)
def listeners(monkeypatch):
    """All that is opened, closed in the end: a run keeps its door until it ends."""
    opened = []
    listen = slurm._listen

    def kept(port):
        opened.append(listen(port))
        return opened[-1]

    monkeypatch.setattr(slurm, "_listen", kept)
    yield opened
    for one in opened:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[007,010-015]", "node007"),
        ("gpu-a[3]-ib,gpu-b1", "gpu-a3-ib"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_the_first_of_the_nodes(nodes, first):
    assert slurm.first_host(nodes) == first


# The doors of these are the same, one after the other.
SAME = [(5, 0), (5 + slurm._DOORS, 0), (5 + 2 * slurm._DOORS, 0)]


@pytest.mark.parametrize("steps", [SAME, [(5, 0), (5, 1)], [(36, 0), (5, 1)]])
def test_steps_on_one_host_meet_their_own(steps):
    found = {}

    def meet(key, environ):
        found[key] = slurm.meet(environ, 20)

    threads = [
        threading.Thread(target=meet, args=((*one, rank), task(rank, *one)))
        for one in steps
        # Those that look come first, and find only the others' at first.
        for rank in (2, 1, 0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    addresses = {one: {found[*one, rank] for rank in range(3)} for one in steps}
    assert all(len(same) == 1 for same in addresses.values())
    assert len(set.union(*addresses.values())) == len(steps)


def test_what_started_again_is_not_taken_for_what_it_was():
    slurm.meet(task(0, 5), 1)
    again = slurm.meet(task(0, 5, restart=1), 1)
    assert slurm.meet(task(1, 5, restart=1), 5) == again
    assert slurm.meet(task(1, 5), 5) != again


@pytest.mark.parametrize("offset", [0, 1], ids=["the door", "the coordinator's"])
def test_a_port_in_use_is_passed_by(offset):
    first, second, *_ = slurm._doors(9, 0)
    with socket.create_server(("", first + offset)):
        assert slurm.meet(task(0, 9), 1) == f"127.0.0.1:{second + 1}"
        assert slurm.meet(task(1, 9), 5) == f"127.0.0.1:{second + 1}"


def test_no_free_port_is_refused_with_those_tried(monkeypatch):
    monkeypatch.setattr(slurm, "_TRIED", 2)
    doors = slurm._doors(11, 0)
    with (
        socket.create_server(("", doors[0])),
        socket.create_server(("", doors[1])),
        pytest.raises(InputError, match=f"{doors[0]}, {doors[1]}.*JAX_COORDINATOR"),
    ):
        slurm.meet(task(0, 11), 1)


def test_a_task_0_that_never_comes_is_not_waited_for_forever():
    with pytest.raises(InputError, match=r"did not answer on 127\.0\.0\.1 in 0 s"):
        slurm.meet(task(1, 13), 0.4)


def test_a_node_without_an_address_is_named():
    environ = task(1, 13) | {"SLURM_STEP_NODELIST": "no.such.node.invalid"}
    with pytest.raises(InputError, match="no.such.node.invalid, has no address"):
        slurm.meet(environ, 5)


def test_ports_stay_within_what_there_is_and_off_those_given_out():
    for job in (0, 1999, 2**31 - 1):
        for step in (0, 7, 4_294_967_291):
            doors = slurm._doors(job, step)
            assert len(set(doors)) == len(doors)
            assert all(door > 60_999 and door + 1 < 65_536 for door in doors)
