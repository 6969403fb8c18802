"""`data`: the speed of the loader alone, on the embedded data."""

import argparse
import collections
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lsrjax.bench import measure
from lsrjax.bench.sizes import add_flags, positive, resolve, size
from lsrjax.data import sources
from lsrjax.data.batching import loader
from lsrjax.data.batching.drawing import Build, GroupBatches, PairBatches, rows_of
from lsrjax.data.batching.orders import Order
from lsrjax.data.debian_texts import embedded
from lsrjax.data.examples import ANY
from lsrjax.data.tokenization import TextField, TextTokenizer, pad
from lsrjax.errors import InputError
from lsrjax.retrieval.teacher_scores import corpus_of

KINDS = ("pairs", "groups")

_DESCRIPTION = """\
Makes batches of the embedded Debian descriptions and does nothing with them: pairs as
alignment reads them, and groups of a query with random negatives in mixed languages.
Beside lsrjax's loader, which cuts a batch's texts into parts by length and keeps to a
few shapes, there is one that pads all texts to the longest of the batch; both read the
same examples, in the same threads, and take turns.
"""


@dataclasses.dataclass(frozen=True)
class DataSizes:
    """Sizes of the batches."""

    batch: int = size(64, "pairs of a batch; of groups, half as many")
    group: int = size(8, "documents of a query")
    length: int = size(64, "most tokens of a document, or of a pair's texts")
    query_length: int = size(24, "most tokens of a query")
    parts: int = size(12, "parts that a batch's texts are cut into by length")


def add_command(commands) -> None:
    """Adds `data` to the program's commands."""
    parser = commands.add_parser(
        "data",
        help="batches of the embedded data, against padding to the longest",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, DataSizes, {})
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=KINDS,
        help="of examples (default: both)",
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=positive,
        default=(1, 2, 4),
        help="that make batches; tokenizing uses more by itself (default: 1 2 4)",
    )
    parser.add_argument(
        "--batches", type=positive, default=40, help="made in a round (default: 40)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, help="timed rounds (default: 3)"
    )
    parser.set_defaults(run=run, preset=None)


@dataclasses.dataclass(frozen=True)
class Content:
    """Contents of some batches.

    Attributes:
      tokens: of the student's texts, without padding.
      slots: tokens including padding.
    """

    examples: int
    tokens: int
    slots: int
    shapes: int

    @property
    def padding(self) -> float:
        """Share of the slots that are padding."""
        return 1 - self.tokens / self.slots


class PadToLongest:
    """Stands in for `loader.Batches`: each model's texts as one padded array."""

    def __init__(self, source, order: Order, build):
        self._source = source
        self._order = order
        self._build = build

    def __getitem__(self, index: int) -> dict:
        """Batch `index`, like that of `loader.Batches` without `place`."""
        members = self._order[index]
        drawn = self._build.draw(
            [self._source[example] for _, example in members],
            [np.random.default_rng((self._order.seed, *m)) for m in members],
        )
        batch = {}
        for name, encoded in self._build.encoded.items():
            rows = sum(rows_of(drawn, encoded).values(), [])
            longest = max(map(len, rows))
            batch[name] = {"parts": (pad(rows, encoded.pad_id, longest, ()),)}
        return batch


def run(args: argparse.Namespace) -> None:
    """Measures and prints the table."""
    console = Console()
    (sizes,) = resolve(args, DataSizes(), {}, "data").values()
    console.print(
        f"{measure.machine()}; {args.batches} batches, median of {args.repeats}",
        highlight=False,
    )
    loaders: dict[tuple[str, str], Any] = {}
    for kind in dict.fromkeys(args.kinds):
        loaders |= _loaders(kind, sizes)
    contents = {
        name: content(batches, args.batches, _examples(name[0], sizes))
        for name, batches in loaders.items()
    }
    # Other batches each time, since the loader keeps recent examples; those dealt
    # together with them are skipped.
    starts = itertools.count(args.batches, args.batches + 64)

    def read(batches, threads: int) -> None:
        _read(batches, next(starts), args.batches, threads)

    runs = {
        (*name, threads): functools.partial(read, batches, threads)
        for name, batches in loaders.items()
        for threads in dict.fromkeys(args.threads)
    }
    console.print(_table(measure.interleaved_medians(runs, args.repeats), contents))
    console.print(
        "tokens: of the student's texts, without padding; shapes: different ones among"
        " the batches, for each of which a step is compiled.",
        highlight=False,
    )


def _examples(kind: str, sizes: DataSizes) -> int:
    return sizes.batch if kind == "pairs" else max(sizes.batch // 2, 1)


def _loaders(kind: str, sizes: DataSizes) -> dict[tuple[str, str], Any]:
    multilingual = TextTokenizer(embedded.MULTILINGUAL_TOKENIZER)
    documents = TextField(multilingual, sizes.length)
    if kind == "pairs":
        source = embedded.examples("pair", "train")
        english = TextTokenizer(embedded.ENGLISH_TOKENIZER)
        build: Build = PairBatches(documents, TextField(english, sizes.length))
    else:
        source = _with_random_negatives(
            embedded.examples("group", "train"), sizes.group
        )
        build = GroupBatches(
            query=TextField(multilingual, sizes.query_length),
            document=documents,
            group_size=sizes.group,
            mixing="passages",
            query_languages={ANY: 1.0},
            document_languages={ANY: 1.0},
            with_scores=False,
        )
    count = _examples(kind, sizes)
    if count > len(source):
        raise InputError(
            f"--batch {sizes.batch}: {kind} come in batches of {count}, but there are"
            f" {len(source):,} of them."
        )
    order = Order(len(source), count, seed=0)
    return {
        (kind, "lsrjax"): loader.Batches(source, order, build, parts=sizes.parts),
        (kind, "longest"): PadToLongest(source, order, build),
    }


def _with_random_negatives(source, group: int) -> sources.WithNegatives:
    """Random negatives: the speed does not depend on the documents."""
    corpus, _ = corpus_of(source)
    if group > len(corpus):
        raise InputError(
            f"--group {group}, but the embedded data has {len(corpus):,} documents."
        )
    rng = np.random.default_rng(0)
    negatives = rng.integers(len(corpus), size=(len(source), group - 1))
    return sources.WithNegatives(source, corpus, negatives, None)


def content(batches, count: int, examples: int) -> Content:
    """Counts the contents of the first `count` batches of `examples` examples each."""
    tokens = slots = 0
    shapes: collections.Counter[tuple] = collections.Counter()
    for index in range(count):
        batch = batches[index]
        parts = batch["student"]["parts"]
        tokens += sum(int(part["mask"].sum()) for part in parts)
        slots += sum(part["ids"].size for part in parts)
        shapes[
            tuple(
                part["ids"].shape
                for name, texts in batch.items()
                if name != "targets"
                for part in texts["parts"]
            )
        ] += 1
    return Content(count * examples, tokens, slots, len(shapes))


def _read(batches, start: int, count: int, threads: int) -> None:
    stop = start + count
    for _ in loader.stream(batches, start, stop, threads=threads, prefetch=16):
        pass


def _table(medians: Mapping[tuple, float], contents: Mapping[tuple, Content]) -> Table:
    table = Table(title="batches of the embedded data")
    for column in ("kind", "padded to"):
        table.add_column(column)
    for column in ("threads", "examples/s", "tokens/s", "padding", "shapes"):
        table.add_column(column, justify="right")
    for (kind, name, threads), seconds in medians.items():
        found = contents[kind, name]
        table.add_row(
            kind,
            "its part" if name == "lsrjax" else "the longest",
            str(threads),
            f"{found.examples / seconds:,.0f}",
            f"{found.tokens / seconds:,.0f}",
            f"{found.padding:.1%}",
            str(found.shapes),
        )
    return table
