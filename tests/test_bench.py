"""The benchmark's command line, on sizes that take no time."""

import pytest

from lsrjax import bench

TINY = "head --batch 2 --length 3 --dim 5 --vocab 40 --repeats 1".split()


def test_head_prints_a_row_for_each_implementation(capsys):
    bench.main([*TINY, "--impl", "naive", "blocked", "--active", "0.1"])
    out = capsys.readouterr().out
    assert "head: B 2, L 3, D 5, V 40, float32, 10.00% active" in " ".join(out.split())
    rows = {line.split()[1]: line for line in out.splitlines() if "│" in line}
    assert list(rows) == ["naive", "blocked"]
    assert rows["naive"].count("1.00x") == 2


def test_without_the_plain_one_there_is_no_speed_up(capsys):
    bench.main([*TINY, "--impl", "blocked", "--active", "1", "--dtype", "bfloat16"])
    out = capsys.readouterr().out
    assert "bfloat16, 100.00% active" in " ".join(out.split())
    assert "1.00x" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["tail"], "'tail'"),
        ([*TINY, "--batch", "0"], "--batch: 0 is not a positive integer"),
        ([*TINY, "--vocab", "many"], "--vocab: invalid"),
        ([*TINY, "--active", "1.5"], "--active: 1.5 is not a share between 0 and 1"),
        ([*TINY, "--active", "nan"], "--active: nan is not a share"),
        ([*TINY, "--impl", "jax"], "invalid choice: 'jax'"),
        ([*TINY, "--dtype", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_bad_arguments_end_with_status_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        bench.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_medians_are_of_the_rounds_after_the_first():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    medians = bench.interleaved_medians(runs, 3)
    assert "".join(calls) == "ab" * 4
    assert set(medians) == {"a", "b"} and min(medians.values()) >= 0
