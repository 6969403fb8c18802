"""A SLURM cluster of two nodes on this machine, for tests.

The nodes are called 127.0.0.1 and 127.0.0.2, names that every machine resolves to
itself. Everything lies in one folder, and ends with `Cluster.stop`.
"""

import dataclasses
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import time

from programs.launch import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
_CONF = """
ClusterName=lsrjax
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
PlugStackConfig={folder}/plugstack.conf
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=127.0.0.1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName=127.0.0.2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def path() -> str:
    """PATH with the folders that daemons are installed to."""
    return f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"


def missing() -> list[str]:
    """What of SLURM is not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=path())]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
      folder: of its files.
      environ: in which its commands find it.
    """

    folder: pathlib.Path
    environ: dict[str, str]

    @classmethod
    def start(cls, folder: pathlib.Path, environ: dict[str, str]) -> "Cluster":
        """Starts it; returns once both nodes take jobs.

        Args:
          folder: an empty one, whose path is short enough for a socket.
          environ: the jobs' environment.
        """
        folder.chmod(0o755)  # or munged does not trust it
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (folder / "state").mkdir()
        (folder / "plugstack.conf").touch()
        for node in ("127.0.0.1", "127.0.0.2"):
            (folder / f"spool.{node}").mkdir()
        conf = folder / "slurm.conf"
        environ = environ | {"SLURM_CONF": str(conf), "PATH": path()}
        cluster = cls(folder, environ)
        try:
            cluster._run(
                "munged",
                "--force",
                "--num-threads=2",
                *(
                    f"--{option}-file={folder}/munge.{option}"
                    for option in ("key", "pid", "log", "seed")
                ),
                f"--socket={folder}/munge.socket",
            )
            values = {
                "folder": folder,
                "user": pwd.getpwuid(os.getuid()).pw_name,
                "controller": free_port(),
                "first": free_port(),
                "second": free_port(),
            }
            conf.write_text(_CONF.format(**values))
            cluster._run("slurmctld")
            for node in ("127.0.0.1", "127.0.0.2"):
                cluster._run("slurmd", "-N", node)
            cluster.wait(cluster.idle, 60)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def idle(self) -> bool:
        """Whether both nodes are up and have nothing to do."""
        found = self._run("sinfo", "-h", "-N", "-o", "%t", check=False)
        return found.split() == ["idle", "idle"]

    def _run(self, *command: str, check: bool = True) -> str:
        # To a file, since a daemon keeps what it is given.
        log = self.folder / f"{command[0]}.out"
        with log.open("w") as file:
            done = subprocess.run(
                command, env=self.environ, stdout=file, stderr=file, timeout=60
            )
        said = log.read_text()
        assert not check or done.returncode == 0, f"{command}: {said}"
        return said

    def run(self, *command: str) -> str:
        """Runs a command of SLURM; gives what it says."""
        return self._run(*map(str, command))

    def wait(self, condition, seconds: float, said=lambda: "") -> None:
        """Returns once a condition is met.

        Args:
          condition: without arguments.
          seconds: how long to wait.
          said: gives what to show otherwise.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in {seconds} s:\n{said()}"
            time.sleep(0.1)

    def submit(self, output: pathlib.Path, *command: str, **variables: str) -> "Job":
        """Submits a script with its arguments and options of `sbatch` before it."""
        for name, value in variables.items():
            self.environ[name] = value
        said = self.run("sbatch", "--parsable", f"--output={output}", *command)
        for name in variables:
            del self.environ[name]
        return Job(self, said.strip(), output)

    def stop(self) -> None:
        """Ends all jobs and daemons, by their ids."""
        self._run("scancel", "--user", str(os.getuid()), "--signal=KILL", check=False)
        self._run("scancel", "--user", str(os.getuid()), check=False)
        time.sleep(1)
        for file in sorted(self.folder.glob("*.pid"), reverse=True):
            pid = int(file.read_text())
            try:
                os.kill(pid, signal.SIGTERM)
                self.wait(lambda pid=pid: not _lives(pid), 10)
            except ProcessLookupError:
                pass
            except AssertionError:
                os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@dataclasses.dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
      cluster: where.
      number: its id.
      output: the file of its output.
    """

    cluster: Cluster
    number: str
    output: pathlib.Path

    def said(self) -> str:
        """Its output so far."""
        return self.output.read_text() if self.output.exists() else "(no output)"

    def _field(self, name: str) -> str:
        said = self.cluster.run("scontrol", "show", "job", self.number)
        return re.search(rf"\b{name}=(\S*)", said)[1]

    def state(self) -> str:
        """Such as PENDING, RUNNING, COMPLETED or FAILED."""
        return self._field("JobState")

    def exit_code(self) -> int:
        """Of the script, once it has ended."""
        return int(self._field("ExitCode").split(":")[0])

    def restarts(self) -> int:
        """How often it has been queued again."""
        return int(self._field("Restarts"))

    def wait_for(self, condition, seconds: float = 600) -> None:
        """Returns once a condition is met; fails once the job is over before."""

        def met():
            if condition():
                return True
            assert self.state() in ("PENDING", "RUNNING", "COMPLETING"), self.said()
            return False

        self.cluster.wait(met, seconds, self.said)

    def start_again(self) -> None:
        """Starts it as soon as it is queued again, which SLURM puts off for minutes."""
        self.wait_for(lambda: self.state() == "PENDING" and self.restarts() > 0)
        # What a node says late of the first start may be taken for one of the second.
        self.cluster.wait(self.cluster.idle, 60)
        time.sleep(1)
        self.cluster.run("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def ends(self, seconds: float = 600) -> str:
        """Waits for its end; gives the state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.cluster.wait(lambda: self.state() in over, seconds, self.said)
        return self.state()
