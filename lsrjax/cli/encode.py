"""Encodes texts with a trained retriever, on all devices of all processes.

    lsrjax encode --model runs/demo/contrast --texts docs.jsonl --out docs.npz
    lsrjax encode --model runs/demo --texts 'docs/*.parquet' --out docs --prune top:128

The model is a run's or a stage's folder, or anything that `lsrjax convert` reads or
writes except ONNX. Texts are what data.corpus names (a file, folder or pattern, a list
such as "['a.tsv', 'b.jsonl']", or "{'dataset': 'me/docs'}"), with an id and a text
each, or a .txt file with a text a line. Vectors go to a file, or to a folder of parts:
then several processes share the work, and parts that are there are kept. --format says
for which program; see docs/formats.md. Memory does not grow with the texts, except by
24 bytes for each. The same command resumes a program that was stopped.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from lsrjax.cli import encode_job, encode_ray, exits, flags, own_entries
from lsrjax.cli.encode_job import PART_ROWS, Request
from lsrjax.cli.parsing import Parser
from lsrjax.distributed import preemption, processes, safe_output
from lsrjax.distributed.activity import Progress
from lsrjax.retrieval.vector_formats.table import FORMATS


@exits.on_input_error()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    args = _parser().parse_args(argv)
    asked = {field.name for field in dataclasses.fields(Request)}
    request = Request(**{k: v for k, v in vars(args).items() if k in asked})
    own = own_entries.of(args)
    own.load()
    if args.ray:
        encode_ray.encode(request, args.ray, own)
        return
    process = processes.apart(
        args.coordinator, args.num_processes, args.process_id, tpu_pod=args.tpu_pod
    )
    processes.check_devices()
    encode_job.encode(request, process)


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:16}{one.reads}" for name, one in FORMATS.items())
    parser = Parser(
        prog="lsrjax encode",
        description=f"{__doc__}\nFormats, and what reads them:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="a run's or stage's folder, a folder, a hub id")
    add("--texts", required=True, help="as config.data.corpus, or a .txt file")
    add("--out", required=True, help="a file such as docs.npz, or a folder of parts")
    add("--format", default="", choices=["", *FORMATS], help="by default of --out")
    add("--role", choices=("document", "query"), default="document")
    add(
        "--max_length",
        type=int,
        default=0,
        help="tokens a text is cut to; by default as the model was trained",
    )
    add(
        "--language",
        default="",
        help="of the texts, such as de, for an encoder with adapters for it (X-MOD);"
        " stated: each text's own, of --texts by language: {'de': …, 'sw': …}",
    )
    add(
        "--embedding_size",
        type=int,
        default=0,
        metavar="N",
        help="the first N numbers of an embedding (Matryoshka); by default all",
    )
    own_entries.add(parser)
    add("--batch_size", type=int, default=64, help="texts of a device at once (64)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add(
        "--prune",
        default="",
        metavar="BUDGET",
        help="keep top:128 terms of a text, mass:0.9 of its weight, or terms from"
        " ratio:0.1 of its largest weight on",
    )
    add(
        "--quantize",
        type=float,
        metavar="FACTOR",
        help="multiply weights of terms and round them to whole numbers (anserini:"
        f" {FORMATS['anserini'].quantize:g}, others: no)",
    )
    add(
        "--part_rows",
        type=int,
        default=PART_ROWS,
        help=f"texts of a part of a folder ({PART_ROWS:,})",
    )
    add(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="let the workers of this Ray cluster encode the parts, each on a device of"
        " its own (local: this machine); they need to see --texts and --out",
    )
    flags.add_processes(parser)
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command does the rest.
    preemption.Guard(Progress()).start()
    main()
