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

from lsrjax import checkpoint, references, results, run
from lsrjax.convert import (
    hub,
    milco_hf,
    onnx_export,
    router_out,
    sentence_out,
    stanford,
)
from lsrjax.convert.card import write_card
from lsrjax.convert.folder import whole_folder
from lsrjax.convert.huggingface import NOTHING, Allowed
from lsrjax.convert.portable import Portable
from lsrjax.errors import InputError
from lsrjax.models.retriever import RetrieverSpec

# Of models that were not trained here.
_LENGTHS = {"query": 64, "document": 256}


@dataclasses.dataclass(frozen=True)
class Target:
    """A format to export to.

    Attributes:
      write: writes the retriever's files to a folder.
      heads: which it can hold.
      reads: the programs that read it.
      load: for the model card, the program's `library_name` on the hub and how it loads
        the folder, Python; None: the format writes a card of its own.
      towers: whether it can hold separate towers.
    """

    write: Callable[[Portable, pathlib.Path], None]
    heads: tuple[str, ...]
    reads: str
    load: tuple[str, str] | None = None
    towers: bool = False


def _write_lsrjax(model: Portable, folder: pathlib.Path) -> None:
    checkpoint.save_model(folder, model)


def _sentence(model_class: str, encode: str) -> tuple[str, str]:
    """How sentence-transformers loads and uses a folder."""
    return "sentence-transformers", (
        f"from sentence_transformers import {model_class}\n\n"
        f'model = {model_class}("path/to/this/folder")\n'
        f'vectors = model.{encode}(["a text"])'
    )


_SPARSE = _sentence("SparseEncoder", "encode_document")
_ONNX = (
    "onnx",
    "import onnxruntime\nfrom transformers import AutoTokenizer\n\n"
    'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n'
    'model = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")\n'
    'text = tokenizer(["a text"], return_tensors="np", padding=True)\n'
    'names = ("input_ids", "attention_mask")\n'
    "vectors = model.run(None, {name: text[name] for name in names})",
)

TARGETS = {
    "milco-hf": Target(milco_hf.write_hf, ("milco",), "transformers, from 4.57 on"),
    "milco-reference": Target(
        milco_hf.write_reference, ("milco",), "the reference implementation of MILCO"
    ),
    "milco-sparse-encoder": Target(
        milco_hf.write_sparse_encoder,
        ("milco",),
        "sentence_transformers.SparseEncoder, transformers",
    ),
    "onnx": Target(onnx_export.write_onnx, onnx_export.HEADS, "onnxruntime", _ONNX),
    "splade": Target(
        sentence_out.write_splade,
        ("splade",),
        "sentence_transformers.SparseEncoder, AutoModelForMaskedLM",
        _SPARSE,
        towers=True,
    ),
    "inference-free": Target(
        router_out.write_inference_free,
        ("splade",),
        "sentence_transformers.SparseEncoder",
        _SPARSE,
    ),
    "csr": Target(
        sentence_out.write_csr,
        ("csr",),
        "sentence_transformers.SparseEncoder",
        _SPARSE,
        towers=True,
    ),
    "dense": Target(
        sentence_out.write_dense,
        ("dense",),
        "sentence_transformers.SentenceTransformer",
        _sentence("SentenceTransformer", "encode_document"),
        towers=True,
    ),
    "multi-vector": Target(
        sentence_out.write_multi_vector,
        ("colbert",),
        "sentence_transformers.MultiVectorEncoder",
        _sentence("MultiVectorEncoder", "encode_document"),
    ),
    "pylate": Target(
        sentence_out.write_pylate,
        ("colbert",),
        "pylate.models.ColBERT",
        (
            "PyLate",
            "from pylate import models\n\n"
            'model = models.ColBERT(model_name_or_path="path/to/this/folder")\n'
            'vectors = model.encode(["a text"], is_query=False)',
        ),
    ),
    "colbert": Target(
        stanford.write,
        ("colbert",),
        "ColBERT, ColBERT-X, MultiVectorEncoder",
        (
            "colbert",
            "from colbert.infra import ColBERTConfig\n"
            "from colbert.modeling.checkpoint import Checkpoint\n\n"
            'model = Checkpoint("path/to/this/folder", ColBERTConfig())\n'
            'vectors = model.docFromText(["a text"])\n'
            "# In sentence-transformers: MultiVectorEncoder. It puts a space behind a\n"
            "# marker, which XLM-R reads as a token where no word follows.",
        ),
    ),
    "lsrjax": Target(
        _write_lsrjax, ("*",), "init.model, teacher.model of a config", towers=True
    ),
}


def export(
    reference: str, target: str, out: pathlib.Path, allowed: Allowed = NOTHING
) -> None:
    """Writes a model to a folder in a format.

    Args:
      reference: the model; a run's folder stands for its last stage.
      target: a name in `TARGETS`.
      out: a folder that does not exist yet.
      allowed: what is put up with in a Hugging Face model.

    Raises:
      InputError: a model that cannot be read, or that the format cannot hold.
    """
    model = open_portable(reference, allowed)
    possible = [name for name, one in TARGETS.items() if _holds(one, model.spec)]
    if target not in possible:
        towers = ", with a tower for queries and one for documents"
        raise InputError(
            f"--to {target} cannot hold {model.name}, whose head is"
            f" {model.spec.head!r}{towers * (model.spec.towers == 'separate')}."
            f" Possible are {', '.join(possible)}."
        )
    with whole_folder(out) as folder:
        one = TARGETS[target]
        one.write(model, folder)
        if one.load:
            library, code = one.load
            write_card(folder, model, f"```python\n{code}\n```", library=library)


def _holds(target: Target, spec: RetrieverSpec) -> bool:
    """Whether a format has a place for the head and its towers."""
    towers = spec.towers == "shared" or target.towers
    return towers and bool({spec.head, "*"} & set(target.heads))


def open_portable(reference: str, allowed: Allowed = NOTHING) -> Portable:
    """A model with what is known of how it was trained.

    Args:
      reference: a run's folder (its last stage), a stage's folder, a Hugging Face
        folder or a hub id.
      allowed: what is put up with in a Hugging Face model.

    Raises:
      InputError: there is no such model, or it cannot be used.
    """
    folder = references.stages_folder(reference)
    if folder is not None and allowed != NOTHING:
        raise InputError(
            f"{reference} was trained here and lacks nothing: leave --allow_pickle,"
            " --allow_missing and --allow_left_over out."
        )
    if folder is None:
        model = references.open_hugging_face(reference, allowed=allowed, whole=True)
        if model.spec.head == "splade" and "head" not in model.params:
            # An encoder alone is a retriever too: an embedding needs no parameters.
            spec = dataclasses.replace(model.spec, head="dense", pooling="cls")
            model = dataclasses.replace(model, spec=spec)
        return _portable(model, {}, None)
    config = _json(folder / run.CONFIG_FILE)
    if config is not None:  # a run: its last stage
        folder = folder / (list(config["stages"]) or ["train"])[-1]
    config = _json(folder.parent / run.CONFIG_FILE) or {}
    stage = config.get("stages", {}).get(folder.name, config)
    found = results.read(folder.parent)
    model = references.load_stage(folder, reference)
    model = _portable(model, stage, found.get(folder.name))
    evaluation = results.markdown(found, folder.name)
    stages = config.get("stages", {})
    return dataclasses.replace(model, evaluation=evaluation, stages=stages)


def _portable(model: checkpoint.SavedModel, config: dict, found) -> Portable:
    spec = model.spec
    references.check_vocabulary(model.tokenizer, spec.encoder.vocab_size, model.name)
    if model.pivot_tokenizer is not None:
        size = spec.pivot_vocab_size
        references.check_vocabulary(model.pivot_tokenizer, size, f"{model.name}, pivot")
    limit = spec.encoder.max_length
    lengths = {
        f"{role}_length": min(
            config.get("data", {}).get(
                f"{role}_length", model.lengths.get(role, length)
            ),
            limit,
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
        unused=model.unused,
    )


def _json(path: pathlib.Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no config")
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}). Start the run again with its config."
        ) from error
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Converts what the command line names."""
    args = _parser().parse_args(argv)
    try:
        if args.public and not args.push:
            raise InputError("--public says how --push makes a repository; add --push.")
        allowed = Allowed(args.allow_pickle, args.allow_missing, args.allow_left_over)
        export(args.reference, args.target, args.out, allowed)
        reads = TARGETS[args.target].reads
        print(f"{args.out}: {args.target}, for {reads}", flush=True)
        if args.push:
            address = hub.push(args.out, args.push, private=not args.public)
            print(f"Uploaded to {address}", flush=True)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


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
    return parser
