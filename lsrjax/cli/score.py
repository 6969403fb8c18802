"""Scores the documents of training rows with a teacher, or joins scores of others.

    lsrjax score --data.source.files=mined.jsonl --teacher BAAI/bge-reranker-base
        --out scored.jsonl
    lsrjax score --data.source.files=mined.jsonl --teacher runs/demo/teacher --shard 2/4
        --out scored.2.jsonl
    lsrjax score --data.source.files=beir/msmarco --data.format=beir
        --scores t53b-monot5-msmarco-engeng.jsonl.gz --missing drop --out scored.jsonl

A teacher is any retriever or cross-encoder. The rows are in any format that training
reads; what is written has all their documents, with pos_scores and neg_scores: the
format `milco`, or, with `--write ids`, ColBERT's lines [qid, [pid, score], …], which
--data.format.queries and --data.corpus resolve when read (in any language). A shard is
a contiguous part of the rows: those of --shard 1/4 to 4/4, one after the other, are the
file without shards, byte for byte. The same command resumes one that was stopped. See
docs/training_data.md.
"""

import argparse
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from lsrjax import paths
from lsrjax.cli import exits, rows
from lsrjax.data.batching.drawing import wording
from lsrjax.data.examples import ANY
from lsrjax.data.reading import unchanged_files
from lsrjax.data.reading.files import found_files
from lsrjax.data.reading.score_files import KNOWN, Scores
from lsrjax.data.written_rows import RowsFile
from lsrjax.distributed import preemption, processes, safe_output
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.retrieval import teacher_scores

# Rows that are scored together, and between two states that survive a stop. Shards end
# where blocks do, so that a row is scored in the same company.
_BLOCK = 256


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    args, config = _parser().parsed(argv)
    processes.check_devices()
    score(args, config)


def score(args: argparse.Namespace, config) -> None:
    """Scores as the flags say.

    Raises:
      InputError: rows, a model or an option that cannot be used.
    """
    out = pathlib.Path(paths.local(args.out, "--out"))
    if bool(args.teacher) == bool(args.scores):
        raise InputError("Name one of --teacher MODEL and --scores FILES.")
    number, count = shard_of(args.shard)
    lengths = rows.lengths_of(args)
    if lengths.question.prompt and not args.teacher:
        raise InputError("--prompt is of the model of --teacher. Name one.")
    source = rows.open_rows(config)
    if (args.scores or args.write == "ids") and not _has_ids(source):
        raise InputError(
            f"{source.description}: the rows have no ids of queries, which --scores and"
            " --write ids need. They are in ColBERT's lines ([qid, pid, …]) and in BEIR"
            " folders."
        )
    teacher: Any = None
    facts: dict[str, Any] = {}
    if args.teacher:
        teacher, facts = rows.open_scorer(args.teacher, args.workdir, lengths)
    else:
        files = found_files(args.scores, "--scores")
        facts = {"files": {name: unchanged_files.digest(name) for name in files}}
    blocks = -(-len(source) // _BLOCK)
    first, stop = blocks * (number - 1) // count, blocks * number // count
    made_of = {
        "teacher": facts,
        "write": args.write,
        "missing": args.missing,
        "blocks": [first, stop, _BLOCK],
        **rows.state_of(config, source),
    }
    file = RowsFile(out, made_of)
    try:
        known = None if teacher else Scores(args.scores, "--scores")
        if file.blocks:
            print(f"{file.blocks * _BLOCK:,} rows are scored already.", flush=True)
        for block in range(first + file.blocks, stop):
            numbers = range(block * _BLOCK, min((block + 1) * _BLOCK, len(source)))
            some = (
                _asked(teacher, source, numbers)
                if teacher
                else _joined(known, source, numbers, args.missing)
            )
            lines = [line for row in some for line in _lines(row, args.write)]
            dropped = sum(row.pop("dropped", 0) for row in some)
            file.add(
                lines,
                {
                    "rows": len(some),
                    "lost": len(numbers) - len(some),
                    "dropped": dropped,
                },
            )
            print(f"{numbers.stop:,} of {len(source):,} rows scored", flush=True)
        file.finish()
    finally:
        file.close()
    lost, dropped = (file.counts.get(name, 0) for name in ("lost", "dropped"))
    shown = (
        f"; {lost:,} rows and {dropped:,} negatives had no score"
        if lost or dropped
        else ""
    )
    print(f"{file.counts.get('rows', 0):,} rows in {out}{shown}")


def _has_ids(source) -> bool:
    return hasattr(source, "ids") and len(source) > 0 and source.ids(0) is not None


def _row(source, index: int) -> dict[str, Any]:
    """A row's texts, in English where there are several languages, and its ids."""
    group = source[index]
    row = {
        "query": wording(group.query),
        "pos": [wording(text) for text in group.positives],
        "neg": [wording(text) for text in group.negatives],
    }
    texts = (group.query, *group.positives, *group.negatives)
    languages = {language for text in texts for language in text}
    if len(languages) == 1 and languages != {ANY}:
        row |= {"language": languages.pop()}
    if hasattr(source, "ids") and (ids := source.ids(index)):
        row |= dict(zip(("qid", "pos_ids", "neg_ids"), ids, strict=True))
    return row


def _asked(teacher, source, numbers: range) -> list[dict[str, Any]]:
    """Rows with the scores of a teacher."""
    found = [_row(source, index) for index in numbers]
    places: dict[str, int] = {}
    asked = [
        [places.setdefault(text, len(places)) for text in (*row["pos"], *row["neg"])]
        for row in found
    ]
    queries = [row["query"] for row in found]
    scores = teacher_scores.ragged(teacher, queries, list(places), asked)
    for row, own in zip(found, scores, strict=True):
        count = len(row["pos"])
        row["pos_scores"], row["neg_scores"] = own[:count], own[count:]
    return found


def _joined(
    known: Scores | None, source, numbers: range, missing: str
) -> list[dict[str, Any]]:
    """Rows with scores by id; those without are an error, or left out."""
    assert known is not None
    found = []
    for index in numbers:
        row = _row(source, index)
        positives = known.of(row["qid"], row["pos_ids"])
        negatives = known.of(row["qid"], row["neg_ids"])
        if missing == "error" and None in (*positives, *negatives):
            ids = [*row["pos_ids"], *row["neg_ids"]]
            lacking = ids[[*positives, *negatives].index(None)]
            raise InputError(
                f"Row {index} (the first is 0) of {source.description}: --scores has no"
                f" score of the document {lacking!r} of the query {row['qid']!r}."
                " --missing drop leaves such documents out."
            )
        row["dropped"] = negatives.count(None)
        for part, scores in (("pos", positives), ("neg", negatives)):
            kept = [i for i, score in enumerate(scores) if score is not None]
            for name in (part, f"{part}_ids"):
                row[name] = [row[name][i] for i in kept]
            row[f"{part}_scores"] = [scores[i] for i in kept]
        if row["pos"]:
            found.append(row)
    return found


def _lines(row: dict[str, Any], write: str) -> list[Any]:
    if write == "texts":
        return [{name: value for name, value in row.items() if name != "dropped"}]
    negatives = list(map(list, zip(row["neg_ids"], row["neg_scores"], strict=True)))
    # A line has one positive.
    return [
        [row["qid"], [key, value], *negatives]
        for key, value in zip(row["pos_ids"], row["pos_scores"], strict=True)
    ]


def shard_of(text: str) -> tuple[int, int]:
    """The number and count of `2/4`, from 1; InputError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"--shard is {text!r}; write 1/4 for the first of four.")
    return number, count


def _parser() -> rows.Parser:
    parser = rows.Parser("score", f"{__doc__}\n{KNOWN}")
    add = parser.add_argument
    add("--teacher", help="a retriever or cross-encoder: folder, hub id or stage:NAME")
    add("--scores", metavar="FILES", help="scores by id instead (.jsonl.gz, …)")
    add("--out", required=True, help="the training file, .jsonl")
    add("--shard", default="1/1", metavar="I/N", help="score part I of N of the rows")
    add(
        "--missing",
        choices=("error", "drop"),
        default="error",
        help="--scores: what to do about a document without a score",
    )
    add("--write", choices=("texts", "ids"), default="texts", help="of documents")
    rows.add_model_flags(parser)
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command does the rest.
    preemption.Guard(Progress()).start()
    main()
