"""Trained retrievers to other programs' formats, and theirs to ours.

    python -m lsrjax.convert --from runs/demo/distill --to milco-hf --out milco-demo

Reads a run's or stage's folder, a Hugging Face folder or a hub id, and writes a folder
for the program that is named with --to. The folder appears once it is whole.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Sequence

from lsrjax import build, checkpoint, results, run
from lsrjax.convert import sentence_in, sentence_out, stanford
from lsrjax.convert.folder import whole_folder
from lsrjax.convert.portable import Portable
from lsrjax.errors import InputError

# Of models that were not trained here.
_LENGTHS = {"query": 64, "document": 256}


@dataclasses.dataclass(frozen=True)
class Target:
    """A format to export to.

    Attributes:
      write: writes the retriever's files to a folder.
      heads: which it can hold.
      reads: the programs that read it.
    """

    write: Callable[[Portable, pathlib.Path], None]
    heads: tuple[str, ...]
    reads: str


def _write_lsrjax(model: Portable, folder: pathlib.Path) -> None:
    checkpoint.save_model(folder, model)


TARGETS = {
    "lsrjax": Target(_write_lsrjax, ("*",), "init.model, teacher.model of a config"),
    "splade": Target(
        sentence_out.write_splade,
        ("splade",),
        "sentence_transformers.SparseEncoder, AutoModelForMaskedLM",
    ),
    "inference-free": Target(
        sentence_out.write_inference_free,
        ("splade",),
        "sentence_transformers.SparseEncoder",
    ),
    "csr": Target(
        sentence_out.write_csr, ("csr",), "sentence_transformers.SparseEncoder"
    ),
    "dense": Target(
        sentence_out.write_dense,
        ("dense",),
        "sentence_transformers.SentenceTransformer",
    ),
    "multi-vector": Target(
        sentence_out.write_multi_vector,
        ("colbert",),
        "sentence_transformers.MultiVectorEncoder",
    ),
    "pylate": Target(sentence_out.write_pylate, ("colbert",), "pylate.models.ColBERT"),
    "colbert": Target(
        stanford.write, ("colbert",), "ColBERT, ColBERT-X, MultiVectorEncoder"
    ),
}


def export(reference: str, target: str, out: pathlib.Path) -> None:
    """Writes a model to a folder in a format.

    Args:
      reference: the model; a run's folder stands for its last stage.
      target: a name in `TARGETS`.
      out: a folder that does not exist yet.

    Raises:
      InputError: a model that cannot be read, or that the format cannot hold.
    """
    model = open_portable(reference)
    head = model.spec.head
    if not {head, "*"} & set(TARGETS[target].heads):
        possible = [
            name for name, one in TARGETS.items() if {head, "*"} & set(one.heads)
        ]
        raise InputError(
            f"--to {target} cannot hold {model.name}, whose head is {head!r}. Possible"
            f" are {', '.join(possible)}."
        )
    with whole_folder(out) as folder:
        TARGETS[target].write(model, folder)


def open_portable(reference: str) -> Portable:
    """A model with what is known of how it was trained.

    Args:
      reference: a run's folder (its last stage), a stage's folder, a Hugging Face
        folder or a hub id.

    Raises:
      InputError: there is no such model, or it cannot be used.
    """
    folder = pathlib.Path(reference)
    if not checkpoint.holds_stages(folder):
        if (found := sentence_in.read(reference)) is not None:
            return found
        return _portable(build.open_model(reference, pathlib.Path()), {}, None)
    config = _json(folder / run.CONFIG_FILE)
    if config is not None:  # a run: its last stage
        folder = folder / (list(config["stages"]) or ["train"])[-1]
    config = _json(folder.parent / run.CONFIG_FILE) or {}
    stage = config.get("stages", {}).get(folder.name, config)
    found = (_json(folder.parent / results.RESULTS_FILE) or {}).get(folder.name)
    return _portable(checkpoint.load_model(folder), stage, found)


def _portable(model: checkpoint.SavedModel, config: dict, found) -> Portable:
    limit = model.spec.encoder.max_length
    lengths = {
        f"{role}_length": min(
            config.get("data", {}).get(f"{role}_length", length), limit
        )
        for role, length in _LENGTHS.items()
    }
    return Portable(
        model.spec,
        model.params,
        model.tokenizer,
        model.pivot_tokenizer,
        model.name,
        **lengths,
        config=config or None,
        results=found,
    )


def _json(path: pathlib.Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Converts what the command line names."""
    args = _parser().parse_args(argv)
    try:
        export(args.reference, args.target, args.out)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    reads = TARGETS[args.target].reads
    print(f"{args.out}: {args.target}, for {reads}", flush=True)


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:18}{one.reads}" for name, one in TARGETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m lsrjax.convert",
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
    add("--out", required=True, type=pathlib.Path, help="a folder that does not exist")
    return parser
