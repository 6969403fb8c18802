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
from lsrjax.convert.tensors import check_types
from lsrjax.data.tokenization import TextTokenizer
from lsrjax.errors import InputError
from lsrjax.models.heads import own_head
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.tokenizer import reading
from lsrjax.tokenizer.ask import PROBES, asked
from lsrjax.tokenizer.files import TOKENIZER
from lsrjax.tokenizer.reading import differing

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
      cuts: whether it can say that only the largest weights of a vector are kept.
    """

    write: Callable[[Portable, pathlib.Path], None]
    heads: tuple[str, ...]
    reads: str
    load: tuple[str, str] | None = None
    towers: bool = False
    cuts: bool = False


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
        cuts=True,
    ),
    "onnx": Target(onnx_export.write_onnx, onnx_export.HEADS, "onnxruntime", _ONNX),
    "splade": Target(
        sentence_out.write_splade,
        ("splade",),
        "sentence_transformers.SparseEncoder, AutoModelForMaskedLM",
        _SPARSE,
        towers=True,
        cuts=True,
    ),
    "inference-free": Target(
        router_out.write_inference_free,
        ("splade",),
        "sentence_transformers.SparseEncoder",
        _SPARSE,
        cuts=True,
    ),
    "csr": Target(
        sentence_out.write_csr,
        ("csr",),
        "sentence_transformers.SparseEncoder",
        _SPARSE,
        towers=True,
        cuts=True,
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
        _write_lsrjax,
        ("*",),
        "init.model, teacher.model of a config",
        towers=True,
        cuts=True,
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
        spec = model.spec
        also = ", with a tower for queries and one for documents" * (
            spec.towers == "separate"
        )
        if spec.most_active:
            also += f", of whose vectors {spec.most_active} weights are kept"
        raise InputError(
            f"--to {target} cannot hold {model.name}, whose head is"
            f" {spec.head!r}{also}. Possible are {', '.join(possible)}."
        )
    with whole_folder(out) as folder:
        one = TARGETS[target]
        one.write(model, folder)
        if target != "lsrjax":  # which transformers does not read
            _check_tokens(model, folder)
        if one.load:
            library, code = one.load
            write_card(folder, model, f"```python\n{code}\n```", library=library)


def _check_tokens(model: Portable, folder: pathlib.Path) -> None:
    """Compares what transformers makes of the tokenizers of an export with the model's.

    Raises:
      InputError: the tokens of a text differ.
    """
    own = [reading.read(one) for one in (model.tokenizer, model.pivot_tokenizer) if one]
    written = sorted({path.parent for path in folder.rglob(TOKENIZER)})
    for one, answer in zip(written, asked(written), strict=True):
        wrong = answer.get("error")
        if wrong is None:
            # Exports may add tokens, as markers of queries, which are in no text.
            by_own = [set(differing(each, answer)) & set(PROBES) for each in own]
            wrong = min(map(sorted, by_own), key=len)
        if wrong:
            raise InputError(
                f"{model.name}: transformers would not read the tokenizer of the export"
                f" ({one.relative_to(folder)}) as that of the model ({wrong!r}). Save"
                " the model's tokenizer with transformers' save_pretrained first."
            )


def _holds(target: Target, spec: RetrieverSpec) -> bool:
    """Whether a format has a place for all that the retriever does."""
    towers = spec.towers == "shared" or target.towers
    cuts = not spec.most_active or target.cuts
    return towers and cuts and bool({spec.head, "*"} & set(target.heads))


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
        longest = TextTokenizer(model.tokenizer).max_length
        return _portable(model, {}, None, longest)
    config = _json(folder / run.CONFIG_FILE, "stages", "data")
    if config is not None:  # a run: its last stage
        folder = folder / ([*(config.get("stages") or {})] or ["train"])[-1]
    config = _json(folder.parent / run.CONFIG_FILE, "stages", "data") or {}
    stage = (config.get("stages") or {}).get(folder.name, config)
    found = results.read(folder.parent)
    model = references.load_stage(folder, reference)
    model = _portable(model, stage, found.get(folder.name))
    evaluation = results.markdown(found, folder.name)
    stages = config.get("stages") or {}
    return dataclasses.replace(model, evaluation=evaluation, stages=stages)


def _portable(
    model: checkpoint.SavedModel, config: dict, found, longest: int | None = None
) -> Portable:
    spec = model.spec
    references.check_vocabulary(model.tokenizer, spec.encoder.vocab_size, model.name)
    if model.pivot_tokenizer is not None:
        size = spec.pivot_vocab_size
        references.check_vocabulary(model.pivot_tokenizer, size, f"{model.name}, pivot")
    limit = spec.encoder.max_length
    lengths = {
        f"{role}_length": min(
            config.get("data", {}).get(
                f"{role}_length",
                model.lengths.get(role, min(length, longest or length)),
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
        dev=model.dev,
    )


def _json(path: pathlib.Path, *objects: str) -> dict | None:
    """An object that a run wrote, some of whose values are objects; None: no file."""
    if not path.is_file():
        return None
    # Not as a model's files are read: a config may have limits that are infinite.
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is not JSON: {error}. Put back the file that the run wrote."
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no object. Put back the file of the run.")
    check_types(path, values, dict.fromkeys(objects or values, dict))
    return values


def main(argv: Sequence[str] | None = None) -> None:
    """Converts what the command line names."""
    args = _parser().parse_args(argv)
    try:
        if args.head:
            own_head(args.head, "--head")
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
    add("--head", help="the dotted name of your own head, if the model has one")
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
