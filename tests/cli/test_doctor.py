"""The doctor: what would make a run fail is found, named, and told with a remedy."""

import json
import pathlib
import re
import signal
import sys
import threading
import types

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from programs import launch, layouts

from lsrjax.checkpoint import saved_model
from lsrjax.cli import doctor, doctor_checks, doctor_lambdas
from lsrjax.cli.doctor_checks import ERROR, OK, WARNING, Finding
from lsrjax.config import fields
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.distributed import processes as hosts
from lsrjax.errors import Each, InputError
from lsrjax.training import early_checks, memory_plan

TINY = pathlib.Path(__file__).parents[1] / "configs" / "launched.py"


def tiny(**changes):
    config = fields.load(TINY, [])
    config.stages.teacher.update_from_flattened_dict(changes)
    return config


def errors(found):
    return [one for one in found if one.level == ERROR]


def test_versions_are_those_installed():
    found = doctor_checks.versions()
    assert found.level == OK
    for module in (huggingface_hub, __import__("jax")):
        assert f"{module.__name__} {module.__version__}" in found.text


@pytest.mark.parametrize("name", ["grpc_proxy", "http_proxy", "https_proxy"])
@pytest.mark.parametrize(
    ("excepted", "broken"),
    [
        ({}, True),
        ({"no_proxy": "localhost,.example.org"}, True),
        ({"no_proxy": "localhost, node1"}, False),
        ({"no_proxy": "1"}, False),  # as gRPC does, by how the name ends
        ({"no_grpc_proxy": "node1", "no_proxy": "other"}, False),
    ],
)
def test_proxies_between_the_processes(name, excepted, broken):
    environ = {name: "http://me:secret@proxy:3128"} | excepted
    found = doctor_checks.proxies("node1", 2, environ)
    assert found.level == (ERROR if broken else OK)
    assert "secret" not in found.text
    if broken:
        assert name in found.text and "node1'" in found.text
    # Nothing connects to anything where there is one process.
    assert doctor_checks.proxies("node1", 1, environ).level == OK


def test_upper_case_proxies_are_not_obeyed_and_not_told():
    assert doctor_checks.proxies("node1", 2, {"HTTP_PROXY": "http://proxy"}).level == OK


def usage(free):
    return lambda _: types.SimpleNamespace(free=free)


def test_disk_space_is_compared_with_the_checkpoints(tmp_path, monkeypatch):
    config = tiny()
    (planned,) = memory_plan.plan_stages(config).values()
    size = planned.checkpoint_bytes
    need = size * (config.stages.teacher.checkpoint.keep + 2)
    workdir = tmp_path / "not" / "yet"
    for free, level in ((need - 1, ERROR), (1.1 * need, WARNING), (2 * need, OK)):
        monkeypatch.setattr(doctor_checks.shutil, "disk_usage", usage(free))
        (found,) = doctor_checks.disk(config, workdir)
        assert found.level == level
        assert str(tmp_path) in found.text and memory_plan.size(need) in found.text
        assert ("config.checkpoint.keep" in found.text) == (level != OK)
    # What is there already is not written again.
    folder = workdir / "teacher" / "checkpoints" / "5"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(bytes(size))
    monkeypatch.setattr(doctor_checks.shutil, "disk_usage", usage(need - 1))
    (found,) = doctor_checks.disk(config, workdir)
    assert found.level == OK


def test_a_model_that_is_missing_is_an_error(tmp_path):
    config = tiny()
    config.stages.teacher.init.encoder = str(tmp_path / "no")
    models, disk = doctor_checks.disk(config, tmp_path)
    assert (models.level, models.topic) == (ERROR, "models")
    assert f"'{tmp_path / 'no'}'" in models.text and disk.level == OK


def test_texts_longer_than_the_model_takes_are_an_error(tmp_path):
    config = tiny(**{"data.document_length": 10**5})
    models, disk = doctor_checks.disk(config, tmp_path)
    assert (models.level, models.topic) == (ERROR, "models")
    assert "config.data.document_length is 100000" in models.text
    assert disk.level == OK


def test_the_size_of_a_checkpoint_is_that_of_its_numbers():
    (planned,) = memory_plan.plan_stages(tiny()).values()
    memory = planned.memory()
    # Adam keeps two numbers for each parameter; the rest is counters.
    assert planned.checkpoint_bytes == pytest.approx(3 * memory.params, rel=1e-3)


@pytest.mark.parametrize(
    ("query", "weight", "level"),
    [(100.0, 1.0, WARNING), (0.5, 1.0, OK), (100.0, 100.0, OK), (0.5, 0.05, WARNING)],
)
def test_lambdas_that_empty_all_vectors_are_warned_of(query, weight, level):
    config = get_default()
    config.loss = {"infonce": {"weight": weight}}
    config.regularizer = entry("flops", query=query, document=1e-3)
    (found,) = doctor_lambdas.lambdas(config)
    assert found.level == level
    if level == WARNING:
        assert f"config.regularizer.query = {query:g} beside" in found.text or (
            weight == 1 and "config.regularizer.query = 100, over" in found.text
        )
        assert "regularizer.document =" not in found.text


def test_without_lambdas_nothing_is_said_of_them():
    assert not list(doctor_lambdas.lambdas(get_default()))


RECIPES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_lambdas_are_usual(path):
    found = [*doctor_lambdas.lambdas(fields.load(path, []))]
    assert {one.level for one in found} <= {OK}


@pytest.mark.parametrize("field", ["data", "dev"])
def test_a_missing_file_is_found_without_training(field, tmp_path):
    path = str(tmp_path / "no.jsonl")
    config = tiny(**{f"{field}.source": "files", f"{field}.source.files": path})
    (found,) = doctor_checks.data(config)
    assert found.level == ERROR
    assert path in found.text and "stage teacher" in found.text


def in_files(path):
    """Rows, which name no language that weights could be of."""
    own = {"data.source": "files", "data.source.files": str(path)}
    return own | {"data.query_languages": {"*": 1}}


def test_data_that_can_be_read_is_counted(tmp_path):
    row = {"query": "a", "pos": ["b"], "neg": ["c"]}
    path = tmp_path / "groups.jsonl"
    path.write_text((json.dumps(row) + "\n") * 7)
    (found,) = doctor_checks.data(tiny(**in_files(path)))
    assert found.level == OK and "7 examples" in found.text
    path.write_text('{"query": "a", "pos": [], "neg": []}\n')
    (found,) = doctor_checks.data(tiny(**in_files(path)))
    assert found.level == ERROR and str(path) in found.text


def benchmark(folder):
    layouts.jsonl(
        folder / "corpus.jsonl", [{"_id": str(i), "text": "a"} for i in range(5)]
    )
    layouts.jsonl(
        folder / "queries.jsonl", [{"_id": str(i), "text": "a"} for i in range(3)]
    )
    layouts.lines(folder / "qrels" / "test.tsv", [f"{i}\t{i}\t1" for i in range(3)])


def test_benchmarks_are_read_with_all_their_corpora(tmp_path):
    benchmark(tmp_path / "da")
    benchmark(tmp_path / "nn")
    path = str(tmp_path / "{language}")
    config = tiny()
    task = entry("beir", path=path, languages=("da", "nn"))
    config.stages.teacher.dev.source, config.stages.teacher.dev.task = "", task
    config.evaluate.tasks = {"own": {"name": "beir", "path": str(tmp_path / "da")}}
    found = list(doctor_checks.tasks(config))
    assert [one.text for one in found] == [
        "stage teacher: beir, 6 queries, 10 documents",
        "evaluation: beir, 3 queries, 5 documents",
    ]
    assert {one.level for one in found} == {OK}
    # The stage is finished, and reads nothing more.
    (left,) = early_checks.look_at_tasks(config, {}, Each())
    assert left.startswith("evaluation")
    (tmp_path / "nn" / "qrels" / "test.tsv").unlink()
    sound, found = doctor_checks.tasks(config)
    assert sound.level == OK and sound.text.startswith("evaluation")
    assert found.level == ERROR and str(tmp_path / "nn") in found.text
    assert "Stage teacher: config.dev.task: " in found.text
    config.stages.teacher.dev.task = ""
    config.evaluate.tasks = {"own": {**task, "languages": ("da", "nn")}}
    (found,) = doctor_checks.tasks(config)
    assert found.level == ERROR and "config.evaluate.tasks['own']: " in found.text


def test_values_that_cannot_be_are_refused_as_in_main():
    assert [one.level for one in doctor_checks.config_values(tiny())] == [OK]
    wrong = tiny(**{"optim.lr": -1.0, "batch_size": 0})
    found = doctor_checks.config_values(wrong)
    assert {one.level for one in found} == {ERROR}
    assert {one.text.split()[0] for one in found} == {
        f"config.stages.{stage}.{field}"
        for stage in wrong.stages
        for field in ("batch_size", "optim.lr")
    }


# Not real ones.
TOKENS = {
    "of the Hugging Face hub": "hf_" + "aB3" * 11,
    "of GitHub": "ghp_" + "aB3" * 12,
    "of AWS": "AKIA" + "ABCD" * 4,
    "of Weights & Biases": "WANDB_API_KEY=" + "0123456789" * 4,
    "in an address": "https://me:geheim@example.org/data.jsonl",
}


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_in_a_config_are_named_but_not_shown(kind, tmp_path):
    config = tiny(**{"data.source.files": TOKENS[kind]})
    (found,) = doctor_checks.tokens(config, None)
    assert found.level == ERROR and kind in found.text
    assert "config.stages.teacher.data.source.files" in found.text
    assert TOKENS[kind] not in found.text
    path = tmp_path / "mine.py"
    path.write_text(f"import os\nos.environ['X'] = '{TOKENS[kind]}'\n")
    (found,) = doctor_checks.tokens(None, path)
    assert found.level == ERROR and f"{path}:2" in found.text
    assert TOKENS[kind] not in found.text


@pytest.mark.parametrize("path", sorted(TINY.parents[2].glob("configs/*.py")), ids=str)
def test_no_config_of_ours_is_taken_for_a_token(path):
    (found,) = doctor_checks.tokens(fields.load(path, []), path)
    assert found.level == OK


def hub_config():
    config = get_default()
    config.init.encoder = "me/encoder"
    config.init.head = "stage:before"
    config.tokenizer = "embedded:english"
    names = {"me/texts": ["da", "de"], "me/more": ""}
    config.data.source = entry("datasets", dataset=names)
    return config


def test_what_a_config_names_of_the_hub():
    assert list(doctor_checks.hub_ids(hub_config())) == [
        ("model", "me/encoder"),
        ("dataset", "me/texts"),
        ("dataset", "me/more"),
    ]
    assert doctor_checks.hub_ids(tiny()) == {}


def test_the_hub_is_not_asked_offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor_checks, "_ask", lambda *_: pytest.fail("asked"))
    file = tmp_path / "models--me--encoder" / "snapshots" / "1" / "config.json"
    file.parent.mkdir(parents=True)
    file.touch()
    found = list(doctor_checks.hub(hub_config()))
    assert [one.level for one in found] == [OK, ERROR, ERROR]
    assert "hf download me/texts --repo-type dataset" in found[1].text


def test_a_hub_that_is_away_is_an_error_unless_all_is_here(monkeypatch, tmp_path):
    asked = []

    def ask(kind, name):
        asked.append((kind, name))
        if name != "me/more":
            raise OSError("no route")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor_checks, "_ask", ask)
    file = tmp_path / "models--me--encoder" / "snapshots" / "1" / "config.json"
    file.parent.mkdir(parents=True)
    file.touch()
    found = list(doctor_checks.hub(hub_config()))
    assert [one.level for one in found] == [WARNING, ERROR, OK]
    assert asked == list(doctor_checks.hub_ids(hub_config()))
    assert "no route" in found[1].text and "hf auth login" in found[1].text


def test_the_hub_is_asked_for_one_file_with_a_limit(monkeypatch):
    asked = []

    def metadata(url, timeout):
        asked.append((url, timeout))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    doctor_checks._ask("model", "me/encoder")
    ((url, timeout),) = asked
    assert url.endswith("me/encoder/resolve/main/config.json") and timeout <= 10


def test_models_without_a_config_json_are_found_by_another_file(monkeypatch):
    there, asked = {"model.json"}, []

    def metadata(url, timeout):
        file = url.rpartition("/")[2]
        asked.append(file)
        if file not in there:
            raise EntryNotFoundError(f"no {file}")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    doctor_checks._ask("model", "me/export")
    assert asked == [
        "config.json",
        "modules.json",
        "adapter_config.json",
        "model.json",
    ]
    there.clear()
    with pytest.raises(EntryNotFoundError):
        doctor_checks._ask("model", "me/export")


def test_a_check_that_hangs_or_fails_is_an_error():
    patient, never = doctor.Patience(), threading.Event()
    (found,) = patient.findings("hub", lambda: 1 / 0, 5)
    assert found.level == ERROR and "ZeroDivisionError" in found.text
    assert not patient.lost

    def slow():
        yield Finding(OK, "hub", "one")
        never.wait(60)

    *_, last = patient.findings("hub", slow, 0.1)
    assert last == Finding(ERROR, "hub", last.text) and "no answer in 0 s" in last.text
    assert patient.lost
    never.set()


def test_a_work_directory_is_tried_and_left_as_it_was(tmp_path):
    workdir = tmp_path / "runs" / "mine"
    marker, other = doctor_checks.Marker(workdir), doctor_checks.Marker(workdir)
    assert other.look(0).level == ERROR
    assert marker.write().level == OK
    assert other.look(0).level == OK
    marker.remove()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").touch()
    marker = doctor_checks.Marker(workdir)
    found = marker.write()
    assert found.level == ERROR and str(workdir) in found.text
    marker.remove()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_file_behind(number, tmp_path, monkeypatch):
    number = signal.Signals[number]

    def look(config, marker, *_):
        assert marker.write().level == OK and (tmp_path / "run").is_dir()
        # As the command line leaves it, the signal would end this process.
        assert callable(signal.getsignal(number))
        signal.raise_signal(number)

    monkeypatch.setattr(doctor, "look", look)
    monkeypatch.setattr(doctor, "_joined", lambda *_: True)
    flags = ["--config", str(TINY), "--workdir", str(tmp_path / "run")]
    left = []
    monkeypatch.setattr(doctor, "_leave", left.append)
    monkeypatch.setattr(doctor.safe_output, "harden", lambda: None)
    monkeypatch.setattr(sys, "argv", ["doctor", *flags])
    before = {one: signal.signal(one, signal.SIG_DFL) for one in doctor._ENDING}
    try:
        doctor.start()
        assert {signal.getsignal(one) for one in before} == {signal.SIG_DFL}
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert left == [128 + number]
    assert list(tmp_path.iterdir()) == []


def test_a_doctor_with_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    others = {one: signal.getsignal(one) for one in doctor._ENDING[:2]}
    try:
        doctor._on_signals(doctor._interrupt)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        for one, handler in others.items():
            signal.signal(one, handler)


def test_findings_of_processes_are_told_once_with_their_numbers():
    def own(disk, version="jax 1"):
        return [Finding(OK, "versions", version), Finding(disk, "disk", f"is {disk}")]

    said = [own(OK), own(ERROR), [], own(ERROR, "jax 2")]
    report = doctor.grouped(said)
    assert report[0] == (Finding(OK, "versions", "jax 1"), [])
    assert (Finding(ERROR, "disk", "is error"), [1, 3]) in report
    (silent,) = [r for r in report if r[0].topic == "processes"]
    assert silent[1] == [2] and "nothing in time" in silent[0].text
    (other,) = [r for r in report if r[0].topic == "versions" and r[0].level == ERROR]
    assert other[1] == [3] and "jax 2" in other[0].text
    # What all have is said of none.
    assert doctor.grouped([own(ERROR)] * 2)[1] == (
        Finding(ERROR, "disk", "is error"),
        [],
    )


def test_a_launcher_that_promised_more_is_an_error(monkeypatch):
    def promised():
        raise InputError("The launcher promised 16 devices, but …")

    given, _ = doctor._parse([])
    monkeypatch.setattr(given, "join", promised)
    assert not doctor._joined(given, findings := [])
    (found,) = errors(findings)
    assert found.topic == "processes" and "promised 16 devices" in found.text


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, ("", 1, 0)),
        (
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_STEP_NODELIST": "n[3-4]",
                "SLURM_PROCID": "2",
            },
            ("n3", 4, 2),
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, ("a", 2, 1)),
    ],
)
def test_who_is_who_is_known_before_they_meet(environ, found):
    assert hosts.expected(None, None, None, environ=environ) == found
    given = hosts.expected("first:12", 3, 2, environ=environ)
    assert given == ("first", 3, 2)


def started(tmp_path, processes, *flags):
    """The doctor in several processes: their exit codes and what each said."""
    command_line = ["-m", "lsrjax.doctor", "--config", str(TINY), "--seconds", "20"]
    command_line += ["--workdir", str(tmp_path / "run"), *flags]
    run = launch.start(command_line, tmp_path, processes=processes, devices=2)
    try:
        return [one.ends(300) for one in run], [one.stdout.read_text() for one in run]
    finally:
        launch.kill(run)


def lines(said):
    found = re.findall(r"^(ok|warning|error) +(\w+) +(.*)$", said, re.MULTILINE)
    return {topic: (level, text) for level, topic, text in found}


@pytest.mark.slow
def test_two_processes_report_in_one(tmp_path):
    codes, (first, second) = started(tmp_path, 2)
    assert codes == [0, 0], first
    found = lines(first)
    assert {level for level, _ in found.values()} == {OK}, first
    assert "2 processes, 4 x cpu" in found["devices"][1]
    assert "all-reduced over 4 devices" in found["interconnect"][1]
    assert found["data"][1].startswith("stage teacher:")
    assert {"versions", "proxies", "tokens", "workdir", "config", "disk"} < set(found)
    assert first.count("lsrjax.doctor: no error, no warning") == 1
    assert lines(second) == {}
    assert not (tmp_path / "run").exists()
    assert not saved_model.holds_stages(str(tmp_path / "run"))


@pytest.mark.slow
def test_alone_an_error_is_the_exit_code(tmp_path):
    flags = ["--config.stages.teacher.optim.lr=-1", "--no_flag_of_its_own=3"]
    codes, (said,) = started(tmp_path, 1, *flags)
    assert codes == [1]
    found = lines(said)
    assert found["config"][0] == ERROR and "optim.lr" in found["config"][1]
    assert found["arguments"][0] == ERROR
    assert "--no_flag_of_its_own is no flag" in found["arguments"][1]
    assert "lsrjax.doctor: 2 errors, no warning" in said
