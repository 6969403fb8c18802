"""Decoders that answer a prompt about a pair, as transformers computes the logits."""

import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from rich.console import Console

from lsrjax.cli import score as score_command
from lsrjax.config.fields import get_default
from lsrjax.convert import open_model, reranker
from lsrjax.data.prompted_pairs import PromptedPairs
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import sharding
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import Question
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.training import run

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "bert"
# Tied and untied; Gemma 2's logits are capped.
CLASSES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}
PROMPT = "[UNK] the {query} and the {document} [MASK] a"
QUERIES = ["what is tea?", "", "a b c d e f g h i j k l m n o"]
DOCUMENTS = ["tea is a drink", "{query}", "coffee and tea " * 30]
LIMIT = 60


def decoder(kind, folder, model_class=None, **more):
    """A random decoder beside a golden tokenizer."""
    config_class, language_model = CLASSES[kind]
    shutil.copytree(GOLDEN, folder, ignore=lambda *_: ["model.safetensors"])
    sizes = json.loads((GOLDEN / "config.json").read_text())
    torch.manual_seed(3)
    config = config_class(
        vocab_size=sizes["vocab_size"],
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=31,
        max_position_embeddings=LIMIT,
        pad_token_id=sizes["pad_token_id"],
        tie_word_embeddings=kind != "llama",
        **more,
    )
    model = (model_class or language_model)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = name.endswith("norm.weight") and "gemma" not in kind
            parameter.copy_(float(norm) + 0.5 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def tokens_of(folder, count):
    """Words that are tokens of the vocabulary."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return [word for word in vocabulary if word.isalpha() and len(word) == 1][:count]


def scorer(folder, question, lengths=(8, 20), **more):
    model = open_model.open_model(str(folder), folder, cross_encoder=True)
    model = reranker.asked(model, question, "config.teacher.")
    tokenizer = TextTokenizer(model.tokenizer)
    return PairScorer(model.spec, model.params, tokenizer, *lengths, **more)


def cut(tokenizer, text, count):
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in found["offset_mapping"]]
    return text if len(ends) <= count else text[: ends[count - 1]]


@pytest.mark.parametrize(
    ("kind", "two"),
    [
        ("gemma2", True),
        pytest.param("qwen3", True, marks=pytest.mark.slow),
        pytest.param("llama", False, marks=pytest.mark.slow),
    ],
)
def test_scores_are_the_logits_of_transformers(kind, two, tmp_path):
    model = decoder(kind, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    yes, no = tokens_of(tmp_path / "model", 2)
    question = Question(prompt=PROMPT, yes=yes, no=no if two else "")

    def ids(query, document):
        first, rest = PROMPT.split("{query}")
        between, last = rest.split("{document}")
        text = first + query + between + document + last
        return [
            tokenizer.cls_token_id,
            *tokenizer.encode(text, add_special_tokens=False),
        ]

    own = len(ids("", ""))
    length = 8 + 20 + own
    assert length < LIMIT
    expected, counts = [], []
    for query in QUERIES:
        shown = cut(tokenizer, query, 8)
        for document in DOCUMENTS:
            room = length - len(ids(shown, ""))
            row = ids(shown, cut(tokenizer, document, room))
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0, -1]
            answers = tokenizer.convert_tokens_to_ids([yes, no])
            found = logits[answers].tolist()
            expected.append(found[0] - found[1] if two else found[0])
            counts.append(len(row))
    assert max(counts) == length and len(set(counts)) > 4
    assert np.ptp(expected) > 0.1
    ours = scorer(tmp_path / "model", question, batch_size=4)
    found = ours.scores([(q, d) for q in QUERIES for d in DOCUMENTS])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


BAAI = (
    "Given a query A and a passage B, determine whether the passage contains an answer"
    " to the query by providing a prediction of either 'Yes' or 'No'."
)


def write_gemma_tokenizer(folder):
    """Gemma's class, which pads on the left; a newline is a token of its own."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=special, show_progress=False
    )
    made.train_from_iterator([BAAI, "Yes A: B:", *QUERIES, *DOCUMENTS], trainer)
    made.add_tokens([tokenizers.AddedToken("\n", normalized=False)])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)]
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    config = {"tokenizer_class": "GemmaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_reranker_of_bge_scores_as_flag_embedding(tmp_path):
    """As in FlagEmbedding/inference/reranker/decoder_only/base.py."""
    model = decoder("gemma", tmp_path / "model")
    write_gemma_tokenizer(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.padding_side == "left"

    def pieces(*texts):
        rows = [
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts
        ]
        return [token for row in rows for token in row]

    pairs = [(q, d) for q in QUERIES for d in ("tea is a drink", "", "coffee tea")]
    rows = [
        [tokenizer.bos_token_id, *pieces(f"A: {q}", "\n", f"B: {d}", "\n", BAAI)]
        for q, d in pairs
    ]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert (batch["input_ids"] == tokenizer.pad_token_id).any()
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
    (yes,) = pieces("Yes")
    question = Question(
        prompt=f"A: {{query}}\nB: {{document}}\n{BAAI}", yes="Yes", no=""
    )
    found = scorer(tmp_path / "model", question, (16, 16)).scores(pairs)
    np.testing.assert_allclose(found, logits[:, yes], atol=1e-5, rtol=1e-5)
    assert np.ptp(found) > 0.1 and len(set(map(len, rows))) > 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_sequence_classifiers_score_as_in_transformers(kind, tmp_path):
    classes = {
        "qwen3": transformers.Qwen3ForSequenceClassification,
        "gemma": transformers.GemmaForSequenceClassification,
        "gemma2": transformers.Gemma2ForSequenceClassification,
        "llama": transformers.LlamaForSequenceClassification,
    }
    model = decoder(kind, tmp_path / "model", classes[kind], num_labels=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    expected = []
    for document in DOCUMENTS[:2]:
        text = PROMPT.replace("{document}", document).replace("{query}", "a b", 1)
        row = tokenizer.encode(text, add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([[tokenizer.cls_token_id, *row]])).logits
        expected.append(float(logits[0, 0]))
    ours = scorer(tmp_path / "model", Question(prompt=PROMPT))
    found = ours.scores([("a b", document) for document in DOCUMENTS[:2]])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="no = '' would have no effect: .*classifier"):
        scorer(tmp_path / "model", Question(prompt=PROMPT, no=""))
    with pytest.raises(InputError, match="give a decoder its prompt"):
        path = tmp_path / "model" / "tokenizer.json"
        content = json.loads(path.read_text()) | {"post_processor": None}
        path.write_text(json.dumps(content))
        scorer(tmp_path / "model", Question()).scores([("a", "b")])


def test_texts_are_cut_where_tokens_end_and_never_past_the_limit():
    tokenizer = TextTokenizer(GOLDEN)
    text = "coffee and tea, " * 40
    (whole,) = tokenizer.ids([text], 1000, special=False)
    for count in (0, 1, 7, len(whole), len(whole) + 3):
        begun = tokenizer.beginning(text, count)
        assert text.startswith(begun)
        assert tokenizer.ids([begun], 1000, special=False)[0] == whole[:count]
    assert tokenizer.beginning(text, len(whole)) == text.rstrip() or begun == text
    # A word that goes on behind the cut: one more token there.
    pairs = PromptedPairs(tokenizer, "{document}ingly {query}", 2, 3, 40)
    for document in ("cofcofcofcof", "tea tea tea tea tea", ""):
        (row,) = pairs.ids([("tea", document)])
        assert len(row) <= pairs.max_length
    with pytest.raises(InputError, match="leave no place for a document"):
        PromptedPairs(tokenizer, "a b c {query} d {document}", 8, 3, 12)


@pytest.mark.slow
def test_a_mesh_changes_no_score(tmp_path):
    decoder("gemma2", tmp_path / "model")
    yes, no = tokens_of(tmp_path / "model", 2)
    question = Question(prompt=PROMPT, yes=yes, no=no)
    pairs = [(q, d) for q in QUERIES for d in DOCUMENTS]
    expected = scorer(tmp_path / "model", question).scores(pairs)
    with jax.set_mesh(sharding.make_mesh(1, 1)):
        model = open_model.open_model(str(tmp_path / "model"), tmp_path)
        model = reranker.asked(model, question, "")
        mesh = jax.sharding.get_mesh()
        layout = sharding.layout_of(model.spec, model.params, mesh, True)
        params = sharding.place(model.params, layout.shardings(model.params))
        tokenizer = TextTokenizer(model.tokenizer)
        found = PairScorer(model.spec, params, tokenizer, 8, 20).scores(pairs)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_command_scores_rows_with_a_prompt(tmp_path, capsys):
    decoder("qwen3", tmp_path / "model")
    yes, no = tokens_of(tmp_path / "model", 2)
    row = {"query": "what is tea?", "pos": ["tea is a drink"], "neg": ["a", "b c"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    flags = [f"--data.source.files={tmp_path / 'rows.jsonl'}"]
    teacher = ["--teacher", str(tmp_path / "model")]
    asked = ["--prompt", PROMPT, "--yes", yes, "--no", no]
    out = tmp_path / "out.jsonl"
    score_command.main([*flags, *teacher, *asked, "--out", str(out)])
    found = json.loads(out.read_text())
    question = Question(prompt=PROMPT, yes=yes, no=no)
    ours = scorer(tmp_path / "model", question, (64, 256))
    expected = ours.scores([(row["query"], text) for text in row["pos"] + row["neg"]])
    scores = found["pos_scores"] + found["neg_scores"]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    for more, said in (
        ([*teacher, *asked[:-1], yes], "are both"),
        ([*teacher, *asked[:3], "what is tea"], "no single token"),
        ([*teacher, "--prompt", "{query}"], "each once"),
        ([*teacher, "--yes", yes], "with --prompt only"),
        ([*asked, "--scores", "x"], "--prompt is of the model of --teacher"),
    ):
        with pytest.raises(SystemExit):
            score_command.main([*flags, *more, "--out", str(tmp_path / "no.jsonl")])
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_stage_scores_with_the_answers_of_a_decoder(tmp_path):
    decoder("llama", tmp_path / "model")
    yes, no = tokens_of(tmp_path / "model", 2)
    rows = [
        {"query": f"tea {i}", "pos": [f"drink {i}"], "neg": ["a b", f"coffee {i}"]}
        for i in range(8)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "groups.jsonl").write_text(lines)
    config = get_default()
    config.model.update(head="splade", hidden_size=16, max_length=64)
    config.tokenizer = str(GOLDEN)
    config.teacher.update(model=str(tmp_path / "model"), prompt=PROMPT)
    config.prepare.scores = "teacher"
    config.data.source.files = str(tmp_path / "groups.jsonl")
    config.data.update(query_length=8, document_length=20, group_size=3)
    config.steps, config.batch_size = 2, 4
    found = []
    for answer in (yes, no):
        config.teacher.update(yes=answer, no="")
        run.run(config, tmp_path / answer, Console(file=io.StringIO()))
        with np.load(tmp_path / answer / "train/prepared.npz") as arrays:
            found.append(arrays["scores"])
    question = Question(prompt=PROMPT, yes=yes, no=no)
    ours = scorer(tmp_path / "model", question)
    for row, high, low in zip(rows, *found, strict=True):
        texts = row["pos"] + row["neg"]
        expected = ours.scores([(row["query"], text) for text in texts])
        np.testing.assert_allclose(high - low, expected, atol=1e-5)


def test_only_a_language_model_answers(tmp_path):
    question = Question(prompt=PROMPT)
    model = open_model.open_model(str(GOLDEN), tmp_path)
    with pytest.raises(InputError, match="is no decoder with a language model's head"):
        reranker.asked(model, question, "config.teacher.")
    teacher = get_default().teacher
    assert reranker.asked(model, teacher, "config.teacher.") is model
