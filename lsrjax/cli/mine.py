"""Mines hard negatives for training queries from a whole corpus.

    lsrjax mine --data.source.files=train.jsonl --data.corpus=docs.jsonl --with bm25
        --out mined.jsonl
    lsrjax mine --data.source.files=beir/scifact --data.format=beir
        --with runs/demo/contrast --relative_margin .05
        --filter cross-encoder/ms-marco-MiniLM-L6-v2 --out mined.jsonl
    lsrjax mine --task miracl --task.languages=sw --task.split=train --with bm25
        --out mined.jsonl

The rows are in any format that training reads; --task takes the queries of a benchmark,
and its corpus. Each row keeps its query and positives and gets negatives from its best
hits: no positive of the query in any row, nor a text equal to one. What is written is a
training file of the format `milco`, or, with `--write ids`, of ids that --data.corpus
resolves when read; ranks and scores stand beside. What it was made of (digests of
model, corpus and options) is in _NAME.json beside it. The same command resumes one that
was stopped, and gives the same file. See docs/training_data.md.
"""

import argparse
import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax import options, paths
from lsrjax.cli import exits, rows, task_flags
from lsrjax.data.written_rows import RowsFile
from lsrjax.distributed import preemption, processes, safe_output
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.models.cross_encoder import Question
from lsrjax.options import Chosen
from lsrjax.retrieval import mine_corpus
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.kept import Kept, KeptFile, texts_of
from lsrjax.retrieval.mine_corpus import Asked, Mined, Rules
from lsrjax.retrieval.rank import Searcher
from lsrjax.retrieval.tasks.table import loaded

# Rows between two states that survive a stop; with it, batches of the filter.
_BLOCK = 1024
_LISTS = {  # the columns of each way to write
    "texts": ("pos", "neg"),
    "ids": ("positive_document_ids", "negative_document_ids"),
}


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    tasks, rest = task_flags.take(sys.argv[1:] if argv is None else argv)
    args, config = _parser().parsed(rest)
    processes.check_devices()
    mine(args, config, tasks)


def mine(args: argparse.Namespace, config, tasks: Sequence[Chosen] = ()) -> None:
    """Mines as the flags say, for training rows or for the queries of tasks.

    Raises:
      InputError: rows, a task, a model or an option that cannot be used.
    """
    out = pathlib.Path(paths.local(args.out, "--out"))
    rules = rules_of(vars(args))
    lengths = rows.lengths_of(args)
    read, facts_of_rows = _of_tasks(config, tasks) if tasks else _of_rows(config)
    model: Searcher | None = None
    facts: Mapping[str, Any] = {"name": "bm25"}
    if lengths.question.prompt and not args.filter:
        raise InputError(
            "--prompt is of the model of --filter. Name one, or remove it."
        )
    if args.miner != "bm25":
        unasked = dataclasses.replace(lengths, question=Question())
        opened, facts = rows.open_scorer(args.miner, args.workdir, unasked)
        if isinstance(opened, PairScorer):
            raise InputError(
                f"--with {args.miner} is a cross-encoder, which cannot search a corpus."
                " Give it to --filter, and a retriever or bm25 to --with."
            )
        model = opened
    scorer, filtered = None, None
    if args.filter:
        scorer, filtered = rows.open_scorer(args.filter, args.workdir, lengths)
    made_of = {
        "with": facts,
        "filter": filtered,
        "rules": {k: str(v) for k, v in dataclasses.asdict(rules).items()},
        "seed": args.seed,
        "write": args.write,
        **facts_of_rows,
    }
    file = RowsFile(out, made_of)
    try:
        done = queries = 0
        for place, asked in enumerate(read()):
            print(f"{len(asked.queries):,} queries, {len(asked.texts):,} documents")
            hits = Kept(file.folder, {}, print).file(f"hits.{place}")
            make = _Made(args, rules, model, scorer, hits)
            _mine_all(asked, make, file, done)
            done += math.ceil(len(asked.queries) / _BLOCK)
            queries += len(asked.queries)
        file.finish()
    finally:
        file.close()
    short, none = (file.counts.get(name, 0) for name in ("short", "without"))
    print(
        f"{queries:,} rows in {out}: {short:,} with fewer than"
        f" {rules.count} negatives, {none:,} of them with none"
    )


def _of_rows(config) -> tuple[Callable[[], Iterator[Asked]], dict[str, Any]]:
    """Training rows with their documents, and what they depend on."""
    source = rows.open_rows(config, mined=True)
    return lambda: iter([Asked.of(source)]), rows.state_of(config, source)


def _of_tasks(
    config, tasks: Sequence[Chosen]
) -> tuple[Callable[[], Iterator[Asked]], dict[str, Any]]:
    """The queries of each corpus of some tasks, and what they depend on.

    All are read at first: what is missing is said before anything is encoded.
    """
    if rows.are_named(config):
        raise InputError("Give either --task or the training rows of --data.source.")
    facts = []
    for task in tasks:
        digests = {one.name: texts_of(one) for one in loaded(task)}
        facts.append({**options.plain(task), "texts": digests})

    def read() -> Iterator[Asked]:
        for task in tasks:
            yield from map(Asked.of_task, loaded(task))

    return read, {"tasks": facts}


@dataclasses.dataclass(frozen=True)
class _Made:
    """How negatives are made; `hits` is the file of a model's hits so far."""

    args: argparse.Namespace
    rules: Rules
    model: Searcher | None
    scorer: PairScorer | Searcher | None
    hits: KeptFile


def _mine_all(asked: Asked, how: _Made, file: RowsFile, done: int) -> None:
    """Writes the rows of one corpus; `done` blocks are those of others before it."""
    start = (file.blocks - done) * _BLOCK
    if start >= len(asked.queries):
        return
    rules, args = how.rules, how.args
    searched = how.model or BM25(asked.texts)
    hits, scores = _found(asked, searched, rules, how.hits)
    for first in range(start, len(asked.queries), _BLOCK):
        block = slice(first, min(first + _BLOCK, len(asked.queries)))
        found = hits[block], scores[block]
        mined = list(
            mine_corpus.choose(
                asked, block, *found, rules, args.seed, searched, how.scorer
            )
        )
        made = [_row(asked, first + i, one, args.write) for i, one in enumerate(mined)]
        file.add(made, _counts(mined, rules))
        print(f"{block.stop:,} rows written", flush=True)


def _found(
    asked: Asked, model: Searcher | BM25, rules: Rules, kept: KeptFile
) -> tuple[np.ndarray, np.ndarray]:
    depth = asked.depth(rules)
    if isinstance(model, BM25):
        return model.search(asked.queries, depth)
    return mine_corpus.find(
        asked, model, depth, kept, lambda text: print(text, flush=True)
    )


def _row(asked: Asked, number: int, mined: Mined, write: str) -> dict[str, Any]:
    positives = asked.positives[number]
    shown: Callable[[int], Any] = asked.texts.__getitem__
    ids = [[asked.ids(p) for p in places] for places in (positives, mined.places)]
    row: dict[str, Any] = {"query": asked.queries[number]}
    if write == "ids":
        _check_ids(asked, [*positives, *mined.places], number)
        row |= dict(zip(_LISTS["ids"], ids, strict=True))
    else:
        texts = [[shown(p) for p in places] for places in (positives, mined.places)]
        row |= dict(zip(_LISTS["texts"], texts, strict=True))
        row |= {"pos_ids": ids[0], "neg_ids": ids[1]}
    row |= {
        "neg_ranks": mined.ranks,
        "mined_pos_scores": mined.positive_scores,
        "mined_neg_scores": mined.scores,
    }
    if mined.filtered:
        row["filter_pos_scores"], row["filter_neg_scores"] = mined.filtered
    return row


def _check_ids(asked: Asked, places: Sequence[int], number: int) -> None:
    for place in places:
        if asked.ids(place) is None:
            raise InputError(
                f"--write ids: row {number} (the first is 0) has the document"
                f" {asked.texts[place][:60]!r}, which --data.corpus or the task"
                " lacks, so that it has no id. Add it to the corpus, or write texts."
            )


def _counts(mined: Sequence[Mined], rules: Rules) -> Mapping[str, int]:
    return {
        "rows": len(mined),
        "negatives": sum(len(one.places) for one in mined),
        "short": sum(len(one.places) < rules.count for one in mined),
        "without": sum(not one.places for one in mined),
    }


def rules_of(values: Mapping[str, Any]) -> Rules:
    """The rules that flags give; InputError for a value out of range."""
    names = [field.name for field in dataclasses.fields(Rules)]
    given = {name: values[name] for name in names if values.get(name) is not None}
    try:
        rules = options.checked(Rules, given, "--rules")
    except InputError as error:
        raise InputError(str(error).replace("--rules.", "--")) from error
    rules.check()
    return rules


def _parser() -> rows.Parser:
    about = f"{__doc__}\n{task_flags.HELP}\n\n{task_flags.described()}"
    parser = rows.Parser("mine", about)
    add = parser.add_argument
    add(
        "--with",
        dest="miner",
        required=True,
        metavar="MODEL",
        help="bm25, a retriever's folder or hub id, or stage:NAME",
    )
    add("--out", required=True, help="the training file, .jsonl")
    add("--filter", metavar="MODEL", help="a cross-encoder (or retriever) that agrees")
    add("--write", choices=tuple(_LISTS), default="texts", help="of documents (texts)")
    add("--seed", type=int, default=0, help="of random sampling")
    for field in dataclasses.fields(Rules):
        # Annotations of the dataclass itself, which has no postponed ones.
        kind = field.type if isinstance(field.type, type) else str
        doc = f"{field.metadata['doc']} ({options.default_of(field)})"
        add(f"--{field.name}", type=kind, help=doc.replace("%", "%%"))
    rows.add_model_flags(parser)
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command does the rest.
    preemption.Guard(Progress()).start()
    main()
