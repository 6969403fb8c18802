"""Encodes texts with a trained retriever, on all devices of all processes.

    lsrjax encode --model runs/demo/distill --texts docs.jsonl --out docs.npz
    lsrjax encode --model runs/demo --texts 'docs/*.parquet' --out docs --prune top:128

The model is a run's or a stage's folder, or anything that `lsrjax convert` reads or
writes except ONNX. Texts are what data.corpus names (files, folders, patterns, several
with commas between, datasets:NAME), with an id and a text each, or a .txt file with a
text a line. Vectors go to a file, or to a folder of parts: then several processes share
the work, and parts that are there are kept. --format says for which program; see
docs/formats.md. Memory does not grow with the texts, except by 24 bytes for each. The
same command resumes a program that was stopped.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lsrjax import paths
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.cli import exits, flags
from lsrjax.convert.open_model import open_portable
from lsrjax.data.reading.numbered_texts import NumberedTexts
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.distributed import preemption, processes, safe_output, sharding
from lsrjax.distributed.activity import Progress
from lsrjax.errors import InputError
from lsrjax.models.heads import own_head
from lsrjax.retrieval import encode_corpus, terms
from lsrjax.retrieval.encode_corpus import Encoding, Work, work_of
from lsrjax.retrieval.encode_texts import TextEncoder
from lsrjax.retrieval.part_files import PartFolder
from lsrjax.retrieval.pruning import Pruning
from lsrjax.retrieval.vector_formats.table import FORMATS, Format, format_of
from lsrjax.retrieval.vector_formats.vectors import SPARSE, About
from lsrjax.retrieval.vector_formats.writing import Target, VectorFiles

PART_ROWS = 32_768


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments."""
    args = _parser().parse_args(argv)
    try:
        number, count = processes.apart(
            args.coordinator, args.num_processes, args.process_id, tpu_pod=args.tpu_pod
        )
        processes.check_devices()
        if args.head:
            own_head(args.head, "--head")
        encode_file(
            args.model,
            args.texts,
            args.out,
            role=args.role,
            max_length=args.max_length,
            batch_size=args.batch_size,
            dtype=args.dtype,
            form=args.format,
            prune=args.prune,
            quantize=args.quantize,
            part_rows=args.part_rows,
            process=(number, count),
        )
    except InputError as error:
        exits.stop(str(error))


def encode_file(
    reference: str,
    texts: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    role: str = "document",
    max_length: int = 0,
    batch_size: int = 64,
    dtype: str = "float32",
    form: str = "",
    prune: str = "",
    quantize: float | None = None,
    part_rows: int = PART_ROWS,
    process: tuple[int, int] = (0, 1),
) -> None:
    """Encodes texts into a file of vectors, or this process's parts of a folder.

    Args:
      reference: of the model; a run's folder stands for its last stage.
      texts: a .txt file, or what `data.corpus` accepts.
      out: a file with the ending of its format, or a folder.
      role: "query" or "document".
      max_length: tokens kept of a text; 0: as in training, else 64 of a query and 256
        of a document, or the tokenizer's limit if lower.
      batch_size: texts that a device encodes at once.
      dtype: of matrix products, "float32" or "bfloat16".
      form: a name in `FORMATS`; empty: by the ending of `out`.
      prune: the budget of terms of a text, as of `Pruning.parse`; empty: all.
      quantize: weights of terms are multiplied by it and rounded; 0: floats; None: as
        the format needs it.
      part_rows: texts of a part of a folder.
      process: this process's number, and how many share the folder.

    Raises:
      InputError: a model, file or option that cannot be used.
    """
    out = pathlib.Path(paths.local(out, "--out"))
    name, chosen = format_of(form, out)
    for flag, value in (("batch_size", batch_size), ("part_rows", part_rows)):
        if value < 1:
            raise InputError(f"--{flag} is {value}; it has to be at least 1.")
    if out.suffix and process[1] > 1:
        raise InputError(
            f"--out {out} is one file, and there are {process[1]} processes. Name a"
            " folder (without an ending), to which each writes its parts."
        )
    model = open_portable(reference)
    length = _length(model, role, max_length)
    found = NumberedTexts(str(texts), "--texts")
    factor = chosen.quantize if quantize is None else quantize
    options = {
        "role": role,
        "max_length": length,
        "dtype": dtype,
        "prune": str(Pruning.parse(prune)) if prune else "",
        "quantize": factor,
        "format": name,
    }
    made_of = {"model": model.name, "weights": digest(model.params)} | options
    made_of |= {"texts": found.facts}
    with local_mesh():
        encoding = encoding_of(model, options, batch_size)
        abouts = abouts_of(model, encoding, made_of)
        check_kinds(name, chosen, abouts, options)
        job = _Job(encoding, found, abouts, chosen, made_of)
        job.write_file(out) if out.suffix else job.write_folder(out, part_rows, process)


def _length(model: SavedModel, role: str, max_length: int) -> int:
    limit = model.spec.encoder.max_length
    trained = model.query_length if role == "query" else model.document_length
    length = max_length or trained
    if not 2 < length <= limit:
        raise InputError(f"--max_length is {length}; the model takes 3 to {limit}.")
    return length


def local_mesh() -> contextlib.AbstractContextManager:
    """A context in which texts are divided over this process's devices."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return contextlib.nullcontext()
    return jax.set_mesh(sharding.make_mesh(-1, 1, devices))


def encoding_of(
    model: SavedModel, options: Mapping[str, Any], batch_size: int
) -> Encoding:
    """How the model makes vectors of texts, in the mesh that is set."""
    mesh = jax.sharding.get_mesh()
    placed = None if mesh.empty else sharding.replicated(mesh)
    return Encoding(
        TextEncoder(
            model.spec,
            TextTokenizer(model.tokenizer),
            batch_size=batch_size,
            dtype=options["dtype"],
            each_device=True,
        ),
        jax.device_put(model.params, placed),
        options["role"],
        options["max_length"],
        encode_corpus.WINDOW_BATCHES * batch_size,
        Pruning.parse(options["prune"]) if options["prune"] else None,
        options["quantize"],
    )


def abouts_of(
    model: SavedModel, encoding: Encoding, made_of: dict[str, Any]
) -> dict[str, About]:
    """What each file of a text's vectors holds."""
    spec = model.spec
    folder = model.pivot_tokenizer
    pivot = TextTokenizer(folder) if folder else None
    tokenizer = encoding.encoder.tokenizer
    found = {}
    for name, (kind, views) in encoding.files.items():
        sparse = kind == SPARSE
        names = terms.names_of(spec, tokenizer, pivot, views) if sparse else None
        columns = sum(spec.views[view] for view in views)
        found[name] = About(kind, columns, names, made_of)
    return found


def check_kinds(
    name: str, form: Format, abouts: Mapping[str, About], options: Mapping[str, Any]
) -> None:
    """Refuses formats and options that do not go with a model's vectors."""
    kinds = {about.kind for about in abouts.values()}
    if wrong := sorted(kinds - set(form.kinds)):
        able = [key for key, one in FORMATS.items() if kinds <= set(one.kinds)]
        raise InputError(
            f"--format {name} cannot hold this model's vectors ({', '.join(wrong)})."
            f" Possible are {', '.join(able)}."
        )
    for flag in ("prune", "quantize"):
        if options[flag] and SPARSE not in kinds:
            raise InputError(
                f"--{flag} is for weights of terms, and the model gives"
                f" {', '.join(sorted(kinds))} vectors. Leave it out."
            )
    if not 0 <= options["quantize"] <= 2**20 or (
        name == "anserini" and not options["quantize"]
    ):
        raise InputError(
            f"--quantize is {options['quantize']:g}; give a factor such as 100"
            + (", since Anserini reads whole numbers." * (name == "anserini") or ".")
        )


@dataclasses.dataclass(frozen=True)
class _Job:
    encoding: Encoding
    texts: NumberedTexts
    abouts: dict[str, About]
    form: Format
    made_of: dict[str, Any]

    @property
    def _whole(self) -> bool:
        return bool(self.encoding.quantize)

    @property
    def _step(self) -> int:
        """Texts that are encoded in one go: a window for each device."""
        return self.encoding.window * sharding.axis_size(sharding.DATA)

    def write_file(self, out: pathlib.Path) -> None:
        """Writes all vectors to one file."""
        if "" not in self.abouts:
            raise InputError(
                f"The model gives {', '.join(self.abouts)}, which no single file holds."
                f" Name a folder, such as --out {out.with_suffix('')}."
            )
        target = Target.of(out, self.form, self.abouts[""], self._whole)
        partial = out.with_name(f"{out.name}.partial")
        files = VectorFiles(partial, {"": target}, self.made_of)
        if files.rows:
            print(f"{files.rows:,} texts are encoded already.", flush=True)
        with contextlib.closing(files):
            end = len(self.texts)
            work = work_of(files, 0, end, self._step, lambda: None)
            encode_corpus.encode_parts(self.encoding, self.texts, work)
        print(f"{files.rows:,} vectors in {out}", flush=True)

    def write_folder(
        self, out: pathlib.Path, rows: int, process: tuple[int, int]
    ) -> None:
        """Writes this process's parts, and the manifest if they were the last ones."""
        made_of = self.made_of | {"part_rows": rows}
        abouts = {
            view: dataclasses.replace(about, made_of=made_of)
            for view, about in self.abouts.items()
        }
        total = len(self.texts)
        folder = PartFolder(out, self.form, abouts, total, rows, made_of, self._whole)
        number, count = process
        own = range(number, folder.count, count)
        missing = folder.check(own)
        if len(missing) < len(own):
            there = len(own) - len(missing)
            print(f"{there:,} of {len(own):,} parts are there already.", flush=True)
        with contextlib.ExitStack() as stack:
            work = self._work(folder, missing, stack)
            encode_corpus.encode_parts(self.encoding, self.texts, work)
        if folder.complete():
            print(f"{total:,} vectors in {out}", flush=True)
        else:
            print(
                f"{len(own):,} parts in {out}; those of other processes are not there"
                " yet.",
                flush=True,
            )

    def _work(
        self, folder: PartFolder, numbers: list[int], stack: contextlib.ExitStack
    ) -> Iterator[Work]:
        for number in numbers:
            files = stack.enter_context(contextlib.closing(folder.open(number)))
            first, end = folder.range(number)

            def done(number: int = number) -> None:
                folder.record(number)

            yield from work_of(files, first, end, self._step, done)


def digest(params: Mapping[str, Any]) -> str:
    """Distinguishes weights: a resumed run has new ones under the same name."""
    found = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:14}{one.reads}" for name, one in FORMATS.items())
    parser = argparse.ArgumentParser(
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
    add("--head", help="the dotted name of your own head, if the model has one")
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
    flags.add_processes(parser)
    return parser


def start() -> None:
    """Runs the command."""
    safe_output.harden()
    # On a signal, it prints that the same command does the rest.
    preemption.Guard(Progress()).start()
    main()
