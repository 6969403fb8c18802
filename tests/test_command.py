"""What the command line says, and what of it is refused."""

import pathlib

import pytest

from lsrjax import command, doctor
from lsrjax.doctor_checks import ERROR, WARNING
from lsrjax.errors import InputError

FILE = pathlib.Path("configs/demo.py")


@pytest.mark.parametrize(
    ("arguments", "unknown", "said"),
    [
        (["--confg", "x.py"], ["--confg"], "Did you mean --config?"),
        (["-confg=x.py"], ["-confg"], "Did you mean --config?"),
        (["--config", "x.py", "--wrkdir", "w"], ["--wrkdir"], "--workdir?"),
        (["--cfg", "x.py"], ["--cfg"], "--cfg is no flag"),
        (["--config=x.py", "--notpu_pod", "--tpu_pod"], [], ""),
        (["--config", "x.py", "--config.data.negative_margin", "-inf"], [], ""),
        (["--workdir", "--strange", "--config=x.py:a"], [], ""),
        (["--noconfig.model.tied", "--config.seed=-1", "--help"], [], ""),
    ],
)
def test_flags_that_there_are_not_are_named(arguments, unknown, said):
    found = command.unknown_flags(["program", *arguments])
    assert list(found) == unknown
    assert said in "".join(found.values())


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("runs/a", "runs/a"),
        ("~/runs/a", str(pathlib.Path.home() / "runs/a")),
        ("file:///tmp/a", "/tmp/a"),
        ("file:/tmp/a", "/tmp/a"),
        ("file://localhost/tmp/a", "/tmp/a"),
        ("a:b/c", "a:b/c"),
    ],
)
def test_a_work_directory_is_a_local_folder(monkeypatch, given, folder):
    monkeypatch.setattr(command, "WORKDIR", Flag(given))
    assert command.workdir(FILE) == pathlib.Path(folder)


@pytest.mark.parametrize("given", ["gs://bucket/run", "s3://b/r", "hf://me/run"])
def test_a_work_directory_elsewhere_is_refused(monkeypatch, given):
    monkeypatch.setattr(command, "WORKDIR", Flag(given))
    with pytest.raises(InputError, match=f"--workdir {given}: "):
        command.workdir(FILE)


class Flag:
    """Stands for a flag that was given."""

    def __init__(self, value):
        self.value = value


def test_the_doctor_says_what_it_was_not_asked(monkeypatch):
    def levels(*arguments):
        # Flags keep what they have parsed, which is another test's.
        parse = type(doctor.flags.FLAGS)
        monkeypatch.setattr(parse, "__call__", lambda self, argv, **_: argv[:1])
        path, findings = doctor._parse(["doctor", *arguments])
        return path, {(one.level, one.topic) for one in findings}

    missing = (WARNING, "config")
    assert levels() == (None, {missing})
    assert levels("--cfg", "x.py") == (None, {missing, (ERROR, "arguments")})
    found = (ERROR, "config"), (ERROR, "arguments")
    assert levels("--config=none.py", "--cfg=1") == (None, set(found))
