"""Mines hard negatives for training queries from a whole corpus.

    lsrjax mine --data.source.files=train.jsonl --data.corpus=docs.jsonl --with bm25
        --out mined.jsonl
    lsrjax mine --data.source.files=beir/scifact --data.format=beir
        --with runs/demo/distill --relative_margin .05
        --filter cross-encoder/ms-marco-MiniLM-L6-v2 --out mined.jsonl

The rows are in any format that training reads. Each keeps its query and positives and
gets negatives from its best hits: no positive of the query in any row, nor a text equal
to one. What is written is a training file of the format `milco`, or, with `--write
ids`, of ids that --data.corpus resolves when read; ranks and scores stand beside. What
it was made of (digests of model, corpus and options) is in _NAME.json beside it. The
same command resumes one that was stopped, and gives the same file. See
docs/training_data.md.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax import options, paths
from lsrjax.cli import exits, rows
from lsrjax.data.written_rows import RowsFile
from lsrjax.distributed import preemption, processes, safe_output
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.retrieval import mine_corpus
from lsrjax.retrieval.bm25 import BM25
from lsrjax.retrieval.cross_encoder import PairScorer
from lsrjax.retrieval.mine_corpus import Asked, Mined, Rules
from lsrjax.retrieval.rank import Searcher

# Rows between two states that survive a stop; with it, batches of the filter.
_BLOCK = 1024
_LISTS = {  # the columns of each way to write
    "texts": ("pos", "neg"),
    "ids": ("positive_document_ids", "negative_document_ids"),
}


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    args, config = _parser().parsed(argv)
    processes.check_devices()
    mine(args, config)


def mine(args: argparse.Namespace, config) -> None:
    """Mines as the flags say.

    Raises:
      InputError: rows, a model or an option that cannot be used.
    """
    out = pathlib.Path(paths.local(args.out, "--out"))
    rules = rules_of(vars(args))
    lengths = rows.lengths_of(args)
    source = rows.open_rows(config, mined=True)
    model: Searcher | None = None
    facts: Mapping[str, Any] = {"name": "bm25"}
    if args.miner != "bm25":
        opened, facts = rows.open_scorer(args.miner, args.workdir, lengths)
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
        **rows.state_of(config, source),
    }
    file = RowsFile(out, made_of)
    try:
        asked = Asked.of(source)
        print(f"{len(asked.queries):,} queries, {len(asked.texts):,} documents")
        searched = model or BM25(asked.texts)
        hits, scores = _found(asked, searched, rules, file.folder / "hits.npz")
        for first in range(file.blocks * _BLOCK, len(asked.queries), _BLOCK):
            block = slice(first, min(first + _BLOCK, len(asked.queries)))
            mined = list(
                mine_corpus.choose(
                    asked,
                    block,
                    hits[block],
                    scores[block],
                    rules,
                    args.seed,
                    searched,
                    scorer,
                )
            )
            made = [
                _row(asked, first + i, one, args.write) for i, one in enumerate(mined)
            ]
            file.add(made, _counts(mined, rules))
            print(f"{block.stop:,} rows written", flush=True)
        file.finish()
    finally:
        file.close()
    short, none = (file.counts.get(name, 0) for name in ("short", "without"))
    print(
        f"{len(asked.queries):,} rows in {out}: {short:,} with fewer than"
        f" {rules.count} negatives, {none:,} of them with none"
    )


def _found(
    asked: Asked, model: Searcher | BM25, rules: Rules, kept: pathlib.Path
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
                f" {asked.texts[place][:60]!r}, which --data.corpus lacks, so that it"
                " has no id. Add it to the corpus, or write texts."
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
    parser = rows.Parser("mine", __doc__)
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
