"""Spoils configs, data files and model folders, and looks at what is said of them.

python fuzz.py configs|data|models COUNT [FIRST]

Input i is a function of i, from FIRST (0) on: `fuzz.py models 1 17` is number 17 again.
Each is refused with a message, as the programs print it, or taken. A fault is any other
error, more than 120 s, a value that is not finite and was taken, or code that a file of
data or of a model named and that was imported. Prints each fault, then counts as JSON,
and ends with 1 if there is a fault.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import io
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import sys
import tempfile
import traceback
from math import nan

# Nothing is asked of a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import mutations
import numpy as np
from rich.console import Console

from lsrjax import options
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.cli import flags
from lsrjax.config import check_run
from lsrjax.config import fields as config
from lsrjax.config.fields import get_default
from lsrjax.config.nodes import entry
from lsrjax.convert import open_model, targets
from lsrjax.data import sources
from lsrjax.data.batching.mixing import MIXERS
from lsrjax.data.batching.negatives import SAMPLERS
from lsrjax.data.reading.bad_records import BadRecord
from lsrjax.data.reading.formats import FORMATS
from lsrjax.data.reading.texts import read_texts
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError, TrainingFailed
from lsrjax.losses.regularizers import REGULARIZERS, SCHEDULES
from lsrjax.losses.table import LOSSES
from lsrjax.models import retriever
from lsrjax.models.backbones.table import read_config
from lsrjax.models.heads import HEADS
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.maxsim import TokenMatrix
from lsrjax.training import memory_plan, run

TESTS = pathlib.Path(__file__).parents[1]
GOLDEN = TESTS / "golden"
SECONDS = 120
# Runs of accepted configs, of two steps each.
RUNS = 4


class Fault(Exception):
    """Something was taken that should have been refused."""


def finite(values, what: str) -> None:
    """Raises Fault unless all numbers are finite."""
    if not np.isfinite(np.asarray(values, np.float64)).all():
        raise Fault(f"{what} is not finite")


# Configs.

BASES = ("golden_infonce", "two_stages", "tiny_demo", "mixed")
TEXT = (
    *("none", "kl", "infonce", "alignment", "kl:1,margin_mse:.1", "kl:nan", "m3"),
    *("milco", "splade", "dense", "csr", "colbert", "token_weights", "separate"),
    *("files", "datasets", "tfds", "debian", "dev", "train", "beir", "triplet"),
    *("*:1", "en:1,de:1", "en:nan", "xx:1", "round_robin", "bm25", "teacher", "idf"),
    *("stage:first", "stage:", "embedded:english", "embedded:x", "nDCG@10", "R@0"),
    *("nDCG@-1", "cosine", "bfloat16", "skip", "layer", "flops", "first", "no/such"),
    *(str(GOLDEN / "bert"), str(GOLDEN / "xlmr"), str(TESTS), __file__, "*", ".*"),
)


def _at(found, field: str):
    """The value of `optim.lr`."""
    for name in field.split("."):
        found = found[name]
    return found


def _value(rng: np.random.Generator, default):
    """Another one, mostly of the same type."""
    if isinstance(default, bool) and rng.integers(2):
        return not default
    floats = [float(v) for v in mutations.VALUES if isinstance(v, int | float)]
    of_type = {
        int: [2, 3, 4, 5, 7, 0, 1, -1, 2**31, 2**62, 10**30],
        float: [0.1, 0.9, 1e-3, 2.5, 1e-9, *floats],
        str: TEXT,
        dict: ({"en": 1}, {"xx": 1, "*": 0}, {"en": nan}, {"en": {"dataset": "x"}}, {}),
        tuple: ((), (1, 2, 3), (0.5, 0.0, 1.0), ("title",), ("de", "x"), (nan,) * 3),
    }
    if type(default) in of_type and rng.integers(4):
        return mutations.one(rng, of_type[type(default)])
    return mutations.one(rng, [*mutations.VALUES, *TEXT])


def _option(rng: np.random.Generator, field: str) -> tuple[str, object]:
    """An option of some entry, which the one in the config may have, and a value."""
    stage = "".join(re.findall(r"^stages\.\w+\.", field))
    where, table = mutations.one(rng, TABLES)
    name = mutations.one(rng, sorted(table))
    kind = options.kind_of(table[name])
    one = mutations.one(rng, [*dataclasses.fields(kind)] or [None])
    if one is None or rng.integers(8) == 0:
        return f"{stage}{where}", name
    at = f"{where}.{name}" if where == "loss" and rng.integers(2) else where
    return f"{stage}{at}.{one.name}", _value(rng, options.default_of(one))


def configs(rng: np.random.Generator, folder: pathlib.Path, taken: int) -> None:
    """Some fields of a config that runs get other values, in the file or as flags."""
    base = TESTS / "configs" / f"{mutations.one(rng, BASES)}.py"
    sound = runpy.run_path(str(base))["get_config"]()
    fields = [
        field
        for field in config.fields(sound)
        if not len(sound.stages) or field.startswith(("stages.", "evaluate."))
    ]
    lines, arguments = [], []
    for _ in range(mutations.one(rng, (1, 1, 1, 2, 3))):
        field = mutations.one(rng, fields)
        value = _value(rng, _at(sound, field))
        if rng.integers(3) == 0:
            field, value = _option(rng, mutations.one(rng, fields))
        if rng.integers(20) == 0:
            field = f"{field}x"
        if rng.integers(2):
            lines.append(f"    c.{field} = {value!r}\n")
        else:
            shown = str(value).encode("utf-8", "surrogatepass")
            arguments.append(f"--config.{field}=" + os.fsdecode(shown))
    path = folder / "config.py"
    path.write_bytes(
        f"import runpy\nfrom math import inf, nan\n\ndef get_config():\n"
        f"    c = runpy.run_path({str(base)!r})['get_config']()\n"
        f"{''.join(lines)}    return c\n".encode("utf-8", "surrogatepass")
    )
    given = flags.parse(flags.parser("fuzz", None), [f"--config={path}", *arguments])
    for message in (*given.unknown, *given.wrong):
        raise InputError(message)
    found = given.config
    check_run.validate(found)
    for stage in config.given_stages(found).values():
        for field in ("optim", "loss", "regularizer", "memory", "mesh", "model"):
            for name, value in stage[field].items():
                if isinstance(value, float):
                    finite(value, f"config.{field}.{name} = {value}")
    memory_plan.plan_stages(found)
    if taken < RUNS and base.stem in ("golden_infonce", "two_stages"):
        short(found, folder / "run")


def short(found, workdir: pathlib.Path) -> None:
    """Trains two steps of a config's first stage."""
    name, stage = next(iter(config.given_stages(found).items()))
    if max(stage.batch_size, stage.model.hidden_size, stage.data.document_length) > 999:
        return
    with found.unlocked(), stage.unlocked():
        if len(found.stages):
            for other in list(found.stages)[1:]:
                del found.stages[other]
        found.evaluate = get_default().evaluate
        stage.steps, stage.epochs, stage.dev = 2, 0.0, get_default().dev
        stage.watchdog.seconds = 0.0  # it would end this program
    run.run(found, workdir, Console(file=io.StringIO()))
    for line in (workdir / name / "metrics.jsonl").read_text().splitlines():
        finite(json.loads(line)["loss"], "a loss that was logged")


# Data.

WORDS = (
    "old library reads files fast and prints fonts größe Γειά 世界 on screens".split()
)


def _words(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(1, 9)))


def _rows(rng: np.random.Generator, name: str) -> list:
    """Sixteen rows of a format."""
    made = {
        "milco": lambda i: {
            "query": _words(rng),
            "pos": [_words(rng)],
            "neg": [_words(rng), _words(rng)],
            "pos_scores": [9.5],
            "neg_scores": [2, -1.5],
        },
        "alignment": lambda i: {
            "english": _words(rng),
            "non_english": _words(rng),
            "language": "de",
        },
        "tevatron": lambda i: {
            "query": _words(rng),
            "positive_passages": [{"title": "a", "text": _words(rng)}],
            "negative_passages": [{"title": "", "text": _words(rng)}],
        },
        "tevatron_ids": lambda i: {
            "query_text": _words(rng),
            "positive_document_ids": [str(i)],
            "negative_document_ids": [str((i + 1) % 16)],
        },
        "triplet": lambda i: {
            "anchor": _words(rng),
            "positive": _words(rng),
            "negative": _words(rng),
            "label": 3.25,
        },
        "labelled": lambda i: {
            "sentence1": _words(rng),
            "sentence2": _words(rng),
            "score": 0.75,
        },
        "colbert": lambda i: [str(i), [str(i), 9.1], [str((i + 1) % 16), 2.0]],
    }[name]
    return [made(i) for i in range(16)]


def _lines(rows: list) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _files(rng: np.random.Generator, folder: pathlib.Path) -> dict:
    """Writes data of one kind; the fields of `data` that name it."""
    texts = [{"_id": str(i), "title": "", "text": _words(rng)} for i in range(16)]
    tsv = "".join(f"{row['_id']}\t{row['text']}\n" for row in texts).encode()
    kinds = "milco alignment tevatron tevatron_ids triplet labelled colbert beir"
    name = mutations.one(rng, kinds.split())
    if name == "beir":
        for file in ("corpus", "queries"):
            (folder / f"{file}.jsonl").write_bytes(_lines(texts))
        (folder / "qrels").mkdir()
        judged = "".join(f"{i}\t{i}\t1\n" for i in range(16))
        (folder / "qrels" / "train.tsv").write_text(
            f"query-id\tcorpus-id\tscore\n{judged}"
        )
        return {"source": entry("files", files=str(folder)), "format": "beir"}
    rows = _rows(rng, name)
    fields: dict = {}
    path = folder / "rows.jsonl"
    if name != "colbert" and rng.integers(4) == 0:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(_lines(rows))
    fields["source"] = entry("files", files=str(path))
    if name in ("tevatron_ids", "colbert"):
        fields["corpus"] = str(folder / mutations.one(rng, ["c.tsv", "c.jsonl"]))
        tabs = fields["corpus"].endswith(".tsv")
        pathlib.Path(fields["corpus"]).write_bytes(tsv if tabs else _lines(texts))
    if name == "colbert":
        fields["format"] = entry("colbert", queries=str(folder / "q.tsv"))
        (folder / "q.tsv").write_bytes(tsv)
    return fields


def data(rng: np.random.Generator, folder: pathlib.Path, taken: int) -> None:
    """A file of rows, texts or judgements is spoiled, and all of it is read."""
    fields = _files(rng, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(int(rng.integers(1, 3))):
        path = mutations.one(rng, files)
        content = path.read_bytes()
        spoil = mutations.spoiled_bytes
        if path.suffix == ".jsonl" and rng.integers(3):
            spoil = mutations.spoiled_json
        with contextlib.suppress(ValueError):  # spoiled already, so that it is no JSON
            path.write_bytes(spoil(rng, content))
    stage = get_default()
    stage.data.update(fields)
    kind = "pair" if "english" in files[-1].read_text(errors="replace") else "group"
    # What is wrong with one file is no reason to leave the others alone.
    refused = []
    for path in files:
        if path.name[0] in "cq":
            try:
                for key, text in read_texts(path):
                    (key + text).encode()
            except InputError as error:
                refused.append(error)
    source = sources.open_source(stage.data, kind)
    for i in range(len(source)):
        try:
            example = source[i]
        except BadRecord as error:
            refused.append(error)
            continue
        texts = [example.english, example.translation] if kind == "pair" else None
        if texts is None:
            shown = [example.query, *example.positives, *example.negatives]
            texts = [text for one in shown for text in one.values()]
            if example.scores is not None:
                finite(example.scores, "a score")
        for text in texts:
            text.encode()
            if not text.strip():
                raise Fault("an empty text")
    if refused:
        raise refused[0]


# Models.


def model_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Sound folders of all kinds, tiny."""
    made = [GOLDEN / "bert", GOLDEN / "xlmr"]
    tokenizer = TextTokenizer(GOLDEN / "bert")
    encoder = read_config(json.loads((made[0] / "config.json").read_text()))
    encoder = dataclasses.replace(encoder, num_layers=1)
    special = {"special_ids": tokenizer.special_ids}
    csr = {"latents": 53, "active_latents": 5, "revived_latents": 7, "dead_after": 3}
    specs = {
        "splade": {"tied": True},
        "inference-free": {"tied": True, "queries": "static"},
        "csr": {"head": "csr", "pooling": "mean", **csr},
        "dense": {"head": "dense", "pooling": "cls", "query_prompt": "query: "},
        "multi-vector": {"head": "colbert", "embedding_size": 7},
        "lsrjax": {"head": "token_weights"},
        "milco-hf": {
            "head": "milco",
            "lexecho": True,
            "pivot_vocab_size": tokenizer.vocab_size,
            "pivot_hidden_size": 24,
        },
        "milco-reference": {
            "head": "milco",
            "pivot_vocab_size": tokenizer.vocab_size,
            "pivot_hidden_size": 24,
        },
    }
    rng = np.random.default_rng(1)
    for target, own in specs.items():
        head = {"head": "splade", "tied": False} if "head" not in own else {}
        spec = RetrieverSpec.of(encoder=encoder, **(head | special | own))
        _, abstract = retriever.split(spec)
        params = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), abstract)
        bert = made[0]
        model = SavedModel(spec, params, bert, bert, target, 11, 19)
        made.append(folder / target)
        made[-1].mkdir(parents=True)
        targets.TARGETS[target].write(model, made[-1])
    return made


def models(rng: np.random.Generator, folder: pathlib.Path, taken: int) -> None:
    """A file of a model's folder is spoiled, left out or added; then it encodes."""
    sound = folder.parent / "sound"
    if not sound.exists():
        model_folders(sound)
    kinds = [GOLDEN / "bert", GOLDEN / "xlmr", *sorted(sound.iterdir())]
    shutil.copytree(mutations.one(rng, kinds), folder / "model")
    for _ in range(int(rng.integers(1, 3))):
        # Code is not read; arrays of checkpoints have names that no seed gives.
        files = sorted(
            path
            for path in (folder / "model").rglob("*")
            if path.is_file() and path.suffix != ".py" and "default" not in path.parts
        )
        spoil_file(rng, mutations.one(rng, files))
    found = open_model.open_portable(str(folder / "model"))
    for path, values in jax.tree_util.tree_leaves_with_path(found.params):
        finite(values, jax.tree_util.keystr(path))
    encoder = TextEncoder(found.spec, TextTokenizer(found.tokenizer), batch_size=2)
    # One operation after the other: nothing is compiled anew for each folder.
    with jax.disable_jit():
        views = encoder.encode(found.params, ["old files", "größe"], 9)
    for name, view in views.items():
        numbers = view.tokens_TD if isinstance(view, TokenMatrix) else view.data
        finite(numbers, f"view {name}")


def spoil_file(rng: np.random.Generator, path: pathlib.Path) -> None:
    """Spoils a file of a model as what it is, or takes it away."""
    kind = int(rng.integers(12))
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2:
        names = [
            "added_tokens.json",
            "vocab.txt",
            "generation_config.json",
            "pickle.bin",
        ]
        (path.parent / mutations.one(rng, names)).write_text(
            json.dumps(mutations.one(rng, mutations.VALUES))
        )
    elif path.suffix == ".json" and kind < 9:
        with contextlib.suppress(ValueError):  # spoiled already, so that it is no JSON
            path.write_bytes(mutations.spoiled_json(rng, path.read_bytes()))
    elif path.suffix == ".safetensors" and kind < 10:
        mutations.spoil_tensors(rng, path)
    else:
        path.write_bytes(mutations.spoiled_bytes(rng, path.read_bytes()))


KINDS = {"configs": configs, "data": data, "models": models}
TABLES = [
    ("model.head", HEADS),
    ("loss", LOSSES),
    ("regularizer", REGULARIZERS),
    ("regularizer.schedule", SCHEDULES),
    ("data.source", sources.SOURCES),
    ("dev.source", sources.DEV_SOURCES),
    ("data.format", FORMATS),
    ("data.mixer", MIXERS),
    ("data.negatives", SAMPLERS),
]
REFUSED = (InputError, TrainingFailed)


class Late(BaseException):
    """An input took too long."""


def _late(*_):
    raise Late(f"more than {SECONDS} s")


def fuzz(kind: str, count: int, first: int, folder: pathlib.Path) -> dict[str, int]:
    """Tries inputs; prints the faults; gives counts."""
    counts = collections.Counter(inputs=count, refused=0, taken=0, faults=0)
    signal.signal(signal.SIGALRM, _late)
    for number in range(first, first + count):
        own = folder / str(number)
        own.mkdir(parents=True)
        rng = np.random.default_rng([list(KINDS).index(kind), number])
        # For what no signal interrupts.
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        signal.alarm(SECONDS)
        try:
            KINDS[kind](rng, own, counts["taken"])
            counts["taken"] += 1
        except REFUSED:
            counts["refused"] += 1
        except BaseException as error:  # a library's panic is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            counts["faults"] += 1
            print(f"{kind} {number}: {''.join(traceback.format_exception(error)[-6:])}")
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        # A config is the user's own, and may name code.
        if sys.modules.pop(mutations.MODULE, None) and kind != "configs":
            counts["faults"] += 1
            print(f"{kind} {number}: imported {mutations.MODULE}")
        shutil.rmtree(own, ignore_errors=True)
    return dict(counts)


def main() -> None:
    kind, count, *first = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        # Paths that are not absolute lead nowhere.
        os.chdir(folder)
        # What is compiled for one run serves the others.
        jax.config.update("jax_compilation_cache_dir", f"{folder}/compiled")
        counts = fuzz(
            kind, int(count), int(first[0]) if first else 0, pathlib.Path(folder)
        )
    print(json.dumps({kind: counts}))
    sys.exit(bool(counts["faults"]))


if __name__ == "__main__":
    main()
