"""Reads adapters of PEFT (LoRA): their base model with the products added to it.

Of a layer's weight [out, in], lora_A is [r, in] and lora_B [out, r]; of a table's
[rows, D], lora_embedding_A is [r, rows] and lora_embedding_B [D, r]. What is added is
alpha / r B A, or its transpose to a table (Hu et al. 2022, arXiv:2106.09685).
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lsrjax.convert.read import hub, tensors
from lsrjax.convert.read.tensors import CheckpointError, Stored, check_types, read_json
from lsrjax.convert.read.wrappers import MERGE

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<letter>[AB])"
    r"(\.weight)?"
)
# What changes a model in other ways, or nothing here.
_OTHER = (
    *("use_dora", "modules_to_save", "fan_in_fan_out", "layer_replication"),
    *("trainable_token_indices", "lora_bias", "target_parameters", "arrow_config"),
    *("use_qalora", "alora_invocation_tokens", "use_bdlora"),
    *("kasa_config", "monteclora_config"),
)


# Ways of starting the factors that leave the base model as it is; others (PiSSA, OLoRA,
# …) take something off its weights, whenever the adapter is put on it.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter, without its tensors.

    Attributes:
      folder: has its config and, if weights are read, its tensors.
      base: the model beside which it was trained: a folder or hub id.
      config: the content of adapter_config.json, its types checked.
    """

    folder: Path
    base: str
    config: Mapping[str, Any]


def find(reference: str, *, values: bool = True) -> Adapter | None:
    """The adapter in a folder or repository; None if that has a model of its own.

    Raises:
      CheckpointError: an adapter that is not LoRA, does more than it, or names no base.
    """
    files = ("config.json", CONFIG, *(WEIGHTS,) * values)
    folder = hub.fetch(reference, files)
    path = folder / CONFIG
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    config = read_json(path)
    kinds: dict[str, type | tuple[type, ...]] = {
        **{"peft_type": str, "base_model_name_or_path": str, "use_rslora": bool},
        **{"r": int, "lora_alpha": (int, float), "bias": str, "alpha_pattern": dict},
    }
    check_types(path, config, kinds)
    alphas = config.get("alpha_pattern") or {}
    check_types(path, alphas, dict.fromkeys(alphas, (int, float)))
    if config.get("lora_alpha", 8) is None:
        raise CheckpointError(f"{path}: lora_alpha is null; it is a number. {MERGE}")
    base = config.get("base_model_name_or_path")
    more = [name for name in _OTHER if config.get(name)]
    if config.get("bias") not in (None, "none"):
        more.append("bias")
    if (start := config.get("init_lora_weights")) not in _STARTS:
        more.append(f"init_lora_weights to {start!r}")
    if config.get("peft_type") != "LORA" or more or not base:
        why = f" that sets {', '.join(more)}" if more else ""
        why += "" if base else ", which names no base_model_name_or_path"
        raise CheckpointError(f"{folder} holds an adapter of PEFT alone{why}. {MERGE}")
    return Adapter(folder, base, config)


def adapted(stored: Mapping[str, Stored], adapter: Adapter) -> dict[str, Stored]:
    """The tensors of the base model with the adapter's products added when read.

    Raises:
      CheckpointError: the adapter has other tensors, or does not fit.
    """
    path = adapter.folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{adapter.folder} has {CONFIG} and no {WEIGHTS}. Save the adapter again,"
            " with save_pretrained of PEFT."
        )
    layers: dict[str, dict[str, Stored]] = {}
    for name, one in tensors.open_file(path).items():
        match = _TENSOR.fullmatch(name)
        if not match:
            raise CheckpointError(f"{path}: {name} is no factor of LoRA. {MERGE}")
        kind = f"{match['table'] or ''}{match['letter']}"
        layers.setdefault(match["module"], {})[kind] = one
    found = dict(stored)
    for module, factors in layers.items():
        name = _name(module, found, adapter)
        found[name] = _sum(found[name], factors, _scale(module, factors, adapter))
    return found


def _name(module: str, stored: Mapping[str, Stored], adapter: Adapter) -> str:
    """The weight of a module, whose name may begin further in or out."""
    names = []
    for name in stored:
        own, end, _ = name.rpartition(".weight")
        whole, inner = f".{own}", f".{module}"
        if end and (whole.endswith(inner) or inner.endswith(whole)):
            names.append(name)
    if len(names) != 1:
        found = f"several ({', '.join(names)})" if names else "none"
        raise CheckpointError(
            f"{adapter.folder} adapts {module}, of which {adapter.base} has {found}."
            " Name the base model that it was trained beside in"
            f" base_model_name_or_path of {CONFIG}."
        )
    return names[0]


def _is_of(pattern: str, module: str, adapter: Adapter) -> bool:
    """Whether a pattern is of a module; the first that is counts, as in PEFT."""
    try:
        return bool(re.match(rf"(.*\.)?({pattern})$", module))
    except re.error as error:
        raise CheckpointError(
            f"{adapter.folder / CONFIG}: {pattern!r} of alpha_pattern is no regular"
            f" expression ({error}). {MERGE}"
        ) from error


def _scale(module: str, factors: Mapping[str, Stored], adapter: Adapter) -> float:
    config = adapter.config
    a = factors.get("A") or factors.get("embedding_A")
    rank = a.shape[0] if a else 0
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if _is_of(pattern, module, adapter):
            alpha = own
            break
    root = 0.5 if config.get("use_rslora") else 1.0
    return alpha / max(rank, 1) ** root


def _sum(one: Stored, factors: Mapping[str, Stored], scale: float) -> Stored:
    """A weight that has its product added when it is read."""
    table = "embedding_A" in factors
    a, b = (factors.get(f"{'embedding_' * table}{letter}") for letter in "AB")
    shape = one.shape[::-1] if table else one.shape
    if (
        a is None
        or b is None
        or len(factors) != 2
        or (b.shape[:1] + a.shape[1:], a.shape[:1]) != (shape, b.shape[1:])
    ):
        shapes = {kind: list(factor.shape) for kind, factor in factors.items()}
        raise CheckpointError(
            f"{next(iter(factors.values())).path}: the factors of {one.name}"
            f" {list(one.shape)} are {shapes}, which do not fit. Take the adapter and"
            " its base model from the same run."
        )

    def read() -> np.ndarray:
        product = b.floats() @ a.floats()
        return one.floats() + np.float32(scale) * (product.T if table else product)

    return dataclasses.replace(one, dtype="float32", read=read)
