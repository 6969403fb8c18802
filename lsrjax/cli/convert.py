"""Converts trained retrievers to other programs' formats, and theirs to ours.

    lsrjax convert --from runs/demo/contrast --to milco-hf --out milco-demo

Reads a run's or stage's folder, a Hugging Face folder or a hub id, and writes a folder
for the program named with --to. The folder appears once it is complete.
"""

import argparse
import json
import pathlib
import shlex
from collections.abc import Sequence

from lsrjax import paths
from lsrjax.cli import exits, own_entries
from lsrjax.cli.parsing import Parser
from lsrjax.convert.read import hub
from lsrjax.convert.read.huggingface import Allowed
from lsrjax.convert.targets import TARGETS, export
from lsrjax.distributed import preemption, safe_output
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.retrieval.pruning import Pruning


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    args = _parser().parse_args(argv)
    own_entries.of(args).load()
    if args.public and not args.push:
        raise InputError("--public says how --push makes a repository; add --push.")
    allowed = Allowed(
        args.allow_pickle,
        args.allow_missing,
        args.allow_left_over,
        adapter=args.adapter,
    )
    prune = Pruning.parse(args.prune) if args.prune else None
    size = args.embedding_size
    out = pathlib.Path(paths.local(args.out, "--out"))
    export(args.reference, args.target, out, allowed, prune, size)
    print(f"{out}: {args.target}, for {TARGETS[args.target].reads}", flush=True)
    print("What to do next:")
    for line in next_steps(args.target, out):
        print(f"  {line}".rstrip(), flush=True)
    if args.push:
        address = hub.push(out, args.push, private=not args.public)
        print(f"Uploaded to {address}", flush=True)


def next_steps(target: str, out: pathlib.Path) -> list[str]:
    """Lines of code, or a command, that use the folder that was written."""
    load = TARGETS[target].load
    if load is None:
        model = shlex.quote(str(out))
        return [
            f"lsrjax encode --model {model} --texts documents.jsonl --out documents.npz"
        ]
    _, code = load
    return code.replace('"path/to/this/folder"', json.dumps(str(out))).splitlines()


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:22}{one.reads}" for name, one in TARGETS.items())
    parser = Parser(
        prog="lsrjax convert",
        description=f"{__doc__}\nFormats, and what reads them:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--from",
        dest="reference",
        required=True,
        metavar="MODEL",
        help="a run's or stage's folder, a Hugging Face folder or hub id",
    )
    add("--to", dest="target", required=True, choices=TARGETS, help="the format")
    own_entries.add(parser)
    add("--out", required=True, help="a folder that does not exist")
    add(
        "--prune",
        default="",
        metavar="BUDGET",
        help="keep top:128 terms of a vector, in the model (max_active_dims) and its"
        " card; mass:0.9 and ratio:0.1 are named in the card",
    )
    add(
        "--embedding_size",
        type=int,
        default=0,
        metavar="N",
        help="a model of the first N numbers of an embedding (Matryoshka)",
    )
    add(
        "--push",
        default="",
        metavar="REPO",
        help="upload the folder to this repository of the Hugging Face hub, which is"
        " made, private, if there is none",
    )
    add(
        "--public",
        action="store_true",
        help="a repository that is made is seen by everybody",
    )
    more = parser.add_argument_group("of a Hugging Face model, refused otherwise")
    add = more.add_argument
    add(
        "--allow_pickle",
        action="store_true",
        help="read pytorch_model.bin where there are no safetensors: tensors and"
        " nothing else, with torch",
    )
    add(
        "--allow_missing",
        default="",
        metavar="REGEX",
        help="whole names of tensors that start fresh where they are missing",
    )
    add(
        "--allow_left_over",
        default="",
        metavar="REGEX",
        help="whole names of tensors that are left out",
    )
    add(
        "--adapter",
        default="",
        metavar="TASK",
        help="the task whose adapter is merged into the weights, where a model (Jina"
        " v3) holds several; none: the weights without",
    )
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command starts it again.
    preemption.Guard(Progress()).start()
    main()
