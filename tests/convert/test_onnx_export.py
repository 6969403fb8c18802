"""onnxruntime gives the vectors of the exported retriever."""

import json
import pathlib

import jax
import numpy as np
import onnxruntime
import pytest
import tokenizers
from programs import tiny

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import open_model
from lsrjax.convert.write.onnx import write_onnx
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed.trees import path_name
from lsrjax.errors import InputError
from lsrjax.initial.term_statistics import characters, letters_of
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.encode_texts import TextEncoder

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LENGTH = 24
TEXTS = [
    "Free software for everyone",
    "Свободные программы",
    "自由なソフトウェア",
    "自由软件",
    "자유 소프트웨어",
    "برمجيات حرة",
    "תוכנה חופשית",
    "मुक्त सॉफ्टवेयर",
    "Ελεύθερο λογισμικό",
    "ซอฟต์แวร์เสรี",
    "",
    "a",
    "b a " * 11,  # 22 tokens and 2 special ones
    "a longer text " * 40,
]
CASES = {
    "splade": {"head": "splade", "tied": True},
    "splade of sums": {"head": "splade", "tied": False, "pooling": "sum"},
    "splade of first tokens": {"head": "splade", "tied": True, "pooling": "cls"},
    "log1p twice": {"head": "splade", "tied": True, "activation": "log1p_relu"},
    "log1p twice of sums": {
        "head": "splade",
        "tied": True,
        "activation": "log1p_relu",
        "pooling": "sum",
    },
    "distilbert": {"head": "splade", "tied": True, "family": "distilbert"},
    "modernbert": {
        "head": "splade",
        "tied": True,
        "family": "modernbert",
        # Full, local, local, full; a token sees two to either side.
        "encoder": {"num_layers": 4, "hidden_size": 24, "local_attention": 5},
    },
    "milco of modernbert": {
        "head": "milco",
        "lexecho": True,
        "family": "modernbert",
        "encoder": {
            **{"norm_bias": True, "attention_bias": True, "mlp_bias": True},
            **{"hidden_size": 24, "local_attention": 4, "local_theta": 700.0},
        },
    },
    "milco": {"head": "milco", "lexecho": True},
    "milco, strongest repeats": {
        "head": "milco",
        "lexecho": True,
        "repeats": "max",
        "exclude_special_tokens": True,
        "pool_mask": "multiply",
    },
    "milco without echo": {"head": "milco"},
    "milco with tables": {
        "head": "milco",
        "lexecho": True,
        **{"translations": 3, "stems": 97, "ngrams": 640},
    },
    "token weights": {"head": "token_weights"},
    "dense": {"head": "dense", "pooling": "mean", "embedding_size": 7},
    "csr": {
        "head": "csr",
        "pooling": "cls",
        "latents": 37,
        "active_latents": 5,
        "revived_latents": 3,
        "dead_after": 2,
    },
}


def portable(head, family=None, encoder=None, **options):
    """A random retriever with a golden tokenizer."""
    multilingual = head in ("milco", "token_weights", "dense")
    kind = "xlmr" if multilingual else "bert"
    family = family or ("xlm-roberta" if multilingual else "bert")
    tokenizer = TextTokenizer(GOLDEN / kind)
    encoder = tiny.encoder(
        family,
        **{
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 22,
            "num_layers": 2,
            "max_positions": LENGTH + 2 * multilingual,
            "pad_token_id": tokenizer.pad_id,
            **(encoder or {}),
        },
    )
    if head == "milco":
        options |= {"pivot_vocab_size": 41, "pivot_hidden_size": 14}
    special = tokenizer.special_ids
    spec = RetrieverSpec.of(head, encoder, special_ids=special, **options)
    _, abstract = retriever.split(spec)
    rng = np.random.default_rng(5)

    def drawn(path, leaf):
        if path_name(path) == "head/ngrams/characters":
            return characters(tokenizer, len(leaf))
        if path_name(path) == "head/stems/characters":
            return letters_of(tokenizer, len(leaf))
        if path_name(path).endswith("/terms"):
            return rng.integers(0, 41, leaf.shape).astype(np.float32)
        around = 0.0
        if path_name(path).endswith(("norm/scale", "echo/scale", "weigh/scale")):
            around = 1.0
        elif path_name(path) == "head/echo/bias":
            around = 2.0  # so that some weights are above 0
        return (around + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(drawn, abstract)
    pivot = GOLDEN / "bert" if head == "milco" else None
    return SavedModel(spec, params, GOLDEN / kind, pivot, head, LENGTH, LENGTH)


class Runtime:
    """A folder in onnxruntime, with the tokenizer beside the model."""

    def __init__(self, folder, file="model.onnx"):
        self.session = onnxruntime.InferenceSession(folder / file)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(LENGTH)
        self.tokenizer.enable_padding(pad_id=TextTokenizer(folder).pad_id)

    def encode(self, texts, batch_size=5):
        batches = []
        for start in range(0, len(texts), batch_size):
            found = self.tokenizer.encode_batch(texts[start : start + batch_size])
            inputs = {
                "input_ids": np.array([e.ids for e in found]),
                "attention_mask": np.array([e.attention_mask for e in found]),
            }
            batches.append(self.session.run(None, inputs))
        names = [output.name for output in self.session.get_outputs()]
        views = zip(*batches, strict=True)
        return {
            name: np.concatenate(view) for name, view in zip(names, views, strict=True)
        }


def ours(model, texts, role="document"):
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer))
    views = encoder.encode(model.params, texts, LENGTH, role)
    return {name: matrix.toarray() for name, matrix in views.items()}


def check_same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert np.abs(value).max() > 0.01
        error = np.abs(found[name] - value).max() / np.abs(value).max()
        assert error < 1e-5, name


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_the_same(case, tmp_path):
    model = portable(**CASES[case])
    write_onnx(model, tmp_path)
    check_same(Runtime(tmp_path).encode(TEXTS), ours(model, TEXTS))
    beside = json.loads((tmp_path / "config.json").read_text())
    assert beside["lsrjax"]["views"] == model.spec.views
    assert (tmp_path / "pivot_tokenizer").is_dir() == (model.spec.head == "milco")


@pytest.mark.parametrize("head", ["splade", "token_weights"])
def test_queries_that_are_bags_of_words_have_a_graph_of_their_own(head, tmp_path):
    model = portable(head, queries="static")
    write_onnx(model, tmp_path)
    check_same(Runtime(tmp_path).encode(TEXTS), ours(model, TEXTS))
    found = Runtime(tmp_path, "query_model.onnx").encode(TEXTS)
    check_same(found, ours(model, TEXTS, "query"))


def test_large_weights_have_a_file_of_their_own(tmp_path):
    model = portable(**CASES["milco"])
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_onnx(model, tmp_path / "one")
    write_onnx(model, tmp_path / "two", external_bytes=10_000)
    assert not (tmp_path / "one/model.onnx.data").exists()
    assert (tmp_path / "two/model.onnx.data").stat().st_size > 10_000
    small, large = (
        (tmp_path / x / "model.onnx").stat().st_size for x in ("two", "one")
    )
    assert small < large / 2
    found, expected = (Runtime(tmp_path / x).encode(TEXTS) for x in ("two", "one"))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_thousand_documents_are_ranked_the_same(tmp_path):
    model = portable(**CASES["milco"])
    write_onnx(model, tmp_path)
    rng = np.random.default_rng(1)
    words = " ".join(TEXTS[:10]).split() + list("abcdefghijklmnopqrstuvwxyz")
    documents = [" ".join(rng.choice(words, rng.integers(1, 30))) for _ in range(1000)]
    runtime = Runtime(tmp_path)
    found, expected = runtime.encode(documents, 64), ours(model, documents)
    q_found, q_expected = runtime.encode(TEXTS), ours(model, TEXTS, "query")
    scores = sum(q_expected[v] @ expected[v].T for v in expected)
    theirs = sum(q_found[v] @ found[v].T for v in expected)
    # In our order, no score of theirs rises above the one before by more than rounding.
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(theirs, order, axis=1)
    assert (np.diff(ranked) <= 1e-5 * np.abs(scores).max()).all()
    assert np.ptp(scores) > 0.1 * np.abs(scores).max()


def test_it_is_not_read_here(tmp_path):
    write_onnx(portable(**CASES["distilbert"]), tmp_path)
    with pytest.raises(InputError, match="only model.onnx, which is for onnxruntime"):
        open_model.open_portable(str(tmp_path))
