"""Negatives mined again by the model in training: the same after every stop."""

import dataclasses
import io
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs import launch
from rich.console import Console

from lsrjax.checkpoint import saved_model
from lsrjax.cli import mine
from lsrjax.config.check_run import validate
from lsrjax.config.fields import get_default
from lsrjax.convert.open_model import open_model
from lsrjax.distributed import activity
from lsrjax.errors import InputError
from lsrjax.retrieval import mine_negatives, teacher_scores
from lsrjax.retrieval.rank import Searcher
from lsrjax.training import mined_again, run
from lsrjax.training.mined_again import documents_frozen, fingerprint

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "mined.py"
WORDS = (
    "the old library reads files fast and prints fonts on every small screen".split()
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Queries with a positive, and a corpus."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    texts = list(
        dict.fromkeys(
            " ".join(rng.choice(WORDS, rng.integers(3, 7))) for _ in range(40)
        )
    )
    rows = [
        {"query": " ".join(rng.choice(WORDS, 3)), "pos": [texts[i]]} for i in range(12)
    ]
    documents = [{"_id": str(i), "text": text} for i, text in enumerate(texts)]
    for name, lines in (("rows", rows), ("docs", documents)):
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def stage(data):
    return runpy.run_path(str(CONFIG))["get_config"](data, every=0)


def remined(data):
    return runpy.run_path(str(CONFIG))["get_config"](data)


def train(config, workdir):
    console = Console(file=io.StringIO(), width=200)
    run.run(config, workdir, console)
    return console.file.getvalue()


def metrics(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {name: line[name] for name in ("step", "loss", "grad_norm")} for line in lines
    ]


def assert_same(found, wanted):
    a, b = (saved_model.load_model(folder).params for folder in (found, wanted))
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=str(path))
    assert metrics(found) == metrics(wanted)
    for path in (wanted / "mined").iterdir():
        with np.load(path) as one, np.load(found / "mined" / path.name) as other:
            for name in one.files:
                np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """A run that was left alone, what it said, and its models that mined."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    seen, at = {}, mined_again.MinedAgain.at

    def watched(self, params, step):
        seen[step] = jax.device_get(params)
        return at(self, params, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mined_again.MinedAgain, "at", watched)
        said = train(remined(data), workdir)
    return workdir / "train", said, seen


def test_negatives_are_those_of_the_model_at_that_step(alone, data):
    folder, said, seen = alone
    assert sorted(path.name for path in (folder / "mined").iterdir()) == [
        "3.npz",
        "6.npz",
    ]
    assert "Mining negatives with the model of step 3" in said
    model = dataclasses.replace(saved_model.load_model(folder), params=seen[6])
    config = remined(data)
    rows = list(map(json.loads, (data / "rows.jsonl").read_text().splitlines()))
    texts = [json.loads(line)["text"] for line in (data / "docs.jsonl").open()]
    queries = [row["query"] for row in rows]
    find = mine_negatives.by_model(Searcher.of(model, config))
    hits, _ = find(queries, texts, config.prepare.depth)
    with np.load(folder / "mined" / "6.npz") as file:
        negatives = file["negatives"]
    with np.load(folder / "prepared.npz") as file:
        assert (file["negatives"] != negatives).any()
    for i, (found, row) in enumerate(zip(hits, negatives, strict=True)):
        assert set(row.tolist()) <= set(found.tolist()) - {i}


class Stopped(BaseException):
    pass


def stop_at(monkeypatch, place, count):
    """Raises at the count-th call of a function."""
    where, name, *how = place
    original, calls = getattr(where, name), []

    def counted(*args, **options):
        calls.append(1)
        if len(calls) == count:
            raise how[0] if how else Stopped
        return original(*args, **options)

    monkeypatch.setattr(where, name, counted)


STOPS = {
    "between two minings": [((mined_again.Feed, "__next__"), 5)],
    "while mining": [((teacher_scores, "prepare"), 3)],
    # As the encoder's poll does; the state of step 3 is kept, which no checkpoint has.
    "asked to leave": [((teacher_scores, "prepare", activity.Preempted), 2)],
    "behind a mining, before a checkpoint": [
        ((mined_again.Feed, "__next__"), 4),
        ((mined_again.Feed, "__next__"), 2),
        ((mined_again.Feed, "__next__"), 5),
    ],
}


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(
            stops,
            marks=[pytest.mark.slow]
            * (len(stops) > 1 or "while" in name or "leave" in name),
        )
        for name, stops in STOPS.items()
    ],
    ids=list(STOPS),
)
def test_a_run_that_was_stopped_ends_as_one_left_alone(
    alone, data, tmp_path, monkeypatch, stops
):
    workdir = tmp_path / "run"
    for place, count in stops:
        with monkeypatch.context() as patch:
            stop_at(patch, place, count)
            with pytest.raises((Stopped, activity.Preempted)):
                train(remined(data), workdir)
    train(remined(data), workdir)
    assert_same(workdir / "train", alone[0])


@pytest.mark.slow
def test_what_the_next_steps_need_is_missed_by_name(data, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, (mined_again.Feed, "__next__"), 6)
        with pytest.raises(Stopped):
            train(remined(data), workdir)
    (workdir / "train" / "mined" / "3.npz").unlink()
    with pytest.raises(InputError, match=r"mined/3.npz is missing, and the negatives"):
        train(remined(data), workdir)


@pytest.mark.slow
def test_two_processes_mine_and_train_as_one(data, tmp_path):
    for processes, devices in ((1, 2), (2, 1)):
        folder = tmp_path / str(processes)
        command = ["-m", "lsrjax.main", "--config", f"{CONFIG}:{data}"]
        command += ["--workdir", str(folder / "run")]
        launch.finish(
            launch.start(command, folder, processes=processes, devices=devices)
        )
    one, two = (tmp_path / str(count) / "run" / "train" for count in (1, 2))
    for name in ("3.npz", "6.npz"):
        with np.load(one / "mined" / name) as a, np.load(two / "mined" / name) as b:
            np.testing.assert_array_equal(a["negatives"], b["negatives"])
    for a, b in zip(metrics(one), metrics(two), strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)


def test_a_stages_model_mines_for_others(alone, data, tmp_path):
    out = tmp_path / "mined.jsonl"
    flags = [f"--data.source.files={data / 'rows.jsonl'}", "--with=stage:train"]
    flags += [f"--data.corpus={data / 'docs.jsonl'}", f"--out={out}", "--count=3"]
    mine.main([*flags, f"--workdir={alone[0].parent}"])
    config = remined(data)
    model = saved_model.load_model(alone[0])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in (data / "docs.jsonl").open()]
    find = mine_negatives.by_model(Searcher.of(model, config))
    hits, _ = find([row["query"] for row in rows], texts, 4)
    for i, (row, found) in enumerate(zip(rows, hits.tolist(), strict=True)):
        assert row["neg"] == [texts[place] for place in found if place != i][:3]


@pytest.mark.slow
def test_another_stages_model_mines(data, tmp_path):
    first, second = stage(data), stage(data)
    second.prepare.negatives = "stage:first"
    second.init.encoder = second.init.head = ""
    second.init.model = "stage:first"
    c = get_default()
    with c.unlocked():
        c.stages = ConfigDict({"first": first, "second": second}, sort_keys=False)
    said = train(c, tmp_path / "run")
    assert "mining negatives with stage:first" in said
    model = open_model("stage:first", tmp_path / "run")
    rows = list(map(json.loads, (data / "rows.jsonl").read_text().splitlines()))
    texts = [json.loads(line)["text"] for line in (data / "docs.jsonl").open()]
    find = mine_negatives.by_model(Searcher.of(model, second))
    hits, _ = find([row["query"] for row in rows], texts, second.prepare.depth)
    with np.load(tmp_path / "run" / "second" / "prepared.npz") as file:
        for i, row in enumerate(file["negatives"]):
            assert set(row.tolist()) <= set(hits[i].tolist()) - {i}


def test_a_stage_that_does_not_come_before_cannot_mine(data):
    c = stage(data)
    c.prepare.negatives = "stage:none"
    with pytest.raises(
        InputError, match=r"prepare\.negatives is 'stage:none', but the"
    ):
        validate(c)
    c.prepare.negatives = "bm52"
    with pytest.raises(InputError, match=r"prepare\.negatives.*'stage:NAME'"):
        validate(c)
    c.prepare.negatives, c.prepare.every = "given", 3
    with pytest.raises(InputError, match=r"prepare\.every"):
        validate(c)


def test_the_fingerprint_is_of_every_bit_and_place():
    rng = np.random.default_rng(0)
    leaf = rng.normal(size=(5, 7)).astype(np.float32)
    params = {"a": jnp.array(leaf), "b": jnp.array(leaf[0], jnp.bfloat16)}
    known = fingerprint(params)
    assert known == fingerprint(dict(params)) and len(known) == 16
    other = leaf.copy()
    other[3, 2] = np.nextafter(other[3, 2], np.float32(9))
    moved = leaf[:, ::-1].copy()
    found = {
        fingerprint(params | {"a": jnp.array(one)})
        for one in (other, moved, leaf[::-1])
    }
    found.add(fingerprint(params | {"b": params["b"][::-1]}))
    assert len(found | {known}) == 5


def test_frozen_documents_are_encoded_once(monkeypatch):
    frozen = {"encoder": True, "head": {"a": True}, "query_tower": {"encoder": False}}
    assert documents_frozen(frozen, separate=True)
    assert not documents_frozen(frozen, separate=False)
    assert not documents_frozen(frozen | {"encoder": False}, separate=True)

    encoded = []

    @dataclasses.dataclass
    class Model:
        weight: float

        def queries(self, texts, languages=None):
            return {"": self._matrix(texts) * np.float32(self.weight)}

        def documents(self, texts, languages=None):
            encoded.append(len(texts))
            return {"": self._matrix(texts)}

        def _matrix(self, texts):
            from scipy import sparse

            counts = [[text.count(c) for c in "abc"] for text in texts]
            return sparse.csr_matrix(np.array(counts, np.float32))

    monkeypatch.setattr(mine_negatives, "BLOCK", 2)
    texts, queries = ["ab", "bc", "aab", "c", "cab"], ["a", "bc"]
    plain = mine_negatives.by_model(Model(2.0))(queries, texts, 3)
    assert encoded == [2, 2, 1]
    kept: list = []
    for _ in range(2):
        found = mine_negatives.by_model(Model(2.0), kept)(queries, texts, 3)
        np.testing.assert_array_equal(found[0], plain[0])
    assert encoded == [2, 2, 1] * 2
    # "aab" has two, then the smaller index; ties and blocks in the order of search.
    assert plain[0].tolist() == [[2, 0, 4], [1, 4, 0]]
