"""BGE-M3 in and out: by FlagEmbedding's formulas, and in the program as released."""

import ast
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers
from retrievers import DOCUMENT, QUERY, TOKENIZERS, assert_same, spec_of
from retrievers import TEXTS as ALL_TEXTS
from safetensors.torch import save_file

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.config import fields
from lsrjax.convert import open_model, targets
from lsrjax.convert.read.modules import MODEL
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.initial import build_student
from lsrjax.models import retriever
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.maxsim import TokenMatrix

WEIGHTS = (1.0, 0.25, 0.5)
# The program weighs a mask token that stands in a text; here no special token has one.
TEXTS = [text for text in ALL_TEXTS if "[MASK]" not in text]
PROGRAM = pathlib.Path(__file__).parents[1] / "programs" / "flag_embedding_elsewhere.py"
LIBRARIES = ("FlagEmbedding==1.4.2", "transformers==5.2.0")


def model_of(family="xlm-roberta", **options):
    """A BGE-M3 with random weights."""
    given = {"head": "m3", "token_bias": True, "view_weights": WEIGHTS} | options
    spec = spec_of(family, given)
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        values = rng.normal(0, 0.5, leaf.shape).astype(np.float32)
        return 1 + values / 5 if path[-1].key == "scale" else values

    params = jax.tree_util.tree_map_with_path(draw, retriever.split(spec)[1])
    # Some tokens have a weight.
    params["head"]["terms"]["weigh"] |= {"scale": np.float32(1), "bias": np.float32(2)}
    folder = TOKENIZERS[family]
    return SavedModel(spec, params, folder, None, "random", QUERY, DOCUMENT)


def written(model, folder):
    folder.mkdir()
    targets.TARGETS["bge-m3"].write(model, folder)
    return folder


def ours(model, texts, role):
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=16)
    found = encoder.encode(model.params, texts, getattr(model, f"{role}_length"), role)
    return {
        name: view.toarray() if hasattr(view, "toarray") else view
        for name, view in found.items()
    }


def by_formulas(folder, texts, length):
    """What the program's source computes, one text at a time, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    sparse, colbert = (
        torch.load(folder / f"{name}_linear.pt", weights_only=True)
        for name in ("sparse", "colbert")
    )
    unused = {
        getattr(tokenizer, f"{role}_token_id") for role in ("cls", "eos", "pad", "unk")
    }
    found = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        with torch.no_grad():
            states = encoder(torch.tensor([ids])).last_hidden_state[0]
            dense = torch.nn.functional.normalize(states[0], dim=-1)
            weights = states @ sparse["weight"][0] + sparse["bias"]
            tokens = states[1:] @ colbert["weight"].T + colbert["bias"]
            tokens = torch.nn.functional.normalize(tokens, dim=-1)
        terms = np.zeros(encoder.config.vocab_size, np.float32)
        for number, weight in zip(ids, weights.relu().tolist(), strict=True):
            if number not in unused:
                terms[number] = max(terms[number], weight)
        found.append((dense.numpy(), terms, tokens.numpy()))
    dense, terms, tokens = zip(*found, strict=True)
    starts = np.cumsum([0, *map(len, tokens)])
    return {
        "dense": np.stack(dense),
        "terms": np.stack(terms),
        "tokens": TokenMatrix(np.concatenate(tokens), starts),
    }


def same(found, wanted, role):
    """Compares our three views with theirs."""
    assert found.keys() == wanted.keys()
    for (name, values), weight in zip(wanted.items(), WEIGHTS, strict=True):
        if role == "query":
            # Here with the weight of their score, and tokens divided by their number,
            # so that a sum of matches is a mean.
            if name == "tokens":
                count = np.diff(values.starts).repeat(np.diff(values.starts))
                values = TokenMatrix(values.tokens_TD / count[:, None], values.starts)
            values = values * weight
        assert_same(found[name], values)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"embedding_size": 7, "token_bias": False, "query_prompt": "a {"}),
        pytest.param("xlm-roberta", {}, marks=pytest.mark.slow),
    ],
)
def test_vectors_are_those_of_the_formulas_and_come_back(tmp_path, family, options):
    model = model_of(family, **options)
    folder = written(model, tmp_path / "out")
    again = open_model.open_portable(str(folder))
    assert (again.query_length, again.document_length) == (QUERY, DOCUMENT)
    assert again.spec.options.view_weights == WEIGHTS
    for role, length in (("query", QUERY), ("document", DOCUMENT)):
        prompt = getattr(again.spec, f"{role}_prompt")
        wanted = by_formulas(folder, [prompt + text for text in TEXTS], length)
        same(ours(model, TEXTS, role), wanted, role)
    same(ours(again, TEXTS, role), wanted, role)
    assert len(np.unique(wanted["terms"], axis=0)) > 5
    projection = again.params["head"]["tokens"]["projection"]
    if "bias" not in model.params["head"]["tokens"]["projection"]:
        assert not projection.pop("bias").any()
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert again.spec.query_prompt == model.spec.query_prompt
    card = (folder / "README.md").read_text()
    ast.parse(card.split("```python\n")[1].split("```")[0])
    assert ("colbert_dim=7" in card) == (family == "bert")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(model_of(), tmp_path_factory.mktemp("m3") / "out")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def layer(folder, name):
    return torch.load(folder / f"{name}_linear.pt", weights_only=True)


def test_layers_are_read_from_safetensors_too(folder, copy):
    wanted = open_model.open_portable(str(folder))
    for name in ("sparse", "colbert"):
        save_file(layer(copy, name), copy / f"{name}_linear.safetensors")
        (copy / f"{name}_linear.pt").unlink()
    found = open_model.open_portable(str(copy))
    assert found.spec == wanted.spec
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


def test_weights_of_tokens_alone_are_token_weights(folder, copy):
    whole = open_model.open_portable(str(folder))
    (copy / "colbert_linear.pt").unlink()
    found = open_model.open_portable(str(copy))
    assert found.spec.head == "token_weights"
    assert found.spec.special_ids == whole.spec.special_ids
    wanted = whole.params["head"]["terms"]
    jax.tree.map(np.testing.assert_array_equal, found.params["head"], wanted)


class Code:
    """What a pickle runs when it is loaded carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def changed(name, **tensors):
    """Saves a layer with other tensors; None leaves one out."""

    def change(folder):
        state = layer(folder, name) | tensors
        state = {key: value for key, value in state.items() if value is not None}
        torch.save(state, folder / f"{name}_linear.pt")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "sparse_linear.pt").unlink(), "has colbert_linear and no spar"),
        (changed("sparse", bias=None), r"bias: missing, \[1\] expected"),
        (changed("sparse", more=torch.zeros(2)), r"more: \[2\] left over"),
        (changed("sparse", weight=torch.zeros(1, 9)), r"\[1, 9\], \[1, 10\] expected"),
        (
            changed("colbert", weight=torch.zeros(7, 10)),
            r"bias: \[10\], \[7\] expected",
        ),
        (changed("colbert", weight=torch.zeros(3)), r"\[3\], \[3, 10\] expected"),
        (changed("colbert", bias=torch.zeros(10, dtype=int)), "bias: int64, floating"),
        (
            changed("colbert", bias=torch.full((10,), torch.nan)),
            "10 numbers are not fi",
        ),
        (
            lambda f: torch.save(Code(f / "ran"), f / "sparse_linear.pt"),
            "does not load as a file of tensors and nothing else",
        ),
        (
            lambda f: rewrite(f / MODEL, weights_for_different_modes=[1, -1, 0]),
            "weights_for_different_modes is .1, -1, 0.; it has to be three numbers",
        ),
    ],
)
def test_what_does_not_fit_is_refused(copy, change, message):
    change(copy)
    with pytest.raises(InputError, match=message):
        open_model.open_portable(str(copy))
    assert not (copy / "ran").exists()


def rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.spec.replaced(normalize=False), "are not normalized. Possible is"),
        (lambda m: m.spec.replaced(special_ids=(0, 1, 2)), "differs in '<unk>'"),
    ],
)
def test_what_the_program_does_not_compute_is_not_written(tmp_path, change, message):
    model = model_of()
    model = dataclasses.replace(model, spec=change(model))
    with pytest.raises(InputError, match=message):
        written(model, tmp_path / "out")


def test_a_factor_of_the_weights_goes_into_the_layer(tmp_path, monkeypatch):
    model = model_of()
    weigh = model.params["head"]["terms"]["weigh"]
    weigh["scale"] = np.float32(0.5)
    folder = written(model, tmp_path / "out")
    kernel = layer(folder, "sparse")["weight"][0].numpy()
    np.testing.assert_array_equal(kernel, weigh["kernel"] / 2)
    weigh["scale"] = np.float32(-1)
    with pytest.raises(InputError, match="are multiplied by -1, which a layer before"):
        written(model, tmp_path / "minus")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="torch is not installed: pip install torch"):
        written(model, tmp_path / "none")


@pytest.mark.parametrize("head", ["m3", "token_weights"])
def test_a_student_starts_from_it(folder, head):
    config = fields.get_default()
    config.model.head, config.init = head, {"model": {"model": str(folder)}}
    config.tokenizer = ""
    student = build_student.student(
        config, partial(open_model.open_model, workdir=None)
    )
    params = student.params([])
    wanted = open_model.open_portable(str(folder)).params
    part = wanted["head"] if head == "m3" else wanted["head"]["terms"]
    jax.tree.map(np.testing.assert_array_equal, params, wanted | {"head": part})


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of an environment with FlagEmbedding over this one."""
    folder = tmp_path_factory.mktemp("program")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    inside = subprocess.run([python, "-c", asked], check=True, capture_output=True)
    here = pathlib.Path(inside.stdout.decode().strip()) / "here.pth"
    here.write_text(sysconfig.get_path("purelib"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", *LIBRARIES], check=True)
    return python


def in_program(python, folder, place, **arguments):
    """What the program makes of `TEXTS`; where it saved the model again."""
    place.mkdir()
    asked = {"texts": TEXTS, "weights": WEIGHTS, "arguments": arguments}
    (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [python, PROGRAM, folder, place / "asked.json", place / "found.npz"]
    subprocess.run(
        [*command, place / "again"],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return dict(np.load(place / "found.npz")), place / "again"


@pytest.mark.slow
def test_vectors_and_scores_are_those_of_the_program(tmp_path, python):
    model = model_of(embedding_size=7)
    folder = written(model, tmp_path / "out")
    found, saved = in_program(
        python,
        folder,
        tmp_path / "asked",
        use_fp16=False,
        query_max_length=QUERY,
        passage_max_length=DOCUMENT,
        colbert_dim=7,
    )
    views = {role: ours(model, TEXTS, role) for role in ("query", "document")}
    for role, own in views.items():
        tokens = TokenMatrix(found[f"{role}_tokens"], found[f"{role}_starts"])
        wanted = {name: found[f"{role}_{name}"] for name in ("dense", "terms")}
        same(own, wanted | {"tokens": tokens}, role)
    assert_scores(found, views)
    # Saved by the program as after its training, with its own pickles.
    again = open_model.open_portable(str(saved))
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert again.spec.options.embedding_size == 7


def assert_scores(found, views):
    """Compares the sum, and each of the three scores, for text i and text i + 1."""
    after = np.roll(np.arange(len(TEXTS)), -1)
    queries, documents = views["query"], views["document"]
    wanted = {
        "dense": (queries["dense"] * documents["dense"][after]).sum(axis=1),
        "sparse": (queries["terms"] * documents["terms"][after]).sum(axis=1),
        "colbert": np.array(
            [
                (rows(queries["tokens"], i) @ rows(documents["tokens"], j).T)
                .max(axis=1)
                .sum()
                for i, j in enumerate(after)
            ]
        ),
    }
    summed = sum(wanted.values()) / sum(WEIGHTS)
    wanted = {
        kind: values / weight
        for (kind, values), weight in zip(wanted.items(), WEIGHTS, strict=True)
    }
    for kind, values in (wanted | {"colbert+sparse+dense": summed}).items():
        np.testing.assert_allclose(
            found[f"score_{kind}"], values, rtol=1e-5, atol=1e-5, err_msg=kind
        )


def rows(matrix, i):
    return matrix.tokens_TD[matrix.starts[i] : matrix.starts[i + 1]]
