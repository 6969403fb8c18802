"""Folders of sentence-transformers, PyLate and ColBERT as our retrievers.

Modules that do what a head here does are read into it; whatever differs (another
pooling, a bias, an activation) is refused by name. No code of a folder is ever run.
"""

import dataclasses
import pathlib
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsrjax.convert import huggingface, stanford
from lsrjax.convert.huggingface import CheckpointError, read_json, read_weights
from lsrjax.convert.portable import Portable
from lsrjax.convert.prompts import Tokens, split_prompt
from lsrjax.models.encoder import EncoderConfig
from lsrjax.models.retriever import RetrieverSpec

_MODULES = "modules.json"
_MODEL = "config_sentence_transformers.json"
_TRANSFORMER = "sentence_bert_config.json"
_ROUTER = "router_config.json"
# What tells the kind of a folder.
_SMALL = (_MODULES, _MODEL, _ROUTER, "config.json", stanford.METADATA)
_WEIGHTS = "model.safetensors"
_PROGRAMS = ("sentence_transformers.", "pylate.")
# How PyLate and ColBERT call what sentence-transformers 6.2 has as `query_expansion`.
_PYLATE_LENGTH = 32

# The modules of a model, in order, those in brackets optional -> our head.
_SEQUENCES = {
    ("Transformer", "SpladePooling"): "splade",
    ("Transformer", "Pooling", "[Dense]", "[Normalize]", "SparseAutoEncoder"): "csr",
    ("Transformer", "Pooling", "[Dense]", "[Normalize]"): "dense",
    ("Transformer", "[Dense]", "MultiVectorMask", "[Normalize]"): "colbert",
    ("Transformer", "[Dense]", "[Normalize]", "MultiVectorMask"): "colbert",
}


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A model's folder.

    Attributes:
      path: where it is.
      reference: as it was asked for.
      model: `config_sentence_transformers.json`.
      modules: class name -> folder of each module, in order.
    """

    path: pathlib.Path
    reference: str
    model: Mapping[str, Any]
    modules: Mapping[str, pathlib.Path]

    def config(self, module: str) -> dict[str, Any]:
        """A module's config.json."""
        return read_json(self.modules[module] / "config.json")


def read(reference: str) -> Portable | None:
    """Reads a SparseEncoder, SentenceTransformer, MultiVectorEncoder or ColBERT.

    Args:
      reference: a folder or hub id.

    Returns:
      The retriever; None if the folder is of another kind.

    Raises:
      InputError: it cannot be read, or does something that no head here does.
    """
    path = pathlib.Path(huggingface.fetch(reference, _SMALL))
    if not (path / _MODULES).is_file():
        config = path / "config.json"
        config = read_json(config) if config.is_file() else {}
        if stanford.ARCHITECTURE not in (config.get("architectures") or ()):
            return None
        path = pathlib.Path(huggingface.fetch(reference, ("*",)))
        return stanford.read(reference, path, config)
    model = path / _MODEL
    model = read_json(model) if model.is_file() else {}
    paths = [entry["path"] for entry in _listed(path / _MODULES)]
    wanted = [f"{below}/*" if below else "*.json" for below in paths]
    path = pathlib.Path(
        huggingface.fetch(reference, (*wanted, "*.json", "*.safetensors"))
    )
    names = [
        _class(entry["type"], path / _MODULES) for entry in _listed(path / _MODULES)
    ]
    if names == ["Router"]:
        return _inference_free(path / paths[0], reference, model)
    folder = _Folder(
        path, reference, model, dict(zip(names, (path / p for p in paths), strict=True))
    )
    head = _head(names, model, path)
    return _READERS[head](folder)


def _listed(path: pathlib.Path) -> list[dict[str, str]]:
    modules = huggingface.read_list(path)
    for entry in modules:
        if not isinstance(entry, dict) or not {"type", "path"} <= entry.keys():
            raise CheckpointError(
                f"{path}: {entry!r} is no module with a type and a path. Save the"
                " model again."
            )
    return modules


def _class(dotted: str, path: pathlib.Path) -> str:
    if not dotted.startswith(_PROGRAMS):
        raise CheckpointError(
            f"{path} names the module {dotted!r}, which is code of its own and is not"
            " run. Use a model of sentence-transformers' own modules."
        )
    # In release 5 the masked LM was a module of its own.
    name = dotted.rpartition(".")[2]
    return "Transformer" if name == "MLMTransformer" else name


def _head(names: list[str], model: Mapping[str, Any], path: pathlib.Path) -> str:
    if model.get("model_type") == "ColBERT":  # PyLate, which masks without a module
        names = [*names, "MultiVectorMask", "Normalize"]
    for sequence, head in _SEQUENCES.items():
        left = list(names)
        for name in sequence:
            if left and left[0] == name.strip("[]"):
                left.pop(0)
            elif not name.startswith("["):
                break
        else:
            if not left:
                return head
    known = "; ".join(f"{', '.join(s)} ({head})" for s, head in _SEQUENCES.items())
    raise CheckpointError(
        f"{path / _MODULES} lists {', '.join(names)}, which no head here computes."
        f" Those that one does: {known}; Router (inference-free)."
    )


def _portable(folder: _Folder, spec: RetrieverSpec, params, lengths) -> Portable:
    """With the prompts, of which a marker becomes a marker again."""
    root = folder.modules["Transformer"]
    tokens = Tokens(root)
    markers, fields = [], {}
    for role, prompt in _prompts(folder.model).items():
        marker, rest = split_prompt(prompt, tokens)
        fields |= {f"{role}_marker": marker, f"{role}_prompt": rest}
        markers.append(marker)
    special = tuple(i for i in tokens.special.values() if i not in markers)
    spec = dataclasses.replace(spec, special_ids=special, **fields)
    return Portable(spec, params, root, None, folder.reference, **lengths)


def _prompts(model: Mapping[str, Any]) -> dict[str, str]:
    """What encode_query and encode_document put before a text."""
    given = {k: v for k, v in (model.get("prompts") or {}).items() if v is not None}
    default = given.get(model.get("default_prompt_name")) or ""
    # An empty one is there by default.
    given = {"query": "", "document": ""} | given if "prompts" in model else given
    found = {"query": given.get("query", default)}
    names = [name for name in ("document", "passage", "corpus") if name in given]
    found["document"] = given[names[0]] if names else default
    for role in found:
        prefix = model.get(f"{role}_prefix") or ""  # PyLate
        found[role] = prefix + found[role].removeprefix(prefix)
    return found


def _transformer(
    folder: _Folder, *, masked_lm: bool
) -> tuple[huggingface.Checkpoint, dict[str, int], dict[str, Any]]:
    """The Hugging Face model, the lengths of texts, and the module's config."""
    root = folder.modules["Transformer"]
    path = root / _TRANSFORMER
    config = read_json(path) if path.is_file() else {}
    output = "logits" if masked_lm else "last_hidden_state"
    task = "fill-mask" if masked_lm else "feature-extraction"
    text = (config.get("modality_config") or {}).get("text", {})
    _expect(
        path,
        config,
        {
            # The folder of a masked LM of release 5 does not name its task.
            "transformer_task": (task, None),
            "modality_config": (config.get("modality_config"),),
            "module_output_name": ("token_embeddings", None),
            "do_lower_case": (False, None),
            **{
                key: (config.get(key),)
                for key in ("max_seq_length", "unpad_inputs", "query_expansion")
            },
            **{f"{role}_length": (config.get(f"{role}_length"),) for role in _ROLES},
        },
    )
    _expect(path, text, {"method": ("forward",), "method_output_name": (output,)})
    found = huggingface.load_checkpoint(str(root))
    if masked_lm and "head" not in found.params:
        raise CheckpointError(
            f"{root}: the weights hold no masked-LM head, which SpladePooling needs."
        )
    most = found.config.max_length
    cut = config.get("max_seq_length") or Tokens(root).config.get("model_max_length")
    cut = min(int(cut or most), most)
    lengths = {
        f"{role}_length": min(config.get(f"{role}_length") or cut, most)
        for role in _ROLES
    }
    return found, lengths, config


_ROLES = ("query", "document")


def _expect(path: pathlib.Path, config: Mapping[str, Any], known: dict) -> None:
    """Refuses values, and keys that are set, other than the known ones."""
    for key, value in config.items():
        if value not in known.get(key, (None, [], {}, "")):
            wanted = ", ".join(repr(v) for v in known.get(key, ()) if v is not None)
            raise CheckpointError(
                f"{path}: {key} is {value!r}, which no head here does"
                + (f"; it may be {wanted}." if wanted else ".")
            )


def _splade_pooling(path: pathlib.Path) -> str:
    config = read_json(path / "config.json")
    size = ("embedding_dimension", "word_embedding_dimension")
    _expect(
        path / "config.json",
        config,
        {
            "pooling_strategy": ("max", "sum"),
            "activation_function": ("relu",),
            "chunk_size": (config.get("chunk_size"),),
            **{key: (config.get(key),) for key in size},
        },
    )
    return config.get("pooling_strategy", "max")


def _splade(folder: _Folder) -> Portable:
    found, lengths, _ = _transformer(folder, masked_lm=True)
    _refuse_cut(folder, None)
    spec = RetrieverSpec(
        "splade",
        found.config,
        tied="decoder" not in found.params["head"]["mlm"],
        pooling=_splade_pooling(folder.modules["SpladePooling"]),
    )
    return _portable(folder, spec, found.params, lengths)


def _refuse_cut(folder: _Folder, active: int | None) -> None:
    most = folder.model.get("max_active_dims")
    if most not in (None, active):
        raise CheckpointError(
            f"{folder.path / _MODEL}: max_active_dims is {most}, which no head here"
            " does. Set it to null there, and prune vectors when they are encoded."
        )


def _inference_free(path: pathlib.Path, reference: str, model) -> Portable:
    router = read_json(path / _ROUTER)
    types = {
        name: _class(dotted, path / _ROUTER) for name, dotted in router["types"].items()
    }
    kinds = {
        route: [types[name] for name in names]
        for route, names in router["structure"].items()
    }
    wanted = {
        "query": ["SparseStaticEmbedding"],
        "document": ["Transformer", "SpladePooling"],
    }
    if kinds != wanted:
        raise CheckpointError(
            f"{path / _ROUTER} routes {kinds}, but only {wanted} is implemented."
        )
    modules = {kind: path / name for name, kind in types.items()}
    folder = _Folder(path, reference, model, modules)
    found, lengths, _ = _transformer(folder, masked_lm=True)
    _refuse_cut(folder, None)
    table = modules["SparseStaticEmbedding"]
    own, size = Tokens(table), found.config.vocab_size
    if "path" in (config := read_json(table / "config.json")):
        raise CheckpointError(
            f"{table / 'config.json'} takes the weights from {config['path']!r}. Save"
            " the model again with sentence-transformers, which writes them as tensors."
        )
    weight_V = read_weights(table / _WEIGHTS, {"weight": (len(own.vocabulary),)})
    weight_V = weight_V["weight"]
    if len(weight_V) > size or own.ids(_SAMPLE) != Tokens(modules["Transformer"]).ids(
        _SAMPLE
    ):
        raise CheckpointError(
            f"{table} and {modules['Transformer']} have different vocabularies; here a"
            " query's words are the terms of documents."
        )
    around = own.library.num_special_tokens_to_add(False)
    cut = int(own.config.get("model_max_length") or found.config.max_length)
    lengths["query_length"] = min(cut + around, found.config.max_length)
    spec = RetrieverSpec(
        "splade",
        found.config,
        tied="decoder" not in found.params["head"]["mlm"],
        pooling=_splade_pooling(modules["SpladePooling"]),
        queries="static",
    )
    weight_V = np.pad(weight_V, (0, size - len(weight_V)))
    params = dict(found.params)
    params["head"] = params["head"] | {"static": weight_V}
    made = _portable(folder, spec, params, lengths)
    special = list(made.spec.special_ids)
    if np.any(weight_V[special]):
        raise CheckpointError(
            f"{table / _WEIGHTS}: the special tokens"
            f" {[i for i in special if weight_V[i]]} have weights other than 0, but"
            " here they are no words of a query. Set them to 0 if that is meant."
        )
    ones_V = np.ones_like(weight_V)
    ones_V[special] = 0
    if config.get("frozen") and np.array_equal(weight_V, ones_V):
        params["head"] = found.params["head"]
        spec = dataclasses.replace(made.spec, queries="words")
        return dataclasses.replace(made, spec=spec, params=params)
    return made


_SAMPLE = ("A text, as others are: 12 Wörter.", "другой текст", "文字")


def _embedding(folder: _Folder, encoder: EncoderConfig) -> tuple[dict, dict]:
    """Fields of the spec, and parameters, of what makes an embedding of states."""
    fields, head = _projection(folder, encoder, "sentence_embedding")
    path = folder.modules["Pooling"] / "config.json"
    config = read_json(path)
    modes = [
        key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    mode = config.get("pooling_mode", modes[0] if len(modes) == 1 else modes)
    mode = mode[0] if isinstance(mode, list) and len(mode) == 1 else mode
    if mode not in ("cls", "mean"):
        raise CheckpointError(f"{path}: pooling {mode!r}; here it is cls or mean.")
    if config.get("include_prompt") is False and any(_prompts(folder.model).values()):
        raise CheckpointError(
            f"{path}: include_prompt is false, but here a prompt's tokens take part."
        )
    return fields | {"pooling": mode}, head


def _projection(
    folder: _Folder, encoder: EncoderConfig, feature: str
) -> tuple[dict, dict]:
    """Fields of the spec, and parameters, of the Dense and Normalize modules."""
    fields = {"normalize": "Normalize" in folder.modules}
    if fields["normalize"] and any(folder.modules["Normalize"].glob("config.json")):
        path = folder.modules["Normalize"] / "config.json"
        names = ("module_input_name", "module_output_name")
        _expect(path, read_json(path), {name: (feature, None) for name in names})
    if "Dense" not in folder.modules:
        return fields, {}
    path = folder.modules["Dense"]
    config = {"bias": True, "activation_function": "Tanh"} | folder.config("Dense")
    size = config.get("out_features")
    _expect(
        path / "config.json",
        config
        | {"activation_function": config["activation_function"].rpartition(".")[2]},
        {
            "in_features": (encoder.hidden_size,),
            "out_features": (size,),
            "bias": (False,),
            "activation_function": ("Identity",),
            "use_residual": (False, None),
            "module_input_name": (feature, None),
            "module_output_name": (feature, None),
        },
    )
    shape = {"linear.weight": (size, encoder.hidden_size)}
    weight = read_weights(path / _WEIGHTS, shape)["linear.weight"]
    kernel = np.array(weight.T, order="C")
    return fields | {"embedding_size": size}, {"projection": {"kernel": kernel}}


def _params(found: huggingface.Checkpoint, head: dict) -> dict:
    params = {"encoder": found.params["encoder"]}
    return params | {"head": head} if head else params


def _dense(folder: _Folder) -> Portable:
    found, lengths, _ = _transformer(folder, masked_lm=False)
    fields, head = _embedding(folder, found.config)
    spec = RetrieverSpec("dense", found.config, **fields)
    return _portable(folder, spec, _params(found, head), lengths)


def _csr(folder: _Folder) -> Portable:
    found, lengths, _ = _transformer(folder, masked_lm=False)
    fields, dense = _embedding(folder, found.config)
    path = folder.modules["SparseAutoEncoder"]
    config = folder.config("SparseAutoEncoder")
    size = fields.get("embedding_size", found.config.hidden_size)
    numbers = ("hidden_dim", "k", "k_aux", "dead_threshold")
    _expect(
        path / "config.json",
        config,
        {
            "input_dim": (size,),
            "normalize": (False, None),
            **{key: (config.get(key),) for key in numbers},
        },
    )
    # The defaults are sentence-transformers'.
    latents = config.get("hidden_dim", 512)
    active = config.get("k", 8)
    _refuse_cut(folder, active)
    spec = RetrieverSpec(
        "csr",
        found.config,
        latents=latents,
        active_latents=active,
        revived_latents=config.get("k_aux", 512),
        dead_after=config.get("dead_threshold", 30),
        **fields,
    )
    # Encoder and decoder are one tensor, saved under the name of either.
    names = huggingface.tensor_names(path / _WEIGHTS)
    tied = [n for n in ("encoder.weight", "decoder.linear.weight") if n in names]
    tied = tied or ["decoder.linear.weight"]
    shapes = {name: (latents, size) for name in tied}
    shapes |= {"latent_bias": (latents,), "pre_bias": (size,)}
    shapes |= {"stats_last_nonzero": (latents,)}
    state = read_weights(path / _WEIGHTS, shapes)
    if not np.array_equal(state[tied[0]], state[tied[-1]]):
        raise CheckpointError(
            f"{path / _WEIGHTS}: {' and '.join(tied)} differ; they are one tensor."
        )
    autoencoder = {
        "kernel": np.array(state[tied[0]].T, order="C"),
        "bias": state["latent_bias"],
        "center": state["pre_bias"],
        # Theirs is 1 after a step in which a latent is active, ours 0.
        "idle": (state["stats_last_nonzero"] - 1).astype(np.float32),
    }
    head = {"autoencoder": autoencoder} | ({"dense": dense} if dense else {})
    return _portable(folder, spec, _params(found, head), lengths)


def _colbert(folder: _Folder) -> Portable:
    found, lengths, config = _transformer(folder, masked_lm=False)
    fields, head = _projection(folder, found.config, "token_embeddings")
    tokens = Tokens(folder.modules["Transformer"])
    most = found.config.max_length
    if folder.model.get("model_type") == "ColBERT":
        config = _pylate(folder.model) | config
        words = folder.model.get("skiplist_words")
        words = list(string.punctuation) if words is None else words
        fields["normalize"] = True
        for role in _ROLES:
            if config.get(f"{role}_length"):
                lengths[f"{role}_length"] = min(config[f"{role}_length"], most)
    else:
        path = folder.modules["MultiVectorMask"] / "config.json"
        mask = read_json(path)
        words = mask.get("skiplist_words") or []
        _expect(
            path,
            mask,
            {
                "skiplist_words": (words, None),
                "skiplist_tasks": (["document"], "document", None)
                if words
                else (mask.get("skiplist_tasks"),),
            },
        )
    expansion = config.get("query_expansion")
    expand_id = -1
    if expansion:
        path = folder.modules["Transformer"] / _TRANSFORMER
        length = expansion["length"]
        # Of strategy "min", longer queries would be cut later.
        longest = (
            length if expansion["strategy"] == "fixed" else lengths["query_length"]
        )
        if expansion.get("attend") or longest != length or length > most:
            raise CheckpointError(
                f"{path}: query_expansion is {expansion}; here no token attends to the"
                f" added ones, and queries have one length, {most} at most."
            )
        lengths["query_length"] = length
        name = expansion.get("token") or tokens.role("mask_token")
        expand_id = tokens.vocabulary.get(name, -1)
        if expand_id < 0:
            raise CheckpointError(
                f"{path}: queries are filled up with {name!r}, which is not in the"
                " vocabulary."
            )
    spec = RetrieverSpec(
        "colbert",
        found.config,
        expand_id=expand_id,
        skip_ids=_ids(words, tokens),
        **fields,
    )
    return _portable(folder, spec, _params(found, head), lengths)


def _pylate(model: Mapping[str, Any]) -> dict[str, Any]:
    """PyLate's settings as the Transformer's config has them."""
    knobs = {f"{role}_length": model.get(f"{role}_length") for role in _ROLES}
    if model.get("do_query_expansion") is not False:
        knobs["query_expansion"] = {
            "strategy": "fixed",
            "attend": bool(model.get("attend_to_expansion_tokens")),
            "length": knobs.pop("query_length") or _PYLATE_LENGTH,
        }
    return knobs


def _ids(words: list[str], tokens: Tokens) -> tuple[int, ...]:
    """Those of words that are one token."""
    vocabulary = tokens.vocabulary
    return tuple(sorted({vocabulary[word] for word in words if word in vocabulary}))


_READERS = {"splade": _splade, "dense": _dense, "csr": _csr, "colbert": _colbert}
