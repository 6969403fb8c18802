"""ColBERT's own format, read as ColBERT reads it, and read back."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from programs import tiny
from safetensors.numpy import load_file, save_file

from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import open_model, targets
from lsrjax.data.debian_texts import embedded
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models import retriever
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.encode_texts import TextEncoder

QUERY, DOCUMENT = 9, 15
TEXTS = ["", "file", "file " * 40, "Don't: (stop) it, 3.5%!", "文字 и текст", " a\tb"]


def model_of(family, **changes):
    xlmr = family == "xlm-roberta"
    folder = embedded.MULTILINGUAL_TOKENIZER if xlmr else embedded.ENGLISH_TOKENIZER
    tokenizer = TextTokenizer(folder)
    markers = ("▁linux", "▁game") if xlmr else ("##ly", "##ing")
    query_marker, document_marker = (tokenizer.vocabulary()[m] for m in markers)
    encoder = tiny.encoder(
        family,
        vocab_size=tokenizer.vocab_size,
        hidden_size=10,
        max_positions=20,
        pad_token_id=tokenizer.pad_id,
    )
    spec = RetrieverSpec.of(
        **{
            "head": "colbert",
            "encoder": encoder,
            "embedding_size": 6,
            "special_ids": tokenizer.special_ids,
            "query_marker": query_marker,
            "document_marker": document_marker,
            "expand_id": tokenizer.mask_id,
            "skip_ids": () if xlmr else tokenizer.punctuation_ids,
        }
        | changes
    )
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.5, leaf.shape).astype(np.float32),
        retriever.split(spec)[1],
    )
    return SavedModel(spec, params, folder, None, "a colbert", QUERY, DOCUMENT)


class AsColbertReads:
    """What colbert-ai 0.2.22 does with a checkpoint, by its source."""

    def __init__(self, folder):
        config = transformers.AutoConfig.from_pretrained(folder)
        assert config.architectures == ["HF_ColBERT"]
        names = {"bert": ("Bert", "bert."), "xlm-roberta": ("XLMRoberta", "roberta.")}
        name, prefix = names[config.model_type]
        self.encoder = getattr(transformers, f"{name}Model")(config).eval()
        state = {k: torch.tensor(v) for k, v in load_file(folder / WEIGHTS).items()}
        self.linear = state.pop("linear.weight")
        state = {k.removeprefix(prefix): v for k, v in state.items() if prefix in k}
        self.encoder.load_state_dict(state)  # strictly
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.config = json.loads((folder / "artifact.metadata").read_text())
        assert self.linear.shape == (self.config["dim"], config.hidden_size)

    def encode(self, text, role):
        key, length = {"query": ("query", "query"), "document": ("doc", "doc")}[role]
        marker = self.tokenizer.convert_tokens_to_ids(self.config[f"{key}_token_id"])
        length = self.config[f"{length}_maxlen"]
        padding = {"padding": "max_length"} if role == "query" else {}
        found = self.tokenizer(text, truncation=True, max_length=length - 1, **padding)
        ids = [found["input_ids"][0], marker, *found["input_ids"][1:]]
        mask = [1, *found["attention_mask"]]
        skip = []
        if role == "query":
            pad, fill = self.tokenizer.pad_token_id, self.tokenizer.mask_token_id
            ids = [fill if i == pad else i for i in ids]
        elif self.config["mask_punctuation"]:
            skip = [
                self.tokenizer.encode(symbol, add_special_tokens=False)[0]
                for symbol in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
            ]
        with torch.no_grad():
            states = self.encoder(torch.tensor([ids]), torch.tensor([mask]))[0][0]
        vectors = torch.nn.functional.normalize(states @ self.linear.T, dim=1)
        return vectors[[i not in skip for i in ids]].numpy()


WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_embeddings_are_those_that_colbert_computes(family, tmp_path):
    model = model_of(family)
    targets.TARGETS["colbert"].write(model, tmp_path)
    program = AsColbertReads(tmp_path)
    encoder = TextEncoder(model.spec, TextTokenizer(model.tokenizer), batch_size=6)
    lengths = {"query": QUERY, "document": DOCUMENT}
    for role, length in lengths.items():
        found = encoder.encode(model.params, TEXTS, length, role)["tokens"]
        for i, text in enumerate(TEXTS):
            wanted = program.encode(text, role)
            assert found[[i]].shape == (1, 6)
            np.testing.assert_allclose(found[[i]].tokens_TD, wanted, atol=1e-5)
    assert len(program.encode(TEXTS[2], "document")) == DOCUMENT


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_colbert_comes_back_and_out_again(family, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    model = model_of(family)
    targets.TARGETS["colbert"].write(model, first)
    found = open_model.open_portable(str(first))
    assert found.params.keys() == model.params.keys()
    jax.tree.map(np.testing.assert_array_equal, found.params, dict(model.params))
    targets.export(str(first), "colbert", second)
    wanted, again = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    assert wanted.keys() == again.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(again[name], tensor)
    metadata = [(f / "artifact.metadata").read_text() for f in (first, second)]
    assert metadata[0] == metadata[1]
    assert (found.query_length, found.document_length) == (QUERY, DOCUMENT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expand_id": -1}, "not filled up with the mask token"),
        ({"query_marker": -1}, "no markers"),
        ({"normalize": False}, "not normalized"),
        ({"embedding_size": 0}, "without a projection"),
        ({"query_prompt": "query: "}, "a prompt"),
        ({"skip_ids": (300, 301)}, "without embeddings other than"),
    ],
)
def test_what_colbert_cannot_do_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=f"{message}.*multi-vector"):
        targets.TARGETS["colbert"].write(model_of("bert", **changes), tmp_path)


def test_broken_folders_are_refused(tmp_path):
    targets.TARGETS["colbert"].write(model_of("bert"), tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    narrow = state | {"linear.weight": state["linear.weight"][:, :-1].copy()}
    save_file(narrow, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match=r"linear.weight is \[6, 9\], \[6, 10\]"):
        open_model.open_portable(str(tmp_path))
    save_file(state | {"score.weight": np.ones(3, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match=r"(?s)left over.*score.weight \[3\]"):
        open_model.open_portable(str(tmp_path))
    save_file(state, tmp_path / WEIGHTS)
    path = tmp_path / "artifact.metadata"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | {"query_token_id": "[unused9]"}))
    with pytest.raises(InputError, match=r"\[unused9\]"):
        open_model.open_portable(str(tmp_path))
    path.write_text(json.dumps(metadata | {"attend_to_mask_tokens": True}))
    with pytest.raises(InputError, match="attend_to_mask_tokens is true"):
        open_model.open_portable(str(tmp_path))
