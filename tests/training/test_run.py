"""The published recipes end to end on tiny local checkpoints, and what stops a run."""

import errno
import io
import json
import os
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs.layouts import jsonl, lines
from rich.console import Console
from safetensors.numpy import load_file, save_file

from lsrjax.checkpoint import digests, results_file, saved_model, set_damaged_aside
from lsrjax.cli import evaluate
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.convert.open_model import open_portable
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.training import kept_config, run, work_folder

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
WORDS = (
    "the old library reads files fast and prints fonts on every small screen".split()
)


def sentence(rng):
    return " ".join(rng.choice(WORDS, rng.integers(3, 9)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs and groups in JSONL files."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    pairs = [
        {"english": sentence(rng), "non_english": sentence(rng)} for _ in range(30)
    ]
    groups = [
        {
            "query": sentence(rng),
            "pos": [sentence(rng)],
            "neg": [sentence(rng) for _ in range(4)],
            "pos_scores": [3.0],
            "neg_scores": rng.normal(size=4).tolist(),
        }
        for _ in range(30)
    ]
    for name, rows in (("pairs", pairs), ("groups", groups)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def small(config, files):
    """A published recipe on local data, with few examples and steps."""
    config.data.source = "files"
    config.data.source.files = str(files)
    config.data.query_length = 12
    config.data.document_length = 16
    config.model.dtype = "float32"
    config.batch_size = 4
    config.epochs = 0.0
    config.steps = 4
    config.optim.warmup_steps = 0
    config.optim.warmup_fraction = 0.0
    config.checkpoint.every = 2
    config.log.every = 1
    config.dev = get_default().dev
    return config


def align_config(data):
    config = small(
        runpy.run_path(str(ROOT / "configs/align.py"))["get_config"](),
        data / "pairs.jsonl",
    )
    config.init.encoder = str(GOLDEN / "xlmr")
    config.init.head = config.teacher.model = str(GOLDEN / "bert")
    return config


def distill_config(data, aligned):
    config = small(
        runpy.run_path(str(ROOT / "configs/distill.py"))["get_config"](),
        data / "groups.jsonl",
    )
    config.init.model = str(aligned)
    config.data.group_size = 3
    config.dev.source = "files"
    config.dev.source.files = str(data / "groups.jsonl")
    config.dev.every = 2
    return config


def run_quietly(config, workdir):
    console = Console(file=io.StringIO(), width=200)
    run.run(config, workdir, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def aligned(data, tmp_path_factory):
    """A finished run of configs/align.py."""
    workdir = tmp_path_factory.mktemp("align") / "run"
    run_quietly(align_config(data), workdir)
    return workdir


@pytest.fixture(scope="module")
def distilled(data, aligned, tmp_path_factory):
    """A finished run of configs/distill.py after it."""
    workdir = tmp_path_factory.mktemp("distill") / "run"
    run_quietly(distill_config(data, aligned), workdir)
    return workdir


def metrics(workdir):
    lines = (workdir / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_align_recipe_trains_on_local_checkpoints(aligned):
    model = saved_model.load_model(aligned)
    assert model.spec.views == {"pivot": 307}
    steps = [m["step"] for m in metrics(aligned)]
    assert steps == [1, 2, 3, 4]
    for m in metrics(aligned):
        assert np.isclose(m["loss"], m["english"] + m["translation"], rtol=1e-4)
        assert 0.05 < m["memory_gb"] < 100  # of this process
    page = (aligned / "report.html").read_text(encoding="utf-8")
    assert "Stage train" in page and "Loss and its parts" in page


def test_distill_recipe_goes_on_from_align_and_keeps_the_best(distilled):
    model = saved_model.load_model(distilled)
    assert model.spec.views == {"pivot": 307, "source": 401}
    dev = {m["step"]: m["dev_nDCG@10"] for m in metrics(distilled) if len(m) == 2}
    assert set(dev) == {2, 4}
    steps = {int(p.name) for p in (distilled / "train/checkpoints").iterdir()}
    assert 4 in steps and max(dev, key=dev.get) in steps


@pytest.mark.slow
def test_a_benchmark_picks_the_checkpoint_and_evaluates_the_run(
    data, aligned, tmp_path
):
    """The dev metric of the best step is that of the evaluation, and of the command."""
    rng = np.random.default_rng(3)
    folder, workdir = tmp_path / "own", tmp_path / "run"
    docs = [{"_id": f"d{i}", "text": sentence(rng)} for i in range(40)]
    asked = [{"_id": f"q{i}", "text": sentence(rng)} for i in range(6)]
    jsonl(folder / "corpus.jsonl", docs)
    jsonl(folder / "queries.jsonl", asked)
    lines(folder / "qrels" / "test.tsv", [f"q{i}\td{i}\t1" for i in range(6)])
    config = distill_config(data, aligned)
    config.dev.source = ""
    config.dev.task = entry("beir", path=str(folder), languages=("da",))
    config.dev.over, config.dev.patience = "worst", 1
    config.checkpoint.use = "best"
    config.evaluate.tasks = {"own": {"name": "beir", "path": str(folder)}}
    shown = run_quietly(config, workdir)
    assert "own: nDCG@10" in shown and "beir/all: 40 documents" in shown
    dev = [m["dev_nDCG@10"] for m in metrics(workdir) if len(m) == 2]
    own = results_file.read(workdir)["tasks"]["own"]["results"]
    assert own["train"]["all"]["nDCG@10"] == pytest.approx(max(dev), abs=1e-6)
    assert 0.01 < max(dev) < 0.99
    assert list(own) == ["bm25", "train", "train pivot", "train source"]
    out = tmp_path / "out"
    flags = ["--task", "beir", f"--task.path={folder}", "--out", str(out)]
    evaluate.main(["--model", str(workdir), *flags])
    table = json.loads((out / "results.json").read_text())["tasks"]["beir"]["results"]
    assert table["model"] == own["train"] and table["bm25"] == own["bm25"]
    model = open_portable(str(workdir))
    assert model.dev == {"nDCG@10": pytest.approx(max(dev), abs=1e-6)}
    assert "own, nDCG@10:" in model.evaluation and "| train |" in model.evaluation
    config.dev.source = "debian"
    with pytest.raises(InputError, match="dev.source.* no effect: dev.task is set"):
        run_quietly(config, tmp_path / "other")


@pytest.mark.slow
def test_ids_train_like_the_texts_they_stand_for(data, aligned, distilled, tmp_path):
    lines = (data / "groups.jsonl").read_text().splitlines()
    groups = [json.loads(line) for line in lines]
    with (
        open(tmp_path / "train.jsonl", "w") as train,
        open(tmp_path / "queries.tsv", "w") as queries,
        open(tmp_path / "documents.tsv", "w") as documents,
    ):
        for i, group in enumerate(groups):
            queries.write(f"q{i}\t{group['query']}\n")
            line = [f"q{i}"]
            texts = [*group["pos"], *group["neg"]]
            scores = [*group["pos_scores"], *group["neg_scores"]]
            for j, (text, score) in enumerate(zip(texts, scores, strict=True)):
                documents.write(f"{i}.{j}\t{text}\n")
                line.append([f"{i}.{j}", score])
            train.write(json.dumps(line) + "\n")
    config = distill_config(data, aligned)
    config.data.source.files = str(tmp_path / "train.jsonl")
    queries = str(tmp_path / "queries.tsv")
    config.data.format = entry("colbert", queries=queries)
    config.data.corpus = str(tmp_path / "documents.tsv")
    printed = run_quietly(config, tmp_path / "run")
    assert "format colbert" in printed

    def losses(workdir):
        return [row["loss"] for row in metrics(workdir) if "loss" in row]

    assert losses(tmp_path / "run") == losses(distilled) != []


def test_a_finished_run_says_so_and_changes_nothing(data, aligned, distilled):
    before = saved_model.load_model(distilled).params
    said = run_quietly(distill_config(data, aligned), distilled)
    assert "finished" in said
    after = saved_model.load_model(distilled).params
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_another_config_in_the_same_folder_is_refused(data, aligned):
    config = align_config(data)
    config.optim.lr = 0.5
    with pytest.raises(InputError, match=r"config\.optim\.lr: there 2e-05, asked 0.5"):
        run_quietly(config, aligned)


@pytest.mark.parametrize("name", ["train", "first"])
def test_a_field_that_an_earlier_release_did_not_have_is_at_its_default(
    data, tmp_path, name
):
    config = stage = align_config(data)
    if name != "train":
        config = get_default()
        with config.unlocked():
            config.stages = ConfigDict({name: stage})
    kept_config.keep(config, tmp_path)
    path = tmp_path / "config.json"
    kept = json.loads(path.read_text())
    of_stage = kept["stages"].get(name, kept)
    del kept["evaluate"], of_stage["numbers"], of_stage["optim"]["groups"]
    path.write_text(json.dumps(kept))
    kept_config.keep(config, tmp_path)
    path.write_text(json.dumps(kept))
    begin(tmp_path / name)
    stage.numbers.policy = "skip"
    wanted = r"numbers\.policy: there 'stop', asked 'skip'\nUse another"
    with pytest.raises(InputError, match=wanted):
        kept_config.keep(config, tmp_path)


def begin(stage):
    """As a stage that has saved a state."""
    stage.mkdir()
    (stage / "done.json").write_text('{"steps": 1}')


def stages_of(data, *names):
    config = get_default()
    with config.unlocked():
        config.stages = ConfigDict({name: align_config(data) for name in names})
    return config


def test_a_stage_that_has_begun_cannot_be_taken_out(data, tmp_path):
    kept_config.keep(stages_of(data, "first", "second"), tmp_path)
    kept_config.keep(stages_of(data, "first"), tmp_path)
    kept_config.keep(stages_of(data, "first", "second"), tmp_path)
    begin(tmp_path / "second")
    with pytest.raises(
        InputError, match=r"config\.stages\.second: there {.*asked None"
    ):
        kept_config.keep(stages_of(data, "first"), tmp_path)


def test_a_stage_is_bound_to_the_seed_that_it_had(data, tmp_path):
    config = stages_of(data, "first", "second")
    kept_config.keep(config, tmp_path)
    begin(tmp_path / "first")
    config.seed = 2
    with pytest.raises(InputError, match=r"stages\.first\.seed: there 0, asked 2"):
        kept_config.keep(config, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    kept_config.keep(config, other)
    begin(other / "first")
    config.seed, config.stages.first.seed = 0, 2
    kept_config.keep(config, other)


def test_a_default_of_an_entry_may_be_spelled_out(data, tmp_path):
    config = align_config(data)
    kept_config.keep(config, tmp_path)
    begin(tmp_path / "train")
    config.model.head.pool_mask = "exclude"
    config.loss = {"alignment": {"weight": 1.0}}
    config.regularizer.document = 0.0
    kept_config.keep(config, tmp_path)
    config.loss = {"alignment": {"weight": 2.0}}
    with pytest.raises(
        InputError, match=r"loss\.alignment\.weight: there 1.0, asked 2"
    ):
        kept_config.keep(config, tmp_path)


@pytest.mark.parametrize(
    ("corpus", "other"),
    [
        ({"en": "a.tsv", "de": ["b.tsv", {"dataset": "d"}]}, {"en": "a.tsv"}),
        ({"dataset": "d"}, {"dataset": "e"}),
        (["a.tsv", "b.tsv"], ["a.tsv"]),
        ("a.tsv", {"en": "a.tsv"}),
    ],
    ids=["languages", "data set", "several", "one"],
)
def test_places_of_texts_bind_in_every_form(data, tmp_path, corpus, other):
    """The default is a text, which has nothing below it."""
    config = align_config(data)
    config.data.corpus = corpus
    for _ in range(2):
        kept_config.keep(config, tmp_path)
    begin(tmp_path / "train")
    kept_config.keep(config, tmp_path)
    config.data.corpus = other
    with pytest.raises(InputError, match=r"config\.data\.corpus.*: there"):
        kept_config.keep(config, tmp_path)


def test_stages_that_have_not_begun_may_be_corrected(data, tmp_path):
    config = stages_of(data, "first", "second")
    kept_config.keep(config, tmp_path)
    begin(tmp_path / "first")
    config.stages.second.optim.lr = 0.5
    config.evaluate.test = "debian"
    kept_config.keep(config, tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["stages"]["second"]["optim"]["lr"] == 0.5
    config.stages.first.optim.lr = 0.5
    with pytest.raises(InputError, match=r"config\.stages\.first\.optim\.lr: there"):
        kept_config.keep(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == kept


@pytest.mark.parametrize("damage", ['{"stages": {}, "se', "[1]", "{}", ""])
def test_a_damaged_config_of_a_run_is_named(data, tmp_path, damage):
    config = align_config(data)
    kept_config.keep(config, tmp_path)
    kept = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(damage)
    kept_config.keep(config, tmp_path)  # nothing is trained, nothing is lost
    assert (tmp_path / "config.json").read_text() == kept
    begin(tmp_path / "train")
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        kept_config.keep(config, tmp_path)


def test_a_run_that_ended_before_its_first_step_may_be_corrected(data, tmp_path):
    config = align_config(data)
    config.steps = 1
    config.data.source.files = str(tmp_path / "pears.jsonl")
    with pytest.raises(InputError, match=r"pears\.jsonl"):
        run_quietly(config, tmp_path / "w")
    config.data.source.files = align_config(data).data.source.files
    config.init.encoder = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        run_quietly(config, tmp_path / "w")
    right = align_config(data)
    right.steps = 1
    run_quietly(right, tmp_path / "w")
    assert set_damaged_aside.finished_steps(tmp_path / "w" / "train") == 1


def wrong_files(stage, folder):
    stage.data.source.files = str(folder / "nothere.jsonl")


def wrong_dev(stage, folder):
    stage.dev.source, stage.dev.source.files = "files", str(folder / "nothere.jsonl")


def wrong_teacher(stage, folder):
    stage.teacher.model = str(folder / "nothere")


def wrong_rows(stage, folder):
    stage.data.source.files = str(folder / "empty.jsonl")
    row = {"english": "a b", "non_english": "a b", "language": "de"}
    rows = [row] * 9 + [row | {"english": ""}] * 2
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "empty.jsonl").write_text(text)


def wrong_length(stage, folder):
    stage.data.document_length = 100_000


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (wrong_files, r"Stage second: .*nothere\.jsonl"),
        (wrong_dev, r"Stage second: config\.dev\.source\.files.*nothere\.jsonl"),
        (wrong_teacher, r"Stage second: .*nothere"),
        (wrong_rows, r"Stage second: .*(?s:.*)empty\.jsonl"),
        (wrong_length, r"Stage second: config\.data\.document_length is 100000"),
    ],
)
def test_what_would_end_a_later_stage_is_found_first(data, tmp_path, make, said):
    config = stages_of(data, "first", "second")
    make(config.stages.second, tmp_path)
    for stage in config.stages.values():
        stage.steps = 1
    with pytest.raises(InputError, match=said):
        run_quietly(config, tmp_path / "w")
    assert not (tmp_path / "w" / "first").exists()


def test_all_that_is_missing_is_named_at_once(data, tmp_path):
    config = stages_of(data, "first", "second")
    for name, stage in config.stages.items():
        stage.steps = 1
        stage.init.encoder = str(tmp_path / f"no_{name}")
    config.stages.second.data.source.files = str(tmp_path / "no.jsonl")
    with pytest.raises(InputError) as error:
        run_quietly(config, tmp_path / "w")
    first, second, rows = error.value.args
    assert first.startswith("Stage first") and str(tmp_path / "no_first") in first
    assert second.startswith("Stage second") and str(tmp_path / "no_second") in second
    assert rows.startswith("Stage second") and str(tmp_path / "no.jsonl") in rows


@pytest.mark.parametrize("name", ["notes/run", "a" * 300, "zero\0byte"])
def test_a_work_directory_that_cannot_be_made_is_named(data, tmp_path, name):
    (tmp_path / "notes").write_text("no folder")
    with pytest.raises(InputError, match="--workdir .* cannot be made or written to"):
        run_quietly(align_config(data), tmp_path / name)


def test_a_full_disk_is_the_one_that_is_full(tmp_path):
    def said(name):
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        return work_folder.of_disk(error, tmp_path)

    inside, outside = str(tmp_path / "train" / "x"), "/elsewhere/index"
    assert f"The disk of {tmp_path} is full" in said(inside)
    assert "The disk of /elsewhere/index is full" in said(outside)
    # There is room here, so it is another one.
    assert f"not that of {tmp_path}" in said(None)
    assert work_folder.of_disk(KeyError("x"), tmp_path) == ""
    gone = tmp_path / "gone"
    assert f"{gone} was removed" in work_folder.of_disk(ValueError("x"), gone)


def test_a_checkpoint_of_another_architecture_is_refused(data, tmp_path):
    config = align_config(data)
    config.steps = 1
    run_quietly(config, tmp_path)
    # As if the folder came from another machine without its notes.
    (tmp_path / "config.json").unlink()
    (tmp_path / "train" / "done.json").unlink()
    other = align_config(data)
    other.init.encoder = str(GOLDEN / "bert")
    with pytest.raises(InputError, match="another architecture") as error:
        run_quietly(other, tmp_path)
    assert "hidden_size" in str(error.value) and "workdir" in str(error.value)
    assert saved_model.load_model(tmp_path).spec.encoder.hidden_size == 32


def test_a_tokenizer_larger_than_the_model_is_refused(data, tmp_path):
    config = align_config(data)
    config.tokenizer = "embedded:multilingual"
    with pytest.raises(InputError, match=r"16000 tokens.*401"):
        run_quietly(config, tmp_path)


def test_a_text_longer_than_the_model_takes_is_refused(data, tmp_path):
    config = align_config(data)
    config.data.document_length = 65
    with pytest.raises(InputError, match=r"document_length is 65.*64 tokens"):
        run_quietly(config, tmp_path)


def test_a_mesh_of_more_devices_than_there_are_is_refused(data, tmp_path):
    config = align_config(data)
    config.mesh.data = 3
    with pytest.raises(InputError, match=r"mesh is data 3 x model 1, .* 1 devices"):
        run_quietly(config, tmp_path)
    assert not list(tmp_path.rglob("checkpoints/*"))


def test_a_teacher_of_another_vocabulary_is_refused(data, tmp_path, aligned):
    config = align_config(data)
    config.teacher.model = str(aligned)
    with pytest.raises(InputError, match="teacher"):
        run_quietly(config, tmp_path)


def test_nan_stops_the_run_and_leaves_sound_checkpoints(data, tmp_path):
    config = align_config(data)
    config.optim.lr = 1e30
    config.optim.schedule = "constant"
    config.optim.clip_norm = 0.0
    config.steps = 20
    config.checkpoint.every = 1
    with pytest.raises(TrainingFailed, match=r"Step \d+: .*not finite") as error:
        run_quietly(config, tmp_path)
    assert "optim.lr" in str(error.value)
    assert not (tmp_path / "train" / "done.json").exists()
    last = max(int(p.name) for p in (tmp_path / "train/checkpoints").iterdir())
    assert last < int(str(error.value).split()[1].rstrip(":"))
    saved_model.load_model(tmp_path)


def test_an_alignment_that_gives_no_terms_does_not_end_well(data, tmp_path):
    head = shutil.copytree(GOLDEN / "bert", tmp_path / "head")
    tensors = load_file(head / "model.safetensors")
    for name in tensors:
        if name.endswith(("predictions.bias", "decoder.bias")):
            tensors[name] = np.full_like(tensors[name], -1e4)
    save_file(tensors, head / "model.safetensors", {"format": "pt"})
    config = align_config(data)
    config.init.head = str(head)
    config.steps = 11
    with pytest.raises(TrainingFailed, match="Step 11: every .* vector has been empty"):
        run_quietly(config, tmp_path / "run")
    # The next stage has nothing to go on from.
    assert not (tmp_path / "run" / "train" / "done.json").exists()
    assert 11 not in digests.recorded_steps(tmp_path / "run" / "train")


def test_a_missing_data_file_is_named(data, tmp_path):
    config = align_config(data)
    config.data.source.files = str(data / "absent.jsonl")
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        run_quietly(config, tmp_path)


def test_a_bad_row_met_in_training_stops_the_run_with_its_name(data, tmp_path):
    rows = (data / "pairs.jsonl").read_text().splitlines()
    rows[7] = json.dumps({"english": "free software", "non_english": "  "})
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(rows))
    config = align_config(data)
    config.data.source.files = str(bad)
    config.steps, config.epochs = 0, 1.0
    with pytest.raises(InputError, match=r"bad\.jsonl, row 7.*translation"):
        run_quietly(config, tmp_path / "run")


def test_teacher_scores_are_computed_and_negatives_mined_where_asked(
    data, aligned, tmp_path
):
    rows = [json.loads(x) for x in (data / "groups.jsonl").read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text(
        "".join(json.dumps({k: r[k] for k in ("query", "pos")}) + "\n" for r in rows)
    )
    config = distill_config(data, aligned)
    config.data.source.files = str(bare)
    config.prepare.negatives = "bm25"
    config.data.short_rows = "bad"  # of those that are given
    config.prepare.scores = "teacher"
    config.prepare.count = 3
    config.teacher.model = str(GOLDEN / "bert")
    config.teacher.beside = {str(aligned): 2.0, "ngrams": 0.5}
    config.teacher.score_normalization = "minmax"
    config.steps = 2
    run_quietly(config, tmp_path / "run")
    prepared = tmp_path / "run/train/prepared.npz"
    with np.load(prepared) as arrays:
        assert arrays["negatives"].shape == (30, 3)
        assert (arrays["scores"] >= 0).all() and (arrays["scores"] <= 1).all()
        assert arrays["scores"].std() > 0.1
    models = json.loads((tmp_path / "run/train/models.json").read_text())
    assert f"teacher.beside[{str(aligned)!r}]" in models

    whole = prepared.read_bytes()
    prepared.write_bytes(whole[:100])
    (tmp_path / "run/train/done.json").unlink()
    said = run_quietly(config, tmp_path / "run")
    assert f"{prepared} is damaged" in said and "made again" in said
    with np.load(io.BytesIO(whole)) as before, np.load(prepared) as after:
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_specs_survive_json(distilled):
    spec = saved_model.load_model(distilled).spec
    again = type(spec).from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.replaced(lexecho=False).views == {"pivot": 307}
