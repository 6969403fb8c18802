"""How a config.json says which layers are local, and what RoPE is in each kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lsrjax.errors import InputError
from lsrjax.models.backbones.encoder_config import EncoderConfig, unlike

FULL, LOCAL = "full_attention", "sliding_attention"
# A kind of RoPE -> the numbers that it needs, in the order of `rope_scaling`.
RESCALED = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def read_pattern(config: Mapping[str, Any], kinds: Sequence[str]) -> tuple[bool, ...]:
    """Whether layers are full, one period, by `layer_types` or else these kinds."""
    count = config.get("num_hidden_layers")
    given = config.get("layer_types")
    if given is None or type(count) is not int:
        given = kinds
    elif (
        not isinstance(given, list)
        or len(given) != count
        or any(kind not in (FULL, LOCAL) for kind in given)
    ):
        raise ValueError(
            f"layer_types has to name {FULL} or {LOCAL} for each of the {count}"
            f" layers, and is {given!r}. Take the config.json of the weights."
        )
    elif all(kind == kinds[i % len(kinds)] for i, kind in enumerate(given)):
        given = kinds  # of a period that fewer layers do not show
    full = [kind == FULL for kind in given]
    period = next(
        n
        for n in range(1, len(full) + 1)
        if all(one == full[i % n] for i, one in enumerate(full))
    )
    return tuple(full[:period])


def read_rope(
    config: Mapping[str, Any],
    unsaid: float,
    kind: str = "",
    old: str = "rope_theta",
) -> tuple[float, tuple[float, ...]]:
    """RoPE's base and the numbers that rescale it, in the words of either release.

    Args:
      config: the content of config.json.
      unsaid: the base without a word about it.
      kind: of layers, if each has its own `rope_parameters`.
      old: the base's key before transformers 5.

    Raises:
      ValueError: a kind of RoPE that is not implemented.
    """
    own = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    if kind and own:
        if not isinstance(own, dict) or not own.keys() & {FULL, LOCAL}:
            raise ValueError(
                f"rope_parameters is {own!r}, which has to name {FULL} and {LOCAL}."
                " Take the config.json of the weights."
            )
        own = own.get(kind) or {}
    if not isinstance(own, dict) or not isinstance(scaling, dict):
        raise ValueError(f"rope_parameters is {own!r}, and rope_scaling {scaling!r}.")
    # Where both are given, transformers uses `rope_scaling`.
    if kind:
        given = own | ({} if kind == LOCAL else scaling)
    else:
        given = dict(scaling or own)
    theta = given.pop("rope_theta", config.get(old))
    given.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
    if given["partial_rotary_factor"] in (None, 1):
        del given["partial_rotary_factor"]
    old_name = given.pop("type", "default")
    name = given.pop("rope_type", old_name)
    original = "original_max_position_embeddings"
    if original in given and config.get(original) is not None:
        given[original] = config[original]  # as in transformers
    where = f"The RoPE of {kind or 'the config'}"
    if name not in RESCALED or set(given) != set(RESCALED[name]):
        raise ValueError(
            f"{where} (rope_parameters, rope_scaling) is {name!r} with {given!r};"
            f" implemented are {', '.join(RESCALED)} with their own numbers. Choose a"
            " checkpoint with one of these."
        )
    theta = unsaid if theta is None else theta
    numbers = tuple(given[key] for key in RESCALED[name])
    for key, number in zip(
        ("rope_theta", *RESCALED[name]), (theta, *numbers), strict=True
    ):
        if wanted := unlike("theta", number):
            raise ValueError(
                f"{where}: {key} is {number!r}, which has to be {wanted}. Take the"
                " config.json of the weights."
            )
    return theta, numbers


def check_pairs(config: EncoderConfig) -> None:
    """Refuses heads whose states cannot be turned in pairs."""
    if config.head_width % 2:
        raise InputError(
            f"hidden_size {config.hidden_size} over num_heads {config.num_heads} is"
            " odd, and RoPE turns pairs; correct one of them in the config."
        )


def kind_of(numbers: tuple[float, ...]) -> str:
    """The kind of RoPE of `rescaled`'s numbers."""
    return next(name for name, keys in RESCALED.items() if len(keys) == len(numbers))


def rescaled(
    speeds: np.ndarray,
    factor: float,
    low: float = 0.0,
    high: float = 0.0,
    original: float = 0.0,
) -> np.ndarray:
    """Speeds of RoPE for longer texts, in float32 as in transformers.

    All by a factor, or as in Llama 3.1: slow ones by the factor, fast ones not, those
    between (by their wavelength over the `original` length) by a mixture.
    """
    slow = speeds / np.float32(factor)
    if not original:
        return slow
    wavelengths = np.float32(2 * np.pi) / speeds
    share = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(
        high - low
    )
    share = np.clip(share, 0, 1).astype(np.float32)
    return (1 - share) * slow + share * speeds
