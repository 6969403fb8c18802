"""Writes an adapter for PEFT: what LoRA has trained beside a Hugging Face model.

PEFT adds lora_B lora_A alpha / r to the weight of a layer [out, in], and the transpose
of it to a table. Products that are one layer there have factors of their own here: side
by side, as blocks of matrices of a larger rank, they are the same.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lsrjax import finite
from lsrjax.checkpoint import saved_model
from lsrjax.checkpoint.saved_model import SavedModel
from lsrjax.convert import names
from lsrjax.convert.layouts import layout_of
from lsrjax.distributed.trees import named
from lsrjax.errors import InputError
from lsrjax.json_files import write_json
from lsrjax.models.backbones.names import WORD

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_IN_FRONT = "base_model.model."  # of every layer's name
_PLAIN = "Possible are the formats of merged weights, such as"


def write_peft(model: SavedModel, folder: pathlib.Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Raises:
      InputError: what was trained is no adapter of layers of a Hugging Face model.
    """
    adapt: Mapping[str, Any] = (model.config or {}).get("adapt", {})
    lora: Mapping[str, Any] = adapt.get("lora", {})
    base = _base(model)
    if others := ", ".join(name for name in adapt if name != "lora"):
        raise _refused(model, f"{others} of config.adapt was also trained")
    if also := lora.get("also"):
        raise _refused(model, f"parameters of {also!r} were trained whole (also)")
    layers = dict(_layers(model))
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for module, (kind, a, b) in layers.items():
        ranks[module] = len(a)
        end = "" if kind else ".weight"
        for letter, factor in (("A", a), ("B", b)):
            key = f"{_IN_FRONT}{module}.lora{kind}_{letter}{end}"
            tensors[key] = np.ascontiguousarray(factor, np.float32)
    scale = float(np.ravel(next(iter(model.factors.values()))["scale"])[0])
    rank = min(ranks.values())
    larger = {module: own for module, own in ranks.items() if own != rank}
    masked_lm = model.spec.head == "splade"
    config = {
        "peft_type": "LORA",
        "task_type": None if masked_lm else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": larger,
        "alpha_pattern": {module: scale * own for module, own in larger.items()},
        "target_modules": sorted(layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    finite.check_tree(tensors, model.name)
    write_json(folder / CONFIG, config)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def _base(model: SavedModel) -> str:
    """The name of the Hugging Face model whose weights were adapted."""
    init: Mapping[str, Any] = (model.config or {}).get("init", {})
    one: Any = next(iter(init.values()), None)
    base = str(one.get("model", "")) if isinstance(one, Mapping) else ""
    if len(init) != 1 or not base:
        raise _refused(model, f"it starts from {', '.join(init) or 'random weights'}")
    if base.startswith("stage:") or saved_model.holds_stages(base):
        raise _refused(
            model,
            f"it starts from {base}, which is no Hugging Face model (export that one"
            " first, and train the adapter beside the export)",
        )
    return base


def _layers(model: SavedModel) -> Iterator[tuple[str, tuple[str, Any, Any]]]:
    """Each adapted layer's name, and its (kind, A, B): kind is "" or "_embedding"."""
    layout = layout_of(model.spec.encoder.family)
    prefix = layout.prefixes[0 if model.spec.head == "splade" else -1]
    found: dict[str, dict[str, Any]] = {"a": {}, "b": {}}
    for path, parts in model.factors.items():
        part, _, below = path.partition("/")
        if part == "encoder":
            found["a"][below] = parts["a"]
            b = parts["b"]
            products = b.ndim - parts["scale"].ndim == 3
            found["b"][below] = np.swapaxes(b, -3, -2) if products else b
        elif path not in layout.heads or model.spec.head != "splade":
            raise _refused(model, f"{path} is adapted, which its base does not have")
        else:
            yield _layer(layout.heads[path], path, parts["a"], parts["b"])
    family = model.spec.encoder.family
    apart = {
        letter: named(names.by_layer(names.unflatten_tree(flat), family))
        for letter, flat in found.items()
    }
    for below, a in apart["a"].items():
        path = f"encoder/{below}"
        if below == WORD and getattr(model.spec.options, "tied", False):
            raise _refused(
                model, "the word table, which is the decoder too, is adapted"
            )
        name = names.to_hf_name(path, family, prefix)
        yield _layer(name, path, a, apart["b"][below])


def _layer(name: str, path: str, a, b) -> tuple[str, tuple[str, Any, Any]]:
    """A layer's name and factors as PEFT has them, from ours of one layer."""
    module = name.removesuffix(".weight")
    if a.ndim == 3:  # products side by side: [in, n, r] and [r, n, out]
        inner, n, r = a.shape
        blocks = np.zeros((n, b.shape[-1], n, r), np.float32)
        for i in range(n):
            blocks[i, :, i] = b[:, i].T
        return module, ("", a.reshape(inner, n * r).T, blocks.reshape(-1, n * r))
    if path.endswith("embedding"):
        return module, ("_embedding", a.T, b.T)
    if path.endswith("decoder"):
        return module, ("", b, a)
    return module, ("", a.T, b.T)


def _refused(model: SavedModel, why: str) -> InputError:
    return InputError(
        f"--to peft cannot hold {model.name}: {why}. {_PLAIN} {model.spec.head},"
        " lsrjax."
    )
