"""What the command line says, and what of it is refused."""

import pytest

from lsrjax.cli import doctor, flags
from lsrjax.cli.doctor_checks import ERROR, WARNING


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
    found = flags.unknown_flags(["program", *arguments])
    assert list(found) == unknown
    assert said in "".join(found.values())


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
