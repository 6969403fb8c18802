"""Pairs scored by a cross-encoder as transformers scores them."""

import io
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from rich.console import Console
from sentence_transformers import CrossEncoder

from lsrjax.config.fields import get_default
from lsrjax.convert import open_model
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.teacher_scores import score
from lsrjax.training import run

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CLASSES = {
    "bert": (
        transformers.BertConfig,
        transformers.BertForSequenceClassification,
    ),
    "xlmr": (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaForSequenceClassification,
    ),
    **dict.fromkeys(
        ("modernbert-cls", "modernbert-mean"),
        (
            transformers.ModernBertConfig,
            transformers.ModernBertForSequenceClassification,
        ),
    ),
}
QUERIES = ["what is tea?", "чай", "", "お茶とは何ですか " * 9]
DOCUMENTS = ["tea is a drink", "", "a", "кофе и чай " * 12, "茶 " * 40]


# As in the tokenizers of the published models; the golden ones have none for pairs.
PAIRS = {
    "bert": "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    "xlmr": "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0",
    "modernbert": "[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
}
OWN = {
    "bert": {"max_position_embeddings": 66, "type_vocab_size": 2},
    "xlmr": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "modernbert": {
        "max_position_embeddings": 64,
        "hidden_size": 20,
        "num_hidden_layers": 3,
        "local_attention": 6,
        "classifier_bias": True,
    },
}


def reranker(kind, folder, labels=1):
    """A random cross-encoder beside the golden tokenizer of its family."""
    config_class, model_class = CLASSES[kind]
    kind, _, pooling = kind.partition("-")
    files = GOLDEN / ("xlmr" if kind == "xlmr" else "bert")
    shutil.copytree(files, folder, ignore=lambda *_: ["model.safetensors"])
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = ("<s>", "</s>") if kind == "xlmr" else ("[CLS]", "[SEP]")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}",
        pair=PAIRS[kind],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in special],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    if kind == "bert":  # as its published tokenizers
        path = folder / "tokenizer_config.json"
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        settings = json.loads(path.read_text()) | {"model_input_names": inputs}
        path.write_text(json.dumps(settings))
    sizes = json.loads((files / "config.json").read_text())
    own = OWN[kind] | ({"classifier_pooling": pooling} if pooling else {})
    torch.manual_seed(3)
    config = config_class(
        **{
            "vocab_size": sizes["vocab_size"],
            "hidden_size": 22,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 31,
            "pad_token_id": sizes["pad_token_id"],
            "num_labels": labels,
            **own,
        }
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = name.lower().endswith("norm.weight")
            parameter.copy_(float(norm) + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def scorer(folder, query_length, document_length):
    model = open_model.open_model(str(folder), folder, cross_encoder=True)
    return PairScorer(
        model.spec,
        model.params,
        TextTokenizer(model.tokenizer),
        query_length,
        document_length,
        batch_size=10,
    )


def joined(tokenizer, first, second):
    """Two texts in the template of their family."""
    start, end = tokenizer.convert_tokens_to_ids(
        ["<s>", "</s>"] if "</s>" in tokenizer.get_vocab() else ["[CLS]", "[SEP]"]
    )
    between = [end, end] if "</s>" in tokenizer.get_vocab() else [end]
    return [start, *first, *between, *second, end]


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        *itertools.product(("bert", "xlmr"), [(12, 16), (64, 256)]),
        ("modernbert-cls", (12, 16)),
        ("modernbert-mean", (64, 256)),
    ],
)
def test_scores_are_those_of_transformers(kind, lengths, tmp_path):
    model = reranker(kind, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    limit = 66 if kind == "bert" else 64
    length = min(sum(lengths), limit)
    query_length = min(lengths[0], length * 3 // 4)
    expected, counts = [], []
    for query in QUERIES:
        for document in DOCUMENTS:
            first = tokenizer.encode(query, add_special_tokens=False)[:query_length]
            second = tokenizer.encode(document, add_special_tokens=False)
            # As FlagEmbedding: the query is cut first, then the document alone.
            second = second[: length - len(joined(tokenizer, first, []))]
            ids = joined(tokenizer, first, second)
            inputs = {"input_ids": torch.tensor([ids])}
            if kind == "bert":
                types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
                inputs["token_type_ids"] = torch.tensor([types])
            with torch.no_grad():
                expected.append(float(model(**inputs).logits[0, 0]))
            counts.append(len(ids))
    assert max(counts) == length and min(counts) < 6
    assert np.ptp(expected) > 0.1
    ours = scorer(tmp_path / "model", *lengths)
    found = ours.scores([(q, d) for q in QUERIES for d in DOCUMENTS])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_a_cross_encoder_scores_the_documents_of_queries(tmp_path):
    reranker("xlmr", tmp_path / "model")
    teacher = scorer(tmp_path / "model", 12, 16)
    documents = np.array([[1, 0, -1], [4, -1, -1]])
    found = score(teacher, QUERIES[:2], DOCUMENTS, documents)
    assert found.dtype == np.float32
    assert np.isnan(found[documents < 0]).all()
    pairs = [(QUERIES[0], DOCUMENTS[1]), (QUERIES[0], DOCUMENTS[0])]
    pairs.append((QUERIES[1], DOCUMENTS[4]))
    np.testing.assert_allclose(found[documents >= 0], teacher.scores(pairs), rtol=1e-6)


@pytest.mark.slow
def test_a_stage_scores_with_the_cross_encoder_that_it_names(tmp_path):
    model = reranker("xlmr", tmp_path / "model")
    rng = np.random.default_rng(0)

    def text(words):
        return " ".join(rng.choice(["tea", "coffee", "чай", "茶", "house"], words))

    rows = [
        {"query": text(3), "pos": [text(40)], "neg": [text(5), text(9)]}
        for _ in range(8)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "groups.jsonl").write_text(lines)
    config = get_default()
    config.model.update(head="splade", hidden_size=16, max_length=64)
    config.tokenizer = str(GOLDEN / "bert")
    config.teacher.model = str(tmp_path / "model")
    config.prepare.scores = "teacher"
    config.data.source.files = str(tmp_path / "groups.jsonl")
    config.data.update(query_length=12, document_length=16, group_size=3)
    config.steps, config.batch_size = 2, 4
    run.run(config, tmp_path / "run", Console(file=io.StringIO()))
    with np.load(tmp_path / "run/train/prepared.npz") as arrays:
        scores = arrays["scores"]
    assert scores.shape == (8, 3) and np.ptp(scores) > 0.1
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for row, found in zip(rows, scores, strict=True):
        texts = [row["query"], row["pos"][0]]
        first, second = tokenizer(texts, add_special_tokens=False)["input_ids"]
        room = 12 + 16 - len(joined(tokenizer, first[:12], []))
        ids = joined(tokenizer, first[:12], second[:room])
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0, 0]
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)


def test_a_cross_encoder_is_no_retriever(tmp_path):
    reranker("bert", tmp_path / "model")
    with pytest.raises(InputError, match=r"cross-encoder.*prepare\.scores = 'teacher'"):
        open_model.open_model(str(tmp_path / "model"), tmp_path)


def test_more_than_one_label_is_refused(tmp_path):
    reranker("xlmr", tmp_path / "model", labels=3)
    with pytest.raises(InputError, match=r"out_proj\.weight: \[3, 22\], \[1, 22\] exp"):
        open_model.open_model(str(tmp_path / "model"), tmp_path, cross_encoder=True)


def test_a_tokenizer_without_a_template_for_pairs_is_refused():
    tokenizer = TextTokenizer(GOLDEN / "bert")
    with pytest.raises(InputError, match=r"bert/tokenizer\.json has no template"):
        tokenizer.pairs([("a", "b")], 5, 9)


@pytest.mark.parametrize("kind", CLASSES)
def test_scores_are_those_of_sentence_transformers(kind, tmp_path):
    reranker(kind, tmp_path / "model")
    theirs = CrossEncoder(
        str(tmp_path / "model"), device="cpu", activation_fn=torch.nn.Identity()
    )
    pairs = [(q, d) for q in QUERIES[:3] for d in DOCUMENTS[:4]]
    found = scorer(tmp_path / "model", 24, 40).scores(pairs)
    np.testing.assert_allclose(found, theirs.predict(pairs), rtol=1e-5, atol=1e-5)


def test_another_pooling_is_refused(tmp_path):
    reranker("modernbert-cls", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('pooling": "cls"', 'pooling": "max"'))
    with pytest.raises(InputError, match="classifier_pooling is 'max', but only"):
        open_model.open_model(str(tmp_path / "model"), tmp_path, cross_encoder=True)


def test_a_family_without_a_classifier_is_refused(tmp_path):
    reranker("bert", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 9}
    named = {"architectures": ["DistilBertForSequenceClassification"]}
    raw = json.loads(path.read_text()) | {"model_type": "distilbert"} | sizes | named
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match="implemented for bert"):
        open_model.open_model(str(tmp_path / "model"), tmp_path, cross_encoder=True)
