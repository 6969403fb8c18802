"""Writes MILCO for Hugging Face and the reference; `read.milco` reads both.

Both formats use the reference's names of tensors (layout "milco" of
`lsrjax.convert.names`). Ours builds the model from its config.json, with the model code
in the folder; the reference's config names two checkpoints to start from.
"""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.checkpoint.names_on_disk import PIVOT_TOKENIZER
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import layouts, references
from lsrjax.convert.names import export_state, to_hf_name
from lsrjax.convert.prompts import ROLES
from lsrjax.convert.read import hub
from lsrjax.convert.write.card import lineage, write_card
from lsrjax.convert.write.code import TEMPLATES, write_code
from lsrjax.convert.write.folder import write_weights
from lsrjax.convert.write.modules import write_model
from lsrjax.errors import InputError
from lsrjax.json_files import write_json
from lsrjax.models.backbones.bert import BertConfig
from lsrjax.models.backbones.table import backbone
from lsrjax.models.retriever import RetrieverSpec
from lsrjax.tokenizer.writing import write_tokenizer

_CODE = ("configuration_milco.py", "modeling_milco.py")
# The class that SparseEncoder loads, by file of this folder.
SPARSE_ENCODER = "sparse_encoder_milco.MilcoSparseEncoder"
MULTILINGUAL, ENGLISH = "multilingual", "english"
POOLER = ("m_model.pooler.dense.weight", "m_model.pooler.dense.bias")
_PLACE = "path/to/this/folder"
_PIVOT_LENGTH = 512  # tokens; no text is cut to it
# Options that only our config has.
OPTIONS = (
    "pool_mask",
    "repeats",
    "exclude_special_tokens",
    "translations",
    "stems",
    "ngrams",
    "special_ids",
    "query_prompt",
    "document_prompt",
    "query_marker",
    "document_marker",
)

_HOW_TO_LOAD = """\
In transformers, from 4.57 on, with the model code of this folder:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained({name!r}, trust_remote_code=True)
queries = model.encode_query(["a question, in any language"])
documents = model.encode_document(["a text, in any language"])  # sparse tensors
scores = queries @ documents.to_dense().T
print(model.encode_document(["a text"], return_dict=True))  # terms and weights
```

`encode_text` takes texts as they are. All three have `batch_size`, `max_length` and
`return_dict`; `dtype=torch.bfloat16` computes in bfloat16. In lsrjax, name this folder
as `init.model`, or encode with `lsrjax encode`.

{columns}
"""
_HOW_TO_LOAD_SPARSE_ENCODER = """\
In sentence-transformers, from 6.2 on, with the code of this folder:

```python
from sentence_transformers import SparseEncoder

model = SparseEncoder({name!r}, trust_remote_code=True)
queries = model.encode_query(["a question, in any language"])
documents = model.encode_document(["a text, in any language"])
scores = model.similarity(queries, documents)
print(model.decode(documents))  # terms and weights
```

`encode` takes texts as they are. The folder loads without sentence-transformers, too.

"""
_HOW_TO_LOAD_REFERENCE = """\
In the reference implementation of MILCO, whose class starts from two checkpoints, here
`{multilingual}` and `{english}`, and then loads all tensors strictly:

```python
import pathlib
from safetensors.torch import load_file

folder = pathlib.Path({name!r}).resolve()
config = MILCOConfig.from_pretrained(folder)
config.multilingual_encoder_checkpoint = str(folder / "{multilingual}")
config.lsr_encoder_checkpoint = str(folder / "{english}")
model = ContrastiveMILCOModel(config)
model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
```

Started inside of this folder, `ContrastiveMILCOModel.from_pretrained(".")` does the
same: the two paths in config.json are relative. `{english}` holds the head, its
vocabulary and tokenizer, but no layers, which MILCO does not use; it cannot stand in
as a teacher. Options that the reference does not know are in config.json as well:
{options}.
"""


def write_hf(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes what `AutoModel.from_pretrained(…, trust_remote_code=True)` loads."""
    _write_hf(model, folder)
    write_card(folder, model, _how_to_load(model.spec))


def write_sparse_encoder(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes the same with a module for sentence-transformers' `SparseEncoder`."""
    _write_hf(model, folder)
    code = SPARSE_ENCODER.partition(".")[0] + ".py"
    shutil.copyfile(TEMPLATES / code, folder / code)
    module = {"idx": 0, "name": "0", "path": "", "type": SPARSE_ENCODER}
    write_json(folder / "modules.json", [module])
    prompts = {role: getattr(model.spec, f"{role}_prompt") for role in ROLES}
    most = model.spec.most_active
    write_model(folder, "SparseEncoder", prompts, most_active=most)
    text = _HOW_TO_LOAD_SPARSE_ENCODER.format(name=_PLACE) + _how_to_load(model.spec)
    write_card(folder, model, text, library="sentence-transformers")


def _write_hf(model: SavedModel, folder: pathlib.Path) -> None:
    spec = model.spec
    assert model.pivot_tokenizer is not None  # every MILCO has one
    code = write_code(folder, backbone(spec.encoder.family))
    write_json(
        folder / "config.json",
        {
            "architectures": ["MilcoModel"],
            "auto_map": {
                "AutoConfig": "configuration_milco.MilcoConfig",
                "AutoModel": "modeling_milco.MilcoModel",
            },
            **_config(model),
            "lsr_encoder_checkpoint": _origin(model, "init.head"),
            "multilingual_encoder_checkpoint": _origin(model, "init.encoder"),
            "multilingual_config": spec.encoder.to_hf() | code,
            "english_config": _english(spec),
            PIVOT_TOKENIZER: PIVOT_TOKENIZER,
        },
    )
    for name in _CODE:
        shutil.copyfile(TEMPLATES / name, folder / name)
    write_weights(folder, _state(model))
    write_tokenizer(folder, model.tokenizer, max_length=spec.encoder.max_length)
    write_tokenizer(
        folder / PIVOT_TOKENIZER, model.pivot_tokenizer, max_length=_PIVOT_LENGTH
    )


def _how_to_load(spec: RetrieverSpec) -> str:
    columns = f"Columns are the {spec.options.pivot_vocab_size:,} English terms"
    if "source" in spec.views:
        columns += f", then the {spec.encoder.vocab_size:,} tokens of the text's own"
    if "surface" in spec.views:
        columns += f", then {spec.options.ngrams:,} of character n-grams"
    return _HOW_TO_LOAD.format(name=_PLACE, columns=f"{columns}.")


def write_reference(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes what the reference's own class loads, and the two models it starts from.

    The pooler after the encoder, which is unused, is as the model was read, or zeros.
    """
    spec = model.spec
    family = backbone(spec.encoder.family)
    for option in ("translations", "ngrams"):
        if getattr(spec.options, option):
            raise InputError(
                f"--to milco-reference: the reference has no {option}, and"
                f" {model.name} has. Possible are milco-hf, milco-sparse-encoder,"
                " lsrjax."
            )
    # It loads tensors by the names of its modules, with queries apart from keys.
    if not family.pooler or not family.names.apart:
        raise InputError(
            f"--to milco-reference: the reference has encoders like BERT and XLM-R, and"
            f" that of {model.name} is {spec.encoder.family}. Possible are milco-hf,"
            " milco-sparse-encoder, lsrjax."
        )
    config = _config(model) | {
        "architectures": ["ContrastiveMILCOModel"],
        "lsr_encoder_checkpoint": ENGLISH,
        "multilingual_encoder_checkpoint": MULTILINGUAL,
    }
    write_json(folder / "config.json", config)
    state = _state(model)
    write_weights(folder, state)
    encoder = {"encoder": model.params["encoder"]}
    _write_part(
        folder / MULTILINGUAL,
        spec.encoder.to_hf(),
        f"{family.transformers}{family.alone}",
        export_state(encoder, spec.encoder.family)
        | {name.removeprefix("m_model."): x for name, x in _pooler(model).items()},
        model.tokenizer,
        spec.encoder.max_length,
    )
    english = BertConfig(
        family="bert",
        vocab_size=spec.options.pivot_vocab_size,
        hidden_size=spec.options.pivot_hidden_size,
        num_layers=0,
        num_heads=1,
        intermediate_size=spec.options.pivot_hidden_size,
        max_positions=_PIVOT_LENGTH,
        type_vocab_size=2,
        pad_token_id=0,
        layer_norm_eps=spec.options.pivot_layer_norm_eps,
    )
    _write_part(
        folder / ENGLISH,
        english.to_hf(),
        "BertForMaskedLM",
        _english_state(model.params["head"]["mlm"], english),
        model.pivot_tokenizer,
        _PIVOT_LENGTH,
    )
    text = _HOW_TO_LOAD_REFERENCE.format(
        name=_PLACE,
        multilingual=MULTILINGUAL,
        english=ENGLISH,
        options=", ".join(OPTIONS),
    )
    write_card(folder, model, text)


def _config(model: SavedModel) -> dict[str, Any]:
    spec = model.spec
    penalty = (model.config or {}).get("regularizer", {})
    values = spec.to_dict() | vars(spec.options)
    if spec.prompt_ids and not spec.options.exclude_special_tokens:
        values |= {"exclude_special_tokens": True, "special_ids": spec.prompt_ids}
    return {
        "model_type": "milco",
        "model_variant": "bert",
        "dtype": "float32",
        "en_vocab_size": spec.options.pivot_vocab_size,
        "en_hidden_size": spec.options.pivot_hidden_size,
        "m_vocab_size": spec.encoder.vocab_size,
        "m_hidden_size": spec.encoder.hidden_size,
        "echo": "source" in spec.views,
        "lambda_q": penalty.get("query", 0.0),
        "lambda_d": penalty.get("document", 0.0),
        "sparse_reg": penalty.get("name", "l1"),
        **{name: values[name] for name in OPTIONS},
        "query_length": model.query_length,
        "document_length": model.document_length,
    }


def _english(spec: RetrieverSpec) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": spec.options.pivot_vocab_size,
        "hidden_size": spec.options.pivot_hidden_size,
        "layer_norm_eps": spec.options.pivot_layer_norm_eps,
        "hidden_act": "gelu",
    }


def _origin(model: SavedModel, field: str) -> str:
    """Hub id of the checkpoint that a part started from, or an empty string."""
    for _, stage in lineage(model):
        reference = references.of_stage(stage).get(field)
        if reference and not hub.is_local(reference):
            return reference
    return ""


def _state(model: SavedModel) -> dict[str, np.ndarray]:
    layout = layouts.milco(model.spec.encoder.family)
    state = export_state(model.params, layout)
    bias = state[to_hf_name("head/mlm/bias", layout)]
    copy = {"mlm_head.predictions.decoder.bias": bias.copy()}
    # Numbers of terms and characters, which no half precision may round.
    whole = {
        name: state[name].astype(np.int32)
        for name in state
        if name.endswith((".terms", ".characters"))
    }
    return state | whole | copy | _pooler(model)


def _pooler(model: SavedModel) -> dict[str, np.ndarray]:
    if not backbone(model.spec.encoder.family).pooler:
        return {}
    size = model.spec.encoder.hidden_size
    shapes = {POOLER[0]: (size, size), POOLER[1]: (size,)}
    return {
        name: model.unused.get(name, np.zeros(shape, np.float32))
        for name, shape in shapes.items()
    }


def _english_state(mlm: Mapping, config: BertConfig) -> dict[str, np.ndarray]:
    """A masked LM with this head and no layers.

    The decoder is written both as the word table, which BERT ties it to, and under its
    own name, since transformers 4 reports it as missing otherwise.
    """
    size = config.hidden_size

    def rows(count: int) -> dict[str, np.ndarray]:
        return {"embedding": np.zeros((count, size), np.float32)}

    embeddings = {
        "word": {"embedding": np.asarray(mlm["decoder"])},
        "position": rows(config.max_positions),
        "token_type": rows(config.type_vocab_size),
        "norm": {
            "scale": np.ones(size, np.float32),
            "bias": np.zeros(size, np.float32),
        },
    }
    params = {"encoder": {"embeddings": embeddings}, "head": {"mlm": mlm}}
    return export_state(params, "bert")


def _write_part(folder, config, architecture, state, tokenizer, max_length) -> None:
    folder.mkdir()
    write_json(folder / "config.json", {"architectures": [architecture], **config})
    write_weights(folder, state)
    write_tokenizer(folder, tokenizer, max_length=max_length)
