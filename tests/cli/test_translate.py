"""`lsrjax translate`: what transformers translates, in files that training reads."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import sentencepiece
import torch
import transformers

from lsrjax.cli import translate
from lsrjax.config.fields import get_default
from lsrjax.data import sources
from lsrjax.data.batching.drawing import shared_languages
from lsrjax.data.reading.bad_records import BadRecord

TEXTS = [
    "the old library reads files",
    "",
    "fast fonts on a small screen",
    "prints",
    "files and fonts and files and fonts and files",
    "reads  fast\nfiles",
    "old screen",
]
SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they save on models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A model of SentencePiece, and its pieces."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(TEXTS * 9))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "sp"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        user_defined_symbols=["<2de>", "<2fr>"],
    )
    made = sentencepiece.SentencePieceProcessor(str(folder / "sp.model"))
    return folder / "sp.model", [made.id_to_piece(i) for i in range(len(made))]


def randomly(kind, config, folder, often=slice(0)):
    torch.manual_seed(3)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # With larger embeddings, tied to the output, one token repeats itself.
            size = 0.3 if "embed" in name or "shared" in name else 1.5
            parameter += size * torch.randn_like(parameter)
        model.get_input_embeddings().weight[often] *= 5
    model.save_pretrained(folder)


def marian(folder, pieces):
    model, names = pieces
    folder.mkdir()
    rest = [name for name in names if name not in ("<s>", "</s>", "<unk>")]
    names = ["</s>", "<unk>", *rest, ">>deu<<", ">>fra<<", "<pad>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    for name in ("source.spm", "target.spm"):
        shutil.copy(model, folder / name)
    paths = [str(folder / n) for n in ("source.spm", "target.spm", "vocab.json")]
    transformers.MarianTokenizer(*paths).save_pretrained(folder)
    pad = vocabulary["<pad>"]
    config = transformers.MarianConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=32,
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=0,
        **SIZES,
    )
    randomly(transformers.MarianMTModel, config, folder)


def m2m(folder, pieces):
    model, names = pieces
    folder.mkdir()
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {n: i for i, n in enumerate(dict.fromkeys([*first, *names]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.copy(model, folder / "sentencepiece.bpe.model")
    paths = [str(folder / n) for n in ("vocab.json", "sentencepiece.bpe.model")]
    tokenizer = transformers.M2M100Tokenizer(*paths)
    tokenizer.save_pretrained(folder)
    size = 1 + max(tokenizer.lang_code_to_id.values())
    config = transformers.M2M100Config(
        vocab_size=size, max_position_embeddings=32, **SIZES
    )
    randomly(transformers.M2M100ForConditionalGeneration, config, folder)


def nllb(folder, pieces):
    folder.mkdir()
    letters = sorted({letter for text in TEXTS for letter in text} - set(" \n"))
    names = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *letters]
    tokenizer = transformers.NllbTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[]
    )
    tokenizer.save_pretrained(folder)
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer), max_position_embeddings=32, **SIZES
    )
    # Most of the vocabulary are languages, which no text shows.
    letters = slice(4, len(names))
    randomly(transformers.M2M100ForConditionalGeneration, config, folder, letters)


def madlad(folder, pieces):
    rest = [name for name in pieces[1] if name not in ("<s>", "</s>", "<unk>")]
    names = ["<pad>", "</s>", "<unk>", *rest]
    scored = [(name, -float(i)) for i, name in enumerate(names)]
    tokenizer = transformers.T5Tokenizer(scored, extra_ids=0)
    tokenizer.save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=len(names),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    randomly(transformers.T5ForConditionalGeneration, config, folder)


# How to make a model, its codes, and the text before a source in German.
CASES = {
    "marian": (marian, "de=deu,fr=fra", ">>deu<< "),
    "m2m": (m2m, "de,fr", ""),
    "nllb": (nllb, "de=deu_Latn,fr=fra_Latn", ""),
    "madlad": (madlad, "de,fr", "<2de> "),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("models")
    for name, (make, _, _) in CASES.items():
        make(folder / name, pieces)
    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "docs.jsonl"
    rows = [{"_id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def run(models, name, texts, out, *flags):
    translate.main(
        [
            *("--texts", str(texts), "--model", str(models / name)),
            *("--source", "en=eng_Latn" if name == "nllb" else "en"),
            *("--target", CASES[name][1], "--out", str(out), "--max_length", "12"),
            *flags,
        ]
    )


def expected(folder, prefix, beams):
    """What transformers makes of each text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    forced = {}
    if not prefix:
        large = folder.name == "nllb"
        tokenizer.src_lang = "eng_Latn" if large else "en"
        forced = {
            "forced_bos_token_id": tokenizer.convert_tokens_to_ids("deu_Latn")
            if large
            else tokenizer.get_lang_id("de")
        }
    found = []
    for text in TEXTS:
        # Tokens beyond 12 are cut, but for the last one.
        ids = tokenizer(prefix + " ".join(text.split()))["input_ids"]
        ids = torch.tensor([ids if len(ids) <= 12 else [*ids[:11], ids[-1]]])
        made = model.generate(ids, num_beams=beams, max_length=12, **forced)[0]
        skipped = made[2 if forced else 1 :]
        shown = tokenizer.decode(skipped, skip_special_tokens=True).strip()
        found.append(shown if text else "")
    return found


@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", CASES)
def test_translations_are_those_of_transformers(models, texts, tmp_path, name, beams):
    out = tmp_path / "out"
    flags = ("--beams", str(beams), "--batch_size", "3")
    run(models, name, texts, out, *flags)
    assert sorted(p.name for p in out.iterdir()) == ["de.parquet", "fr.parquet"]
    table = pq.read_table(out / "de.parquet")
    assert table["docid"].to_pylist() == [f"d{i}" for i in range(len(TEXTS))]
    wanted = expected(models / name, CASES[name][2], beams)
    assert table["text"].to_pylist() == wanted
    assert len(set(wanted)) > 2
    assert table["text"] != pq.read_table(out / "fr.parquet")["text"]
    facts = json.loads(table.schema.metadata[b"lsrjax.translation"])
    assert facts["rows"] == len(TEXTS) and facts["cut"] >= 1
    assert facts["decoding"] == {
        "beams": beams,
        "max_length": 12,
        "batch_size": 3,
        "dtype": "float32",
    }
    assert facts["texts"]["name"] == "docs.jsonl"
    assert "model.safetensors" in facts["model"]["files"]


def test_a_stop_changes_no_byte(models, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(translate, "_PART", 2)
    flags = ("--target", "de=deu", "--beams", "1")
    run(models, "marian", texts, tmp_path / "whole", *flags)
    calls, original = [], translate.Translator.__call__

    def stopped(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*args)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(translate.Translator, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(models, "marian", texts, out, *flags)
    assert [p.name for p in out.iterdir()] == ["de.parquet.partial"]
    with pytest.raises(SystemExit):
        run(models, "marian", texts, out, *flags[:3], "2")
    assert "decoding: there {'beams': 1" in capsys.readouterr().err
    state = out / "de.parquet.partial" / "state.json"
    values = json.loads(state.read_text())
    for damaged in ({}, values | {"parts": None}, values | {"made_of": 1}):
        state.write_text(json.dumps(damaged))
        with pytest.raises(SystemExit):
            run(models, "marian", texts, out, *flags)
        assert "state.json is damaged" in capsys.readouterr().err
    state.write_text(json.dumps(values))
    run(models, "marian", texts, out, *flags)
    assert "6 texts are translated already" in capsys.readouterr().out
    whole = (tmp_path / "whole" / "de.parquet").read_bytes()
    assert (out / "de.parquet").read_bytes() == whole
    run(models, "marian", texts, out, *flags)
    assert "de.parquet exists; it is kept" in capsys.readouterr().out
    texts.write_text(texts.read_text() + '{"_id": "x", "text": "more"}\n')
    with pytest.raises(SystemExit):
        run(models, "marian", texts, out, *flags)
    assert "de.parquet was made with something else" in capsys.readouterr().err


def test_training_names_a_text_that_a_language_lacks(models, texts, tmp_path):
    run(models, "m2m", texts, tmp_path / "out")
    rows = [{"query": "q", "positive_document_ids": [f"d{i}"]} for i in (0, 1, 6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    path = tmp_path / "out" / "de.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(TEXTS) - 1), path)
    data = get_default().data
    data.source.files = str(tmp_path / "rows.jsonl")
    data.corpus = {"en": str(texts), "de": str(path)}
    source = sources.open_source(data, "group")
    assert source[0].positives[0] == {"en": TEXTS[0], "de": table["text"][0].as_py()}
    with pytest.raises(BadRecord, match="the id 'd1' in en .* is empty"):
        source[1]
    weights = {"en": 1.0, "de": 1.0}
    last = source[2]
    with pytest.raises(BadRecord, match="not all of its documents exist in de"):
        shared_languages(last.id, last.positives, "round_robin", weights)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--target", "xx"), "has no language 'xx'; it has"),
        (("--target", "de,de"), "each once"),
        (("--source", "en,fr"), "name one language"),
        (("--max_length", "33"), "--max_length is 33"),
        (("--beams", "0"), "--beams is 0"),
        (("--texts", "none.jsonl"), "none.jsonl is not a file"),
        (("--model", "./nowhere"), "nowhere"),
        (("--engine", "ctranslate2"), "model.bin"),
    ],
)
def test_mistakes_say_what_to_do(models, texts, tmp_path, capsys, flags, message):
    if flags[-1] == "ctranslate2":
        pytest.importorskip("ctranslate2")
    with pytest.raises(SystemExit) as stop:
        run(models, "marian", texts, tmp_path / "out", *flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.parquet"))


def test_weights_that_may_run_code_are_refused(models, texts, tmp_path, capsys):
    shutil.copytree(models / "m2m", tmp_path / "m2m")
    (tmp_path / "m2m" / "model.safetensors").rename(
        tmp_path / "m2m" / "pytorch_model.bin"
    )
    with pytest.raises(SystemExit):
        run(tmp_path, "m2m", texts, tmp_path / "out")
    assert "has no .safetensors" in capsys.readouterr().err


def test_ctranslate2_translates_the_same(models, texts, tmp_path):
    converters = pytest.importorskip("ctranslate2").converters
    converter = converters.TransformersConverter(str(models / "marian"))
    converter.convert(str(tmp_path / "marian"))
    run(models, "marian", texts, tmp_path / "slow", "--beams", "1")
    flags = ("--engine", "ctranslate2", "--tokenizer", str(models / "marian"))
    run(tmp_path, "marian", texts, tmp_path / "quick", "--beams", "1", *flags)
    slow, quick = (
        pq.read_table(tmp_path / place / "de.parquet")["text"].to_pylist()
        for place in ("slow", "quick")
    )
    # At the length's limit, this model's last token is one of the end in transformers.
    for one, other in zip(slow, quick, strict=True):
        assert other.startswith(one) and bool(one) == bool(other)
