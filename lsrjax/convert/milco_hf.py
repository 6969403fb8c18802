"""MILCO to Hugging Face, to the reference implementation, and back from both.

Both formats have the reference's names of tensors (layout "milco" of
`lsrjax.convert.names`). Ours builds itself from the configs in its config.json with the
model code beside it; the reference's names two checkpoints that it starts from.
"""

import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers

from lsrjax.convert import huggingface
from lsrjax.convert.card import lineage, models_of, write_card
from lsrjax.convert.folder import write_json, write_tokenizer, write_weights
from lsrjax.convert.huggingface import NOTHING, Allowed
from lsrjax.convert.names import (
    export_state,
    flatten_tree,
    import_names,
    import_tree,
    to_hf_name,
    to_hf_shape,
)
from lsrjax.convert.portable import Portable
from lsrjax.convert.tensors import FLOATING, CheckpointError, Stored
from lsrjax.models import retriever
from lsrjax.models.encoder import EncoderConfig
from lsrjax.models.retriever import RetrieverSpec

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_CODE = ("configuration_milco.py", "modeling_milco.py")
_PIVOT_TOKENIZER = "pivot_tokenizer"
_MULTILINGUAL, _ENGLISH = "multilingual", "english"
_POOLER = ("m_model.pooler.dense.weight", "m_model.pooler.dense.bias")
_PIVOT_LENGTH = 512  # tokens; nothing here is cut to it
# Options of ours that the reference's config does not have.
_OPTIONS = (
    "pool_mask",
    "repeats",
    "exclude_special_tokens",
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
as `init.model`, or encode with `python -m lsrjax.encode`.

Columns are {columns}.
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


def write_hf(model: Portable, folder: pathlib.Path) -> None:
    """Writes what `AutoModel.from_pretrained(…, trust_remote_code=True)` loads."""
    spec = model.spec
    write_json(
        folder / "config.json",
        {
            "architectures": ["MilcoModel"],
            "auto_map": {
                "AutoConfig": "configuration_milco.MilcoConfig",
                "AutoModel": "modeling_milco.MilcoModel",
            },
            **_config(model),
            "lsr_encoder_checkpoint": _origin(model, "head"),
            "multilingual_encoder_checkpoint": _origin(model, "encoder"),
            "multilingual_config": spec.encoder.to_hf(),
            "english_config": _english(spec),
            _PIVOT_TOKENIZER: _PIVOT_TOKENIZER,
        },
    )
    for name in _CODE:
        shutil.copyfile(_TEMPLATES / name, folder / name)
    write_weights(folder, _state(model))
    write_tokenizer(folder, model.tokenizer, max_length=spec.encoder.max_length)
    write_tokenizer(
        folder / _PIVOT_TOKENIZER, model.pivot_tokenizer, max_length=_PIVOT_LENGTH
    )
    columns = f"the {spec.pivot_vocab_size:,} English terms"
    if spec.lexecho:
        columns += f", then the {spec.encoder.vocab_size:,} tokens of the text's own"
    text = _HOW_TO_LOAD.format(name="path/to/this/folder", columns=columns)
    write_card(folder, model, text)


def write_reference(model: Portable, folder: pathlib.Path) -> None:
    """Writes what the reference's own class loads, and the two models it starts from.

    Its layer after the encoder that nothing uses (the pooler) is what it was when the
    model was read, or zeros.
    """
    spec = model.spec
    config = _config(model) | {
        "architectures": ["ContrastiveMILCOModel"],
        "lsr_encoder_checkpoint": _ENGLISH,
        "multilingual_encoder_checkpoint": _MULTILINGUAL,
    }
    write_json(folder / "config.json", config)
    state = _state(model)
    write_weights(folder, state)
    encoder = {"encoder": model.params["encoder"]}
    _write_part(
        folder / _MULTILINGUAL,
        spec.encoder.to_hf(),
        {"bert": "BertModel", "xlm-roberta": "XLMRobertaModel"}[spec.encoder.family],
        export_state(encoder, spec.encoder.family)
        | {name.removeprefix("m_model."): x for name, x in _pooler(model).items()},
        model.tokenizer,
        spec.encoder.max_length,
    )
    english = EncoderConfig(
        family="bert",
        vocab_size=spec.pivot_vocab_size,
        hidden_size=spec.pivot_hidden_size,
        num_layers=0,
        num_heads=1,
        intermediate_size=spec.pivot_hidden_size,
        max_positions=_PIVOT_LENGTH,
        type_vocab_size=2,
        pad_token_id=0,
        layer_norm_eps=spec.pivot_layer_norm_eps,
    )
    _write_part(
        folder / _ENGLISH,
        english.to_hf(),
        "BertForMaskedLM",
        _english_state(model.params["head"]["mlm"], english),
        model.pivot_tokenizer,
        _PIVOT_LENGTH,
    )
    text = _HOW_TO_LOAD_REFERENCE.format(
        name="path/to/this/folder",
        multilingual=_MULTILINGUAL,
        english=_ENGLISH,
        options=", ".join(_OPTIONS),
    )
    write_card(folder, model, text)


def _config(model: Portable) -> dict[str, Any]:
    spec = model.spec
    penalty = (model.config or {}).get("regularizer", {})
    values = spec.to_dict()
    return {
        "model_type": "milco",
        "model_variant": "bert",
        "dtype": "float32",
        "en_vocab_size": spec.pivot_vocab_size,
        "en_hidden_size": spec.pivot_hidden_size,
        "m_vocab_size": spec.encoder.vocab_size,
        "m_hidden_size": spec.encoder.hidden_size,
        "echo": spec.lexecho,
        "lambda_q": penalty.get("query", 0.0),
        "lambda_d": penalty.get("document", 0.0),
        "sparse_reg": penalty.get("name", "l1"),
        **{name: values[name] for name in _OPTIONS},
        "query_length": model.query_length,
        "document_length": model.document_length,
    }


def _english(spec: RetrieverSpec) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": spec.pivot_vocab_size,
        "hidden_size": spec.pivot_hidden_size,
        "layer_norm_eps": spec.pivot_layer_norm_eps,
        "hidden_act": "gelu",
    }


def _origin(model: Portable, role: str) -> str:
    """Hub id of the checkpoint that a part started from; empty if it has none."""
    for _, stage in lineage(model):
        for found, reference in models_of(stage):
            if found == role and not huggingface.is_local(reference):
                return reference
    return ""


def _state(model: Portable) -> dict[str, np.ndarray]:
    state = export_state(model.params, "milco")
    bias = state[to_hf_name("head/mlm/bias", "milco")]
    copy = {"mlm_head.predictions.decoder.bias": bias.copy()}
    return state | copy | _pooler(model)


def _pooler(model: Portable) -> dict[str, np.ndarray]:
    size = model.spec.encoder.hidden_size
    shapes = {_POOLER[0]: (size, size), _POOLER[1]: (size,)}
    return {
        name: model.unused.get(name, np.zeros(shape, np.float32))
        for name, shape in shapes.items()
    }


def _english_state(mlm: Mapping, config: EncoderConfig) -> dict[str, np.ndarray]:
    """A masked LM with this head and no layers.

    The decoder is written both as the word table, which BERT ties it to, and on its
    own, without which transformers 4 says that it is missing.
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


def is_milco(path_or_id: str) -> bool:
    """Whether a Hugging Face folder or hub id is a MILCO, ours or the reference's."""
    folder = huggingface.fetch(path_or_id, ("config.json",))
    if not (folder / "config.json").is_file():
        return False  # as of a Router of sentence-transformers
    return huggingface.read_raw_config(path_or_id).get("model_type") == "milco"


def read_spec(path_or_id: str) -> RetrieverSpec:
    """What the MILCO of a Hugging Face folder or hub id is, without its weights.

    Raises:
      CheckpointError: its config, or one of its parts', cannot be used.
    """
    folder = huggingface.fetch(path_or_id, ("config.json",))
    return _read_spec(folder, huggingface.read_raw_config(path_or_id))[0]


def read(
    path_or_id: str, allowed: Allowed = NOTHING
) -> tuple[
    RetrieverSpec,
    dict[str, Any],
    pathlib.Path,
    pathlib.Path,
    dict[str, int],
    dict[str, np.ndarray],
]:
    """Reads a MILCO that `write_hf`, `write_reference` or the reference wrote.

    Args:
      path_or_id: a folder, or the id of a repository on the Hugging Face hub.
      allowed: what is put up with.

    Returns:
      Its spec, float32 parameters, the folders of its tokenizer and of the English one;
      if the folder has them, the lengths queries and documents are cut to; and the
      tensors that no model uses, by name.

    Raises:
      CheckpointError: something is missing, left over, or does not fit the config.
    """
    folder = huggingface.fetch(
        path_or_id,
        (
            *huggingface.CONFIG_FILES,
            *huggingface.WEIGHT_FILES,
            *huggingface.TOKENIZER_FILES,
            *(f"{_PIVOT_TOKENIZER}/{name}" for name in huggingface.TOKENIZER_FILES),
            f"{_MULTILINGUAL}/*.json",
            f"{_ENGLISH}/*.json",
        ),
    )
    raw = huggingface.read_raw_config(path_or_id)
    spec, tokenizer, pivot = _read_spec(folder, raw)
    stored = huggingface.open_weights(path_or_id, folder, raw, allowed)
    try:
        names = import_names(
            stored, "milco", missing=allowed.missing, left_over=allowed.left_over
        )
        found = {path: stored[name] for path, name in names.items()}
        absent = _check_shapes(found, spec, allowed.missing)
    except ValueError as error:
        raise CheckpointError(f"Weights in {folder}: {error}") from error
    values = {path: one.read().astype(np.float32) for path, one in found.items()}
    values |= huggingface.fresh(absent, spec.encoder)
    params = import_tree(values, "milco")
    lengths = {
        role: raw[f"{role}_length"]
        for role in ("query", "document")
        if f"{role}_length" in raw
    }
    unused = {
        name: stored[name].read().astype(np.float32)
        for name in _POOLER
        if name in stored
    }
    return spec, params, tokenizer, pivot, lengths, unused


def _read_spec(
    folder: pathlib.Path, raw: Mapping[str, Any]
) -> tuple[RetrieverSpec, pathlib.Path, pathlib.Path]:
    """The spec, and the folders of the tokenizers."""
    path = folder / "config.json"
    if raw.get("model_variant", "bert") != "bert" or raw.get("prompt"):
        raise CheckpointError(
            f"{path}: model_variant is {raw.get('model_variant')!r} and prompt"
            f" {raw.get('prompt')!r}, but only encoders like BERT ('bert') without a"
            " prompt are implemented. Use a MILCO on XLM-R or BERT."
        )
    if "multilingual_config" in raw:
        tokenizer, pivot = folder, folder / raw[_PIVOT_TOKENIZER]
        try:
            encoder = EncoderConfig.from_hf(raw["multilingual_config"])
            english = raw["english_config"]
            sizes = [
                english[key] for key in ("vocab_size", "hidden_size", "layer_norm_eps")
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: multilingual_config or english_config cannot be used:"
                f" {error!r}. Export the model again."
            ) from error
    else:
        tokenizer = _part(folder, raw, "multilingual_encoder_checkpoint")
        pivot = _part(folder, raw, "lsr_encoder_checkpoint")
        encoder = huggingface.read_config(tokenizer)
        # Of its layers MILCO uses none, and what `write_reference` wrote has none.
        values = huggingface.read_raw_config(pivot) | {"num_hidden_layers": 1}
        try:
            english = EncoderConfig.from_hf(values)
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"config.json of {pivot}: {error}") from error
        sizes = [english.vocab_size, english.hidden_size, english.layer_norm_eps]
        if (folder / "tokenizer.json").is_file():
            tokenizer = str(folder)
    tokenizer = huggingface.tokenizer_folder(str(tokenizer))
    pivot = huggingface.tokenizer_folder(str(pivot))
    special_ids = _check_vocabulary(tokenizer, encoder.vocab_size, path)
    _check_vocabulary(pivot, sizes[0], path)
    # What the reference computes, where its config says nothing.
    options = {"pool_mask": "multiply", "special_ids": special_ids}
    options |= {name: raw[name] for name in _OPTIONS if name in raw}
    options["special_ids"] = tuple(options["special_ids"])
    spec = RetrieverSpec(
        head="milco",
        encoder=encoder,
        lexecho=bool(raw.get("echo")),
        pivot_vocab_size=sizes[0],
        pivot_hidden_size=sizes[1],
        pivot_layer_norm_eps=sizes[2],
        **options,
    )
    return spec, tokenizer, pivot


def _part(folder: pathlib.Path, raw: Mapping[str, Any], field: str) -> str:
    """A checkpoint that the reference's config names: beside it, here, or a hub id."""
    name = raw.get(field)
    if not name:
        raise CheckpointError(
            f"{folder / 'config.json'} has no {field}, which the reference's MILCO"
            " takes its sizes and tokenizer from. Add it: a folder or a hub id."
        )
    return str(folder / name) if (folder / name).is_dir() else name


def _check_vocabulary(
    folder: pathlib.Path, size: int, config: pathlib.Path
) -> tuple[int, ...]:
    """The ids of the special tokens of a tokenizer, whose ids are all below `size`."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(
            f"{path} is not a tokenizer: {error}. Save or download it again."
        ) from error
    found = max(tokenizer.get_vocab().values()) + 1
    if found > size:
        raise CheckpointError(
            f"{path} has {found} tokens, but {config} says that the model knows"
            f" {size}. Use the tokenizer that the model was trained with."
        )
    added = tokenizer.get_added_tokens_decoder()
    return tuple(sorted(i for i, token in added.items() if token.special))


def _check_shapes(
    found: Mapping[str, Stored], spec: RetrieverSpec, may_miss: str
) -> dict[str, tuple[int, ...]]:
    """Compares tensors, none of them read, with what the config asks for.

    Returns:
      Path -> shape, in the file, of those that are missing and may be.

    Raises:
      ValueError: lists what is not as the config says.
    """
    wanted = flatten_tree(retriever.split(spec)[1])
    problems, absent = [], {}
    for path in sorted(found.keys() | wanted.keys()):
        name = to_hf_name(path, "milco")
        want = to_hf_shape(path, wanted[path].shape) if path in wanted else None
        have = found[path].shape if path in found else None
        if have is None and re.fullmatch(may_miss, name):
            absent[path] = want
        elif have != want:
            problems.append(
                f"{name}: {'missing' if have is None else list(have)}, config.json says"
                f" {'none' if want is None else list(want)}"
            )
        elif found[path].dtype not in FLOATING:
            problems.append(f"{name}: {found[path].dtype}, floating point expected")
    if problems:
        raise ValueError(
            f"{len(problems)} tensors do not fit config.json:\n  "
            + "\n  ".join(problems[:40])
            + "\nThe two are of different models; take both from the same checkpoint."
        )
    return absent
