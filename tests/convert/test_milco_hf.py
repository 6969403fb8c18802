"""MILCO in transformers gives our vectors, and comes back as it went out."""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from milco_models import (
    CASES,
    LENGTHS,
    OWN_FAMILY,
    all_texts,
    assert_identical,
    assert_same,
    assert_same_model,
    assert_same_ranking,
    leaves,
    made,
    ours,
    own_modules,
    thousand_documents,
)
from safetensors.numpy import load_file, save_file
from scipy import sparse

from lsrjax.checkpoint import saved_model
from lsrjax.config.fields import get_default
from lsrjax.convert import open_model, targets
from lsrjax.convert.read.huggingface import Allowed
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.models import retriever
from lsrjax.retrieval.terms import names_of
from lsrjax.training import memory_plan

TESTS = pathlib.Path(__file__).parents[1]
PROGRAM = TESTS / "programs" / "milco_in_transformers.py"
GOLDEN = TESTS / "golden"

_found = importlib.util.spec_from_file_location("milco_in_transformers", PROGRAM)
program = importlib.util.module_from_spec(_found)
_found.loader.exec_module(program)


@pytest.fixture(scope="module")
def texts():
    return all_texts()


@pytest.fixture(scope="module")
def documents():
    return thousand_documents()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """case -> (the model, its folder for transformers)."""
    root = tmp_path_factory.mktemp("milco")
    found = {}
    for case in CASES:
        model = made(case)
        checkpoint_folder = root / "ours" / case
        checkpoint_folder.mkdir(parents=True)
        saved_model.save_model(checkpoint_folder, model)
        (root / "ours" / "config.json").write_text(
            json.dumps({"data": {f"{r}_length": n for r, n in LENGTHS.items()}})
        )
        targets.export(str(checkpoint_folder), "milco-hf", root / "hf" / case)
        found[case] = model, root / "hf" / case
    return found


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    with own_modules(tmp_path_factory.mktemp("modules")):
        yield


@functools.partial(jax.jit, static_argnums=0)
def apply(spec, params, text):
    return retriever.apply(retriever.split(spec)[0], params, text)


def matrix(found, name):
    rows, columns, values, shape = (
        found[f"{name}/{part}"] for part in ("rows", "columns", "values", "shape")
    )
    return sparse.csr_matrix((values, (rows, columns)), shape=tuple(shape))


def check(model, found, texts, documents=()):
    """All that the program wrote against our own vectors."""
    wanted, queries = (ours(model, texts, role) for role in ("document", "query"))
    assert_same(matrix(found, "document"), wanted)
    assert_same(matrix(found, "eager"), wanted)
    assert_same(matrix(found, "query"), queries)
    assert_same(matrix(found, "short"), ours(model, texts, "document", 16))
    no_prompt = {"query_prompt": "", "document_prompt": ""}
    no_marker = {"query_marker": -1, "document_marker": -1}
    plain = dataclasses.replace(model.spec, **no_prompt, **no_marker)
    plain = dataclasses.replace(model, spec=plain)
    assert_same(matrix(found, "text"), ours(plain, texts[:8], "document"))
    assert_same(matrix(found, "half"), wanted, tolerance=0.1)
    assert matrix(found, "nothing").shape == (0, wanted.shape[1])
    # Neither empty nor full.
    active = np.diff(wanted.indptr)
    assert active.min() > 0 and active.max() < 0.5 * wanted.shape[1]
    if len(documents):
        wanted = ours(model, documents, "document")
        assert_same(matrix(found, "documents"), wanted)
        theirs = matrix(found, "query") @ matrix(found, "documents").T
        assert_same_ranking(theirs.toarray(), (queries @ wanted.T).toarray())


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("pivot", marks=pytest.mark.slow),
        "echo",
        "options",
        pytest.param("lookups", marks=pytest.mark.slow),
        "distilbert",
        "modernbert",
        *(pytest.param(f"norbert{i}", marks=pytest.mark.slow) for i in (3, 4)),
        pytest.param("deberta-v2", marks=pytest.mark.slow),
        pytest.param("xmod", marks=pytest.mark.slow),
        pytest.param("gte", marks=pytest.mark.slow),
        pytest.param("jina_embeddings_v3", marks=pytest.mark.slow),
        pytest.param("nomic_bert", marks=pytest.mark.slow),
        pytest.param("mpnet", marks=pytest.mark.slow),
    ],
)
def test_vectors_in_transformers_5(models, texts, documents, case):
    assert transformers.__version__.startswith("5.")
    model, folder = models[case]
    documents = documents if case == "echo" else []
    check(model, program.encode(str(folder), texts, documents), texts, documents)


# transformers 4.57 has no classes for them.
ONLY_IN_5 = ("gte", "jina_embeddings_v3", "nomic_bert")


@pytest.fixture(scope="session")
def transformers_4(tmp_path_factory):
    """A folder with transformers 4.57.6 and what it needs in other versions."""
    folder = tmp_path_factory.mktemp("transformers_4")
    needed = ["huggingface-hub>=0.34,<1", "tokenizers>=0.22,<0.23"]
    wanted = ["--no-deps", "--target", str(folder), "transformers==4.57.6", *needed]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", *wanted]
    subprocess.run(pip, check=True)
    return folder


@pytest.mark.slow
def test_vectors_in_transformers_4(models, texts, documents, transformers_4, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(transformers_4),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    cases, arguments = [case for case in models if case not in ONLY_IN_5], []
    for case in cases:
        given = {"texts": texts, "documents": documents if case == "echo" else []}
        path = tmp_path / f"{case}.json"
        path.write_text(json.dumps(given), encoding="utf-8")
        arguments += [models[case][1], path, tmp_path / f"{case}.npz"]
    # One process: to import transformers takes longer than a model does.
    subprocess.run([sys.executable, PROGRAM, *arguments], env=environment, check=True)
    for case in cases:
        model, _ = models[case]
        with np.load(tmp_path / f"{case}.npz") as found:
            assert str(found["version"]) == "4.57.6"
            assert json.loads(str(found["ids"])) == wanted_ids(model, texts)
            check(model, found, texts, documents if case == "echo" else [])


def wanted_ids(model, texts):
    return {
        name: TextTokenizer(folder).ids(texts, 10_000)
        for name, folder in (
            ("", model.tokenizer),
            ("pivot_tokenizer", model.pivot_tokenizer),
        )
    }


def test_auto_tokenizers(models, texts):
    model, folder = models["echo"]
    assert program.ids(str(folder), texts) == wanted_ids(model, texts)


def test_terms(models):
    model, folder = models["echo"]
    loaded = program.load(str(folder))
    vector = ours(model, ["Free Software, free"], "document")
    (terms,) = loaded.encode_document("Free Software, free", return_dict=True)
    assert len(terms) == vector.nnz
    weights = list(terms.values())
    assert weights == sorted(weights, reverse=True)
    places = {
        f"{kind}_{term}": first + place
        for kind, folder, first in (
            ("e", model.pivot_tokenizer, 0),
            ("m", model.tokenizer, 8192),
        )
        for term, place in TextTokenizer(folder).vocabulary().items()
    }
    found = [vector[0, places[name]] for name in terms]
    np.testing.assert_allclose(found, weights, atol=1e-5 * weights[0])
    assert {name[0] for name in terms} == {"e", "m"}


MARKS = {"pivot": {"e_"}, "echo": {"e_", "m_"}, "lookups": {"e_", "m_", "n_"}}


@pytest.mark.parametrize("case", MARKS)
def test_terms_have_the_same_names_there_and_here(models, case):
    model, folder = models[case]
    loaded = program.load(str(folder))
    theirs = loaded.get_vocab()
    tokenizers = TextTokenizer(model.tokenizer), TextTokenizer(model.pivot_tokenizer)
    found = names_of(model.spec, *tokenizers)
    assert found == [theirs.get(i, f"#{i}") for i in range(loaded.columns)]
    marks = {name[:2] for name in found if name[0] != "#"}
    assert marks == MARKS[case]


def test_misuse_is_refused(models):
    loaded = program.load(str(models["echo"][1]))
    with pytest.raises(ValueError, match="max_length is 25, but the encoder takes 24"):
        loaded.encode_text(["a"], max_length=25)
    loaded.train()
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\)"):
        loaded.encode_text(["a"])


def test_raw_maxima_and_gradients(models):
    """Padding takes part in them as the config says, and they can be trained."""
    for case, lowest in (("echo", -np.inf), ("options", 0.0)):
        model, folder = models[case]
        loaded = program.load(str(folder))
        text = {"ids": np.array([[0, 9, 2, 1]]), "mask": np.array([[1, 1, 1, 0]])}
        wanted = apply(model.spec, model.params, text)["pivot"].raw_BV
        found = loaded(torch.tensor(text["ids"]), torch.tensor(text["mask"]))
        logits = found.pivot_logits.detach().numpy()
        np.testing.assert_allclose(logits, wanted, atol=1e-5)
        assert (logits.min() == 0.0) == (lowest == 0.0)
        found.pivot_weights.sum().backward()
        assert loaded.projector.weight.grad.abs().max() > 0


@pytest.mark.parametrize("target", ["milco-hf", "milco-reference"])
@pytest.mark.parametrize(
    "case",
    [
        case
        if case in ("echo", "options", "lookups")
        else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
    ],
)
def test_round_trips(models, tmp_path, case, target):
    model, folder = models[case]
    lacks = "no translations" if case == "lookups" else f"XLM-R, .*{case}. Possible"
    if case in (*OWN_FAMILY, "lookups") and target == "milco-reference":
        with pytest.raises(InputError, match=lacks):
            targets.export(str(folder), target, tmp_path / "first")
        assert not list(tmp_path.iterdir())
        return
    first, again = tmp_path / "first", tmp_path / "again"
    targets.export(str(folder), target, first)
    back = open_model.open_portable(str(first))
    assert_same_model(back, model)
    targets.export(str(first), target, again)
    for path in first.rglob("*"):
        if path.is_file() and path.name != "README.md":
            other = again / path.relative_to(first)
            assert other.read_bytes() == path.read_bytes(), path


def test_saved_by_transformers_it_comes_back(models, tmp_path):
    """Its file lacks tensors that nothing uses; the tokenizers are copied."""
    model, folder = models["echo"]
    program.load(str(folder)).save_pretrained(tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert not any("pooler" in name for name in names)
    shutil.copy(folder / "tokenizer.json", tmp_path / "saved")
    shutil.copy(folder / "tokenizer_config.json", tmp_path / "saved")
    shutil.copytree(folder / "pivot_tokenizer", tmp_path / "saved" / "pivot_tokenizer")
    assert_same_model(open_model.open_portable(str(tmp_path / "saved")), model)


def test_a_run_starts_from_it(models):
    """A plan is made from the config alone, and agrees with the weights."""
    folder = str(models["echo"][1])
    config = get_default()
    config.model.head.lexecho = True
    config.init.model = folder
    config.teacher.model = ""
    config.data.source.files = "some.jsonl"
    config.steps = 3
    planned = memory_plan.plan_stages(config)["train"].spec
    opened = open_model.open_model(folder, pathlib.Path())
    assert planned == build_student.student(config, lambda _: opened).spec


# The reference.


class Reference(torch.nn.Module):
    """As the reference's class is built: from two checkpoints, then strictly loaded."""

    def __init__(self, folder, echo):
        super().__init__()
        auto, masked_lm = transformers.AutoModel, transformers.AutoModelForMaskedLM
        config = json.loads((folder / "config.json").read_text())
        parts = []
        for kind, field in (
            (auto, "multilingual_encoder_checkpoint"),
            (masked_lm, "lsr_encoder_checkpoint"),
        ):
            part, info = kind.from_pretrained(
                folder / config[field], output_loading_info=True
            )
            assert not any(info.values()), info
            parts.append(part)
        self.m_model, self.mlm_head = parts[0], parts[1].cls
        sizes = [part.config.hidden_size for part in parts]
        self.projector = torch.nn.Linear(*sizes)
        if echo:
            self.echo = torch.nn.Linear(sizes[0], 1)
            self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, ids, mask):
        """Pivot weights and source weights by token."""
        hidden = self.m_model(input_ids=ids, attention_mask=mask).last_hidden_state
        translated = torch.nn.functional.gelu(self.projector(hidden))
        logits = self.mlm_head(translated) * mask[:, :, None]
        source = torch.relu(self.echo(hidden)[:, :, 0]) * mask * self.scale
        return torch.log1p(torch.relu(logits.max(dim=1).values)), source


@pytest.fixture
def reference(tmp_path):
    """A checkpoint as the reference leaves it, but for the format of its weights."""
    folder = tmp_path / "reference"
    folder.mkdir()
    state = load_file(GOLDEN / "init.safetensors")
    # Nothing uses it, but it is in every checkpoint of the reference.
    rng = np.random.default_rng(7)
    for name, shape in (("weight", (32, 32)), ("bias", 32)):
        values = rng.standard_normal(shape).astype(np.float32)
        state[f"m_model.pooler.dense.{name}"] = values
    save_file(state, folder / "model.safetensors")
    config = {
        "model_type": "milco",
        "architectures": ["ContrastiveMILCOModel"],
        "lsr_encoder_checkpoint": str(GOLDEN / "bert"),
        "multilingual_encoder_checkpoint": str(GOLDEN / "xlmr"),
        "model_variant": "bert",
        "echo": True,
        "en_vocab_size": 307,
        "m_vocab_size": 401,
        "lambda_q": 0.01,
        "lambda_d": 0.001,
        "sparse_reg": "l1",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_reference_s_checkpoint_gives_the_golden_vectors(reference):
    model = open_model.open_portable(str(reference))
    assert model.spec.options.pool_mask == "multiply"
    with np.load(GOLDEN / "golden.npz") as golden:
        for kind in "qp":
            above = f"distill_l1_echo/{kind}"
            ids, mask = (
                golden[f"{above}/{name}"].astype(np.int32)
                for name in ("input_ids", "attention_mask")
            )
            views = apply(model.spec, model.params, {"ids": ids, "mask": mask})
            pivot = np.asarray(views["pivot"].weights_BV)
            found = np.zeros((len(ids), 307 + 401), np.float32)
            found[:, :307] = pivot
            place = np.arange(len(ids))[:, None], 307 + ids
            np.add.at(found, place, np.asarray(views["source"].weights_BK))
            wanted = golden[f"distill_l1_echo/rep_{kind}/dual_view"]
            np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


def test_the_reference_s_own_file_if_that_is_asked_for(reference):
    """It writes a pickle, with a bias under two names that share memory."""
    wanted = open_model.open_portable(str(reference))
    path = reference / "model.safetensors"
    state = {name: torch.tensor(value) for name, value in load_file(path).items()}
    bias = "mlm_head.predictions.bias"
    state[bias] = state[bias.replace("bias", "decoder.bias")]
    torch.save(state, reference / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(InputError, match="pickles, which can run any code"):
        open_model.open_portable(str(reference))
    found = open_model.open_portable(str(reference), Allowed(pickle=True))
    assert found.spec == wanted.spec
    assert_identical(leaves(found.params), leaves(wanted.params))


def test_export_for_the_reference(reference, tmp_path):
    """Names and shapes are the reference's own, and its numbers the golden ones."""
    out = tmp_path / "out"
    targets.export(str(reference), "milco-reference", out)
    state = load_file(out / "model.safetensors")
    original = load_file(reference / "model.safetensors")
    assert_identical(state, original)
    model = Reference(out, echo=True)
    tensors = {name: torch.tensor(value) for name, value in state.items()}
    model.load_state_dict(tensors, strict=True)
    model.eval()
    with np.load(GOLDEN / "golden.npz") as golden, torch.no_grad():
        above = "distill_l1_echo/p"
        ids, mask = (
            torch.tensor(golden[f"{above}/{name}"]).long()
            for name in ("input_ids", "attention_mask")
        )
        pivot, source = model(ids, mask)
        above = "distill_l1_echo/rep_p"
        for found, name in ((pivot, "pivot"), (source, "source_weights")):
            np.testing.assert_allclose(found, golden[f"{above}/{name}"], atol=1e-5)


def test_tensors_of_stage_1(reference, tmp_path):
    """Its teacher is left out; all else stays, under the same names."""
    config = json.loads((reference / "config.json").read_text())
    state = load_file(reference / "model.safetensors")
    for name in ("echo.weight", "echo.bias", "scale"):
        del state[name]
    # What stage 1 of the reference saves besides.
    save_file(
        state | {"en_lsr.cls.predictions.bias": np.zeros(307, np.float32)},
        reference / "model.safetensors",
    )
    (reference / "config.json").write_text(json.dumps(config | {"echo": False}))
    for target in ("milco-hf", "milco-reference"):
        targets.export(str(reference), target, tmp_path / target)
        found = load_file(tmp_path / target / "model.safetensors")
        assert_identical(found, state)


# What cannot be used.


def broken(folder, config=None, state=None):
    if config:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | config))
    if state:
        values = load_file(folder / "model.safetensors")
        save_file(state(values), folder / "model.safetensors")


def without(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"config": {"echo": False}},
            r"echo\.weight: \[1, 32\] left over",
        ),
        ({"config": {"model_variant": "qwen"}}, "model_variant is 'qwen'"),
        ({"config": {"multilingual_config": {"model_type": "xmod"}}}, "'xmod'"),
        ({"config": {"english_config": {}}}, r"KeyError\('vocab_size'\)"),
        ({"state": without("projector.bias")}, r"missing \(1\):\n  projector.bias"),
        (
            {"state": lambda s: s | {"new": s["scale"]}},
            r"left over \(1\):\n  new \[1\]",
        ),
        (
            {"state": lambda s: s | {"projector.bias": np.zeros(7, np.float32)}},
            r"projector\.bias: \[7\], \[24\] expected",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:12],
)
def test_broken_folders(models, tmp_path, change, message):
    folder = tmp_path / "folder"
    shutil.copytree(models["echo"][1], folder)
    broken(folder, **change)
    with pytest.raises(InputError, match=message):
        targets.export(str(folder), "milco-reference", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dictionary.terms", 8192, "from 0 to 8,191, and has int32 from 0 to 8192"),
        ("stems.terms", 8192, "from 0 to 8,191, and has int32 from 10 to 8192"),
        ("stems.characters", 2**24, "from 0 to 10,485,759, and has int32 from"),
        ("ngrams.characters", -1, "from 0 to 1,114,111, and has int32 from -1 to"),
    ],
)
def test_tables_whose_numbers_stand_for_nothing(models, tmp_path, name, value, message):
    folder = shutil.copytree(models["lookups"][1], tmp_path / "folder")
    state = load_file(folder / "model.safetensors")
    state[name][3, 0] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"{re.escape(name)} is to hold .*{message}"):
        open_model.open_portable(str(folder))


def test_a_tokenizer_of_another_model(models, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(models["echo"][1], folder)
    shutil.copy(folder / "tokenizer.json", folder / "pivot_tokenizer")
    match = "pivot_tokenizer.tokenizer.json has 16000 tokens, .* knows 8192"
    with pytest.raises(InputError, match=match):
        open_model.open_portable(str(folder))


def test_only_milco_goes_there(tmp_path):
    with pytest.raises(InputError, match=re.escape("whose head is 'splade'. Possible")):
        targets.export(str(GOLDEN / "bert"), "milco-hf", tmp_path / "out")
