"""Finds what would make a run fail, before it starts.

lsrjax doctor --config demo [--workdir DIR] [--config.x.y=VALUE …]

Takes the arguments of `lsrjax train`, is started in the same way on all hosts, and
prints a line for each finding: ok, warning or error, and what to do. It trains nothing,
downloads no weights, and exits with 1 if there is an error.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from absl import logging
from rich.console import Console
from rich.text import Text

from lsrjax import paths
from lsrjax.cli import doctor_checks, doctor_lambdas, flags
from lsrjax.cli.doctor_checks import ERROR, OK, WARNING, Finding
from lsrjax.cli.flags import Given
from lsrjax.distributed import processes as hosts
from lsrjax.distributed import safe_output
from lsrjax.errors import InputError

# Opening data may include building an index.
_DATA_SECONDS = 600.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COLORS = {OK: "green", WARNING: "yellow", ERROR: "bold red"}


def _main(given: Given, findings: list[Finding]) -> None:
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    path, run_config, seconds = given.config_path, given.config, given.flags.seconds
    one = given.flags
    try:
        host, processes, number = hosts.expected(
            one.coordinator, one.num_processes, one.process_id
        )
    except InputError as error:
        host, processes, number = "", 1, 0
        findings.append(Finding(ERROR, "processes", str(error)))
    findings = [
        doctor_checks.versions(),
        doctor_checks.proxies(host, processes, os.environ),
        *findings,
        *doctor_checks.tokens(run_config, path),
    ]
    patient = Patience()
    hopeless = ("proxies", "processes")
    if any(one.topic in hopeless and one.level == ERROR for one in findings):
        # They would wait for each other for minutes.
        joined = False
    else:
        joined = _joined(given, findings)
    if not joined:
        shown = number == 0
        told = [one for one in findings if shown or one.level == ERROR]
        _print([(one, []) for one in told], "" if shown else f"process {number}: ")
        _leave(1)
    marker = None
    try:
        place = "" if path is None else given.workdir()
        if paths.in_bucket(place):
            findings.append(doctor_checks.in_bucket(place))
        elif place:
            marker = doctor_checks.Marker(pathlib.Path(place))
    except InputError as error:
        findings.append(Finding(ERROR, "workdir", str(error)))
    if marker is not None and hosts.is_first():
        _on_signals(_interrupt)
    try:
        findings += look(run_config, marker, patient, seconds)
        # In a thread, since Ctrl-C does not interrupt a wait for other processes.
        pool = concurrent.futures.ThreadPoolExecutor(1)
        said = pool.submit(_gathered, findings, seconds).result()
    finally:
        if marker is not None and hosts.is_first():
            marker.remove()
            _on_signals(signal.SIG_DFL)
    report = grouped(said)
    if hosts.is_first():
        _print(report)
    # An orderly exit waits for all processes, and some may hang.
    orderly = all(said) and not patient.lost
    orderly = hosts.first_says("doctor/orderly", str(orderly), 2 * seconds) == "True"
    code = int(any(one.level == ERROR for one, _ in report))
    if orderly:
        sys.exit(code)
    _leave(code)


def _on_signals(handler: Any) -> None:
    """Handles what may end the process; by default, it ends at once.

    While the marker's file exists, the process has to remove it first.
    """
    for number in _ENDING:
        # Started with nohup, it outlives the terminal.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt(number)


def _joined(given: Given, findings: list[Finding]) -> bool:
    """Joins the processes and adds findings; returns whether they can communicate."""
    try:
        given.join()
    except InputError as error:
        findings.append(Finding(ERROR, "processes", str(error)))
        if not hosts.met():
            return False
        # They met, but their number or their devices differ from what was announced.
    try:
        hosts.check_devices()
    except InputError as error:
        findings.append(Finding(ERROR, "devices", str(error)))
        return False
    return True


class Patience:
    """Runs checks that may hang; a check that hangs is abandoned, and sets `lost`."""

    def __init__(self):
        self.lost = False

    def findings(
        self,
        topic: str,
        check: Callable[[], Finding | Iterable[Finding]],
        seconds: float,
    ) -> list[Finding]:
        """The findings of a check; an error under `topic` if it fails or hangs."""
        found = []

        def run():
            try:
                result = check()
                found.extend([result] if isinstance(result, Finding) else result)
            # Whatever it is, the other checks run.
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                found.append(Finding(ERROR, topic, f"could not be looked at: {said}"))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        if not thread.is_alive():
            return found
        self.lost = True
        return [
            *found,
            Finding(
                ERROR,
                topic,
                f"no answer in {seconds:.0f} s. A process, a network or a file system"
                " hangs: look at the hosts by themselves, and at firewalls between"
                " them.",
            ),
        ]


def look(
    run_config, marker: doctor_checks.Marker | None, patient: Patience, seconds: float
) -> list[Finding]:
    """The findings of one process after all have met; `seconds` limits each check."""
    findings = patient.findings("devices", doctor_checks.devices, seconds)
    findings += patient.findings("interconnect", doctor_checks.interconnect, seconds)
    if marker is not None:
        findings += _shared(marker, patient, seconds)
    if run_config is None:
        return findings
    findings += doctor_checks.config_values(run_config)
    # Once per host is enough.
    if findings[-1].level == ERROR or os.environ.get("SLURM_LOCALID", "0") != "0":
        return findings
    findings += doctor_lambdas.lambdas(run_config)
    found = patient.findings("hub", lambda: doctor_checks.hub(run_config), seconds)
    findings += found
    reachable = all(one.level != ERROR for one in found)
    if reachable:
        for topic, look_at in (
            ("data", doctor_checks.data),
            ("tasks", doctor_checks.tasks),
        ):
            check = functools.partial(look_at, run_config)
            findings += patient.findings(topic, check, _DATA_SECONDS)
    if marker is not None and hosts.is_first():
        sized = run_config if reachable else None
        check = functools.partial(doctor_checks.disk, sized, marker.workdir)
        findings += patient.findings("disk", check, seconds)
    return findings


def _shared(
    marker: doctor_checks.Marker, patient: Patience, seconds: float
) -> list[Finding]:
    """Checks that the work directory is writable, and the same for all processes."""
    if not hosts.is_first():
        if hosts.first_says("doctor/written", None, 2 * seconds) != OK:
            return []
        return patient.findings("workdir", lambda: marker.look(10), seconds)
    found = patient.findings("workdir", marker.write, seconds)
    good = all(one.level == OK for one in found)
    hosts.first_says("doctor/written", OK if good else ERROR, seconds)
    return found


def _gathered(findings: list[Finding], seconds: float) -> list[list[Finding]]:
    """In process 0, the findings of each process; in others, only their own."""
    text = json.dumps([dataclasses.astuple(one) for one in findings])
    # The other hosts may still be opening their data.
    said = hosts.gather("doctor/findings", text, seconds + 2 * _DATA_SECONDS)
    if not said:
        return [findings]
    return [[Finding(*one) for one in json.loads(own or "[]")] for own in said]


def grouped(said: list[list[Finding]]) -> list[tuple[Finding, list[int]]]:
    """Each finding of all processes in order, with the processes that have it.

    `said` has the findings of each process, empty if it did not answer. No processes
    are listed for a finding that concerns the run.
    """
    found: dict[Finding, list[int]] = {}
    for number, own in enumerate(said):
        for one in own:
            # Successes are reported by the first process only.
            if number == 0 or one.level != OK:
                found.setdefault(one, []).append(number)
    every = list(range(len(said)))
    report = [
        (one, [] if numbers == every or one.level == OK else numbers)
        for one, numbers in found.items()
    ]
    versions = [{one for one in own if one.topic == "versions"} for own in said]
    for number, own in enumerate(said):
        if not own:
            text = "said nothing in time. Its output may say why."
            report.append((Finding(ERROR, "processes", text), [number]))
        elif versions[number] != versions[0]:
            for one in versions[number]:
                text = f"{one.text}: not as process 0. Install the same everywhere."
                report.append((Finding(ERROR, "versions", text), [number]))
    return report


def _print(report: list[tuple[Finding, list[int]]], prefix: str = "") -> None:
    console = Console()
    for one, numbers in report:
        who = f"process {', '.join(map(str, numbers))}: " if numbers else prefix
        console.print(
            Text(f"{one.level:<8}", _COLORS[one.level]),
            Text(f"{one.topic:<13}{who}{one.text}"),
            sep="",
            soft_wrap=True,
        )
    counts = [
        sum(one.level == level for one, _ in report) for level in (ERROR, WARNING)
    ]
    said = [
        f"{count or 'no'} {word}{'s' * (count > 1)}"
        for count, word in zip(counts, ("error", "warning"), strict=True)
    ]
    console.print(f"lsrjax.doctor: {', '.join(said)}", highlight=False)


def _leave(code: int) -> None:
    """Exits at once, without waiting for threads or other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parse(argv: Sequence[str]) -> tuple[Given, list[Finding]]:
    """Parses the command line; errors in it become findings."""
    parser = flags.parser("doctor", __doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="how long the all-reduce, the hub and the other processes may take, each",
    )
    given = flags.parse(parser, argv)
    findings = [Finding(ERROR, "arguments", text) for text in given.unknown]
    findings += [Finding(ERROR, "config", text) for text in given.wrong]
    if not hasattr(given.flags, "config"):  # a flag's value is wrong
        given.flags = parser.parse_args([])
    elif given.flags.config is None:
        text = "none is given, so neither its data nor the disk is looked at."
        findings.append(Finding(WARNING, "config", text))
    return given, findings


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    given, findings = _parse(sys.argv[1:])
    try:
        _main(given, findings)
    except KeyboardInterrupt as ended:
        # Nothing is lost, and threads may still be waiting.
        _leave(128 + ended.args[0] if ended.args else 130)
