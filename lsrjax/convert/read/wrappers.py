"""Removes other programs' wrappers from the names of tensors.

A program that saves a wrapped module saves the wrapper's name too: torch.compile
`_orig_mod`, data parallelism `module`, FSDP and activation checkpointing theirs, a
trainer's class `model`, PEFT `base_model.model` and, in a layer that an adapter
changes, `base_layer`. None of them changes what the model computes; an adapter does.
"""

from collections.abc import Mapping
from pathlib import Path

from absl import logging

from lsrjax.convert.read.tensors import CheckpointError, Stored

# Parts of a name that no layout of ours has, at any place.
_ANYWHERE = {
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "base_layer",
}
_IN_FRONT = (["base_model", "model"], ["model"])
_ADAPTER = ("lora_", "ia3_", "modules_to_save", "original_module")
MERGE = (
    "Merge it into the model with PEFT, model.merge_and_unload().save_pretrained(…),"
    " and give that folder."
)


def taken_off(stored: Mapping[str, Stored], folder: Path) -> dict[str, Stored]:
    """The tensors by their names without wrappers; logs the wrappers.

    Raises:
      CheckpointError: an adapter of PEFT is not merged, or two tensors have one name.
    """
    found: dict[str, Stored] = {}
    adapters: dict[str, dict[str, Stored]] = {}
    around: dict[str, None] = {}
    for name, one in stored.items():
        bare, wrappers = _bare(name)
        around |= dict.fromkeys(wrappers)
        if layer := _adapted(bare):
            adapters.setdefault(layer, {})[bare.removeprefix(f"{layer}.")] = one
        elif bare in found:
            raise CheckpointError(
                f"{folder}: {found[bare].name} and {name} are both {bare} without what"
                " was wrapped around them. Save the bare model's state_dict()."
            )
        else:
            found[bare] = one
    changed = [layer for layer, parts in adapters.items() if not _is_zero(parts)]
    if changed:
        shown = ", ".join(changed[:5]) + ", …" * (len(changed) > 5)
        raise CheckpointError(
            f"{folder} holds an adapter of PEFT (LoRA or its like) that is not merged,"
            f" of {len(changed)} layers: {shown}. {MERGE}"
        )
    if adapters:
        around["adapters of PEFT that are zero"] = None
    if around:
        logging.warning(
            "%s: taken off the names of tensors: %s.", folder, ", ".join(around)
        )
    return found


def _bare(name: str) -> tuple[str, list[str]]:
    """A tensor's name without wrappers, and the wrappers."""
    parts = name.split(".")
    around = [part for part in parts if part in _ANYWHERE]
    parts = [part for part in parts if part not in _ANYWHERE]
    while front := next((f for f in _IN_FRONT if parts[: len(f)] == f), None):
        around.append(".".join(front))
        parts = parts[len(front) :]
    return ".".join(parts), around


def _adapted(name: str) -> str:
    """The layer that an adapter's tensor changes; empty for other tensors."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.startswith(_ADAPTER):
            return ".".join(parts[:place])
    return ""


def _is_zero(parts: Mapping[str, Stored]) -> bool:
    """Whether a layer's adapter adds nothing: one factor of each product is 0."""
    products: dict[str, list[bool]] = {}
    for name, one in parts.items():
        kind, _, which = name.partition(".")
        if kind not in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
            return False
        which = f"{kind[:-1]} {which}"
        products.setdefault(which, []).append(not one.floats().any())
    return all(any(zeros) for zeros in products.values())
