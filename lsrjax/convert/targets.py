"""The formats that retrievers can be exported to, and the programs that read them."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable

from lsrjax.checkpoint import saved_model
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import flag_embedding, open_model, stanford
from lsrjax.convert.read.huggingface import NOTHING, Allowed
from lsrjax.convert.write import (
    milco,
    onnx,
    onnx_encoders,
    peft,
    router,
    sentence_transformers,
)
from lsrjax.convert.write.card import CARD, write_card
from lsrjax.convert.write.folder import whole_folder
from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.retrieval import prefixes
from lsrjax.retrieval.pruning import Pruning
from lsrjax.tokenizer import reading
from lsrjax.tokenizer.ask_transformers import PROBES, asked
from lsrjax.tokenizer.files import TOKENIZER
from lsrjax.tokenizer.reading import differing


def _loadable(config: EncoderConfig) -> bool:
    """Whether transformers has the encoder, or runs our code in the folder for it."""
    return bool(backbone(config.family).transformers)


def _in_transformers(config: EncoderConfig) -> bool:
    return _loadable(config) and not backbone(config.family).code


@dataclasses.dataclass(frozen=True)
class Target:
    """A format to export to.

    Attributes:
      write: writes the retriever's files to a folder.
      heads: that the format can represent.
      reads: the programs that read it.
      load: for the model card, the program's `library_name` on the hub and Python code
        that loads the folder; None if `write` writes the card.
      towers: whether it can represent separate towers.
      cuts: whether it can keep only the largest weights of a vector.
      adapter: whether it holds what was trained beside weights that stay.
      unpooled: whether it can leave a prompt's tokens out of the pooling.
      no_pooling: of its heads' poolings, those that it cannot represent.
      encodes: whether it can represent an encoder of this config.
      marks_behind: a marker is always behind the first token there.
      pushed: whether a run may push it to the hub of its own accord.
    """

    write: Callable[[SavedModel, pathlib.Path], None]
    heads: tuple[str, ...]
    reads: str
    load: tuple[str, str] | None = None
    towers: bool = False
    cuts: bool = False
    adapter: bool = False
    unpooled: bool = False
    no_pooling: tuple[str, ...] = ()
    encodes: Callable[[EncoderConfig], bool] = _loadable
    marks_behind: bool = False
    pushed: bool = True


def _write_lsrjax(model: SavedModel, folder: pathlib.Path) -> None:
    saved_model.save_model(folder, model)


def _sentence(model_class: str, encode: str) -> tuple[str, str]:
    """The `load` of a class of sentence-transformers."""
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
    "milco-hf": Target(
        milco.write_hf, ("milco",), "transformers, from 4.57 on", marks_behind=True
    ),
    "milco-reference": Target(
        milco.write_reference,
        ("milco",),
        "the reference implementation of MILCO",
        marks_behind=True,
    ),
    "milco-sparse-encoder": Target(
        milco.write_sparse_encoder,
        ("milco",),
        "sentence_transformers.SparseEncoder, transformers",
        cuts=True,
        marks_behind=True,
    ),
    "onnx": Target(
        onnx.write_onnx,
        onnx.HEADS,
        "onnxruntime",
        _ONNX,
        encodes=onnx_encoders.encodes,
        pushed=False,
    ),
    "splade": Target(
        sentence_transformers.write_splade,
        ("splade",),
        "sentence_transformers.SparseEncoder, AutoModelForMaskedLM",
        _SPARSE,
        towers=True,
        cuts=True,
        no_pooling=("cls",),
    ),
    "inference-free": Target(
        router.write_inference_free,
        ("splade",),
        "sentence_transformers.SparseEncoder",
        _SPARSE,
        cuts=True,
        no_pooling=("cls",),
    ),
    "csr": Target(
        sentence_transformers.write_csr,
        ("csr",),
        "sentence_transformers.SparseEncoder",
        _SPARSE,
        towers=True,
        unpooled=True,
        cuts=True,
    ),
    "dense": Target(
        sentence_transformers.write_dense,
        ("dense",),
        "sentence_transformers.SentenceTransformer",
        _sentence("SentenceTransformer", "encode_document"),
        towers=True,
        unpooled=True,
    ),
    "multi-vector": Target(
        sentence_transformers.write_multi_vector,
        ("colbert",),
        "sentence_transformers.MultiVectorEncoder",
        _sentence("MultiVectorEncoder", "encode_document"),
    ),
    "pylate": Target(
        sentence_transformers.write_pylate,
        ("colbert",),
        "pylate.models.ColBERT",
        (
            "PyLate",
            "from pylate import models\n\n"
            'model = models.ColBERT(model_name_or_path="path/to/this/folder")\n'
            'vectors = model.encode(["a text"], is_query=False)',
        ),
        encodes=_in_transformers,
        marks_behind=True,
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
        encodes=_in_transformers,
        marks_behind=True,
    ),
    "bge-m3": Target(
        flag_embedding.write,
        ("m3",),
        "FlagEmbedding.BGEM3FlagModel, SentenceTransformer (dense alone)",
        encodes=_in_transformers,
    ),
    "peft": Target(
        peft.write_peft,
        ("dense", "splade"),
        "peft.PeftModel, beside the model that it was trained from",
        (
            "peft",
            "from peft import PeftModel\n"
            "from transformers import AutoModel  # splade: AutoModelForMaskedLM\n\n"
            'base = AutoModel.from_pretrained("the/base_model")\n'
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        ),
        adapter=True,
        unpooled=True,
        encodes=_in_transformers,
    ),
    "lsrjax": Target(
        _write_lsrjax,
        ("*",),
        "init.model, teacher.model of a config",
        towers=True,
        unpooled=True,
        cuts=True,
        encodes=lambda config: True,
    ),
}


def export(
    reference: str,
    target: str,
    out: pathlib.Path,
    allowed: Allowed = NOTHING,
    prune: Pruning | None = None,
    embedding_size: int = 0,
) -> None:
    """Writes a model to a folder in a format.

    Args:
      reference: the model; a run's folder stands for its last stage.
      target: a name in `TARGETS`.
      out: a folder that does not exist yet.
      prune: the budget of a vector's terms. `top:N` becomes a part of the model, where
        the format can hold it (`max_active_dims`); the card names any.
      embedding_size: keep the first numbers of an embedding; 0: all.

    Raises:
      InputError: a model that cannot be read, or that the format cannot represent.
    """
    model = open_model.open_portable(reference, allowed)
    if embedding_size:
        model = prefixes.shortened(model, embedding_size, "--embedding_size")
    write(model, target, out, prune)


def write_first(model: SavedModel, out: pathlib.Path) -> str:
    """Writes a model in the first pushed format that holds it; returns its name."""
    *first, last = [
        name for name, one in TARGETS.items() if one.pushed and _holds(one, model)
    ]
    for target in first:
        with contextlib.suppress(InputError):
            write(model, target, out)
            return target
    write(model, last, out)
    return last


def write(
    model: SavedModel, target: str, out: pathlib.Path, prune: Pruning | None = None
) -> None:
    """Writes a model that was read; see `export`."""
    model = _pruned(model, prune, target)
    possible = [name for name, one in TARGETS.items() if _holds(one, model)]
    if target not in possible:
        spec = model.spec
        also = ", with a tower for queries and one for documents" * (
            spec.towers == "separate"
        )
        if spec.most_active:
            also += f", of whose vectors {spec.most_active} weights are kept"
        if _marks_front(spec) and TARGETS[target].marks_behind:
            also += ", whose marker is in front of a text's first token"
        if not (spec.includes_prompt or TARGETS[target].unpooled):
            also += ", whose pooling leaves a prompt's tokens out"
        if (pooling := _pooling(spec)) in TARGETS[target].no_pooling:
            also += f", whose pooling is {pooling!r}"
        if TARGETS[target].adapter and not model.factors:
            also += ", without an adapter (config.adapt)"
        if not TARGETS[target].encodes(spec.encoder):
            also += f", over an encoder of the family {spec.encoder.family}"
        raise InputError(
            f"--to {target} cannot hold {model.name}, whose head is"
            f" {spec.head!r}{also}. Possible are {', '.join(possible)}."
        )
    with whole_folder(out) as folder:
        one = TARGETS[target]
        one.write(model, folder)
        if target != "lsrjax" and not one.adapter:  # which transformers does not read
            _check_tokens(model, folder)
        if one.load:
            library, code = one.load
            if backbone(model.spec.encoder.family).code:
                code = code.replace('folder")', 'folder", trust_remote_code=True)')
            write_card(folder, model, f"```python\n{code}\n```", library=library)
        if prune:
            _add_to_card(folder / CARD, prune)


def _pruned(model: SavedModel, prune: Pruning | None, target: str) -> SavedModel:
    if prune is None:
        return model
    if not model.spec.sparse:
        raise InputError(
            f"--prune is for weights of terms, and {model.name} has the head"
            f" {model.spec.head!r}. Leave it out."
        )
    if prune.kind == "top":
        spec = dataclasses.replace(model.spec, most_active=int(prune.value))
        return dataclasses.replace(model, spec=spec)
    if target == "lsrjax":
        raise InputError(
            f"--to lsrjax cannot hold --prune {prune}, only a top:N. Give it to lsrjax"
            " encode instead."
        )
    return model


def _add_to_card(path: pathlib.Path, prune: Pruning) -> None:
    """Names the budget in the card, if the format has one."""
    if not path.is_file():
        return
    said = (
        f"Of each vector the {prune.value:,.0f} largest weights are kept."
        if prune.kind == "top"
        else "The model gives all weights. Indexes of this budget keep fewer:"
        f" `lsrjax encode --prune {prune}`."
    )
    text = path.read_text(encoding="utf-8")
    text += f"\n## Pruning\n\nChosen: `{prune}`. {said}\n"
    path.write_text(text, encoding="utf-8")


def _check_tokens(model: SavedModel, folder: pathlib.Path) -> None:
    """Checks that transformers reads the export's tokenizers as the model's own."""
    own = [reading.read(one) for one in (model.tokenizer, model.pivot_tokenizer) if one]
    written = sorted({path.parent for path in folder.rglob(TOKENIZER)})
    for one, answer in zip(written, asked(written), strict=True):
        wrong = answer.get("error")
        if wrong is None:
            # Exports may add tokens, such as markers, that occur in no text.
            by_own = [set(differing(each, answer)) & set(PROBES) for each in own]
            wrong = min(map(sorted, by_own), key=len)
        if wrong:
            raise InputError(
                f"{model.name}: transformers would not read the tokenizer of the export"
                f" ({one.relative_to(folder)}) as that of the model ({wrong!r}). Save"
                " the model's tokenizer with transformers' save_pretrained first."
            )


def _holds(target: Target, model: SavedModel) -> bool:
    """Whether a format can represent everything that the retriever does."""
    spec = model.spec
    if target.adapter and not model.factors:
        return False
    towers = spec.towers == "shared" or target.towers
    cuts = not spec.most_active or target.cuts
    heads = bool({spec.head, "*"} & set(target.heads))
    marks = not (_marks_front(spec) and target.marks_behind)
    pools = _pooling(spec) not in target.no_pooling
    pools = pools and (spec.includes_prompt or target.unpooled)
    return (
        towers and cuts and heads and marks and pools and target.encodes(spec.encoder)
    )


def _pooling(spec: RetrieverSpec) -> str:
    return getattr(spec.options, "pooling", "")


def _marks_front(spec: RetrieverSpec) -> bool:
    marked = max(spec.query_marker, spec.document_marker) >= 0
    return marked and spec.marker_place == 0
