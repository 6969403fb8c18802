"""The names, shapes and types of tensors that a config.json promises."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
from flax import nnx

from lsrjax.convert.layouts import classifier
from lsrjax.convert.names import by_layer, to_hf_name, to_hf_shape, unflatten_tree
from lsrjax.convert.read import tensors
from lsrjax.convert.read.tensors import CheckpointError, Stored
from lsrjax.distributed import trees
from lsrjax.models import retriever
from lsrjax.models.backbones.encoder_config import EncoderConfig
from lsrjax.models.backbones.table import BACKBONES, backbone
from lsrjax.models.retriever import RetrieverSpec

_MOST_LAYERS = 1000


def layout_of(raw: Mapping[str, Any], config: EncoderConfig) -> str:
    """The layout of the tensors, by the model class in config.json."""
    kinds = architectures(raw)
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return config.family
    if backbone(config.family).classifier is None:
        able = [name for name, one in BACKBONES.items() if one.classifier]
        raise CheckpointError(
            f"config.json names {', '.join(kinds)}; cross-encoders are implemented for"
            f" {' and '.join(able)}. Choose one of these."
        )
    return classifier(config.family)


def architectures(raw: Mapping[str, Any]) -> list[str]:
    """The model classes that a config.json names."""
    names = raw.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def promised_by(raw: Mapping[str, Any], config: EncoderConfig) -> dict[str, Any]:
    """Zeros for the parameters that config.json promises."""
    parts = {
        "head": has_language_model(raw, config),
        "classifier": layout_of(raw, config) != config.family,
    }
    return promised(
        config,
        *(part for part, there in parts.items() if there),
        tied=is_tied(raw, config),
    )


def has_language_model(raw: Mapping[str, Any], config: EncoderConfig) -> bool:
    """Whether config.json names a class with a (masked) language model's head."""
    ending = backbone(config.family).language_model
    return any(kind.endswith(ending) for kind in architectures(raw))


def is_tied(raw: Mapping[str, Any], config: EncoderConfig) -> bool:
    """Whether that head's decoder is the word table."""
    tied = raw.get("tie_word_embeddings")
    return backbone(config.family).tied if tied is None else bool(tied)


def promised(config: EncoderConfig, *parts: str, tied: bool = True) -> dict[str, Any]:
    """Zeros for the parameters of a model that was not read.

    `parts` are "head" for a masked-LM head, "classifier" for a classifier.
    """
    if config.num_layers > _MOST_LAYERS:
        raise CheckpointError(
            f"A model of {config.num_layers:,} layers cannot be planned; {_MOST_LAYERS}"
            " at most. Correct num_hidden_layers in its config.json."
        )
    shapes = expected_shapes(config, parts, of_layers=False)
    if tied:
        shapes.pop("head/mlm/decoder", None)
    tree = stand_ins(shapes)
    if "head" in parts:
        tree.setdefault("head", {"mlm": {}})  # a tied decoder alone
    return tree


def stand_ins(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A tree of zeros that take no memory, with these paths and shapes."""
    return unflatten_tree({path: tensors.zeros(s) for path, s in shapes.items()})


def check_against_config(
    found: Mapping[str, Stored],
    config: EncoderConfig,
    layout: str,
    may_miss: str,
    *,
    needs_decoder: bool,
) -> dict[str, tuple[int, ...]]:
    """Compares tensors with the config, see `check_shapes`."""
    layers = {path.split("/")[2] for path in found if path.startswith("encoder/layers")}
    # One extra layer suffices to show that some are missing; a config may name any
    # number.
    count = min(config.num_layers, len(layers) + 1)
    bounded = dataclasses.replace(config, num_layers=count)
    shapes = expected_shapes(bounded, {path.split("/")[0] for path in found})
    if "head/mlm/decoder" not in found and not needs_decoder:
        shapes.pop("head/mlm/decoder", None)
    return check_shapes(found, shapes, layout, may_miss)


def check_shapes(
    found: Mapping[str, Stored],
    wanted: Mapping[str, tuple[int, ...]],
    layout: str,
    may_miss: str,
) -> dict[str, tuple[int, ...]]:
    """Compares tensors with the shapes of our parameters, without reading them.

    Args:
      found: by our path, in the other program's shapes.
      wanted: by our path, in our shapes.
      may_miss: regex of whole names, in the other program, that may be missing.

    Returns:
      Path -> shape, in the other program, of missing tensors that may be missing.

    Raises:
      ValueError: others are missing, left over, of another shape, or not floats.
    """
    names = {path: to_hf_name(path, layout) for path in found.keys() | wanted.keys()}
    theirs = {path: to_hf_shape(path, shape) for path, shape in wanted.items()}
    absent = {
        path: theirs[path]
        for path in sorted(theirs)  # their initial values are drawn in this order
        if path not in found and re.fullmatch(may_miss, names[path])
    }
    problems = tensors.misfits(
        {names[path]: one.shape for path, one in found.items()},
        {names[path]: shape for path, shape in theirs.items() if path not in absent},
    )
    problems += [
        f"{names[path]}: {one.dtype}, floating point expected"
        for path, one in found.items()
        if one.dtype not in tensors.FLOATING
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else ""
        raise ValueError(
            f"{len(problems)} tensors do not fit config.json:"
            + "".join(f"\n  {problem}" for problem in problems[:40])
            + more
            + "\nThe two are of different models; take both from the same checkpoint."
        )
    return absent


def expected_shapes(
    config: EncoderConfig, parts: Collection[str], *, of_layers: bool = True
) -> dict[str, tuple[int, ...]]:
    """Path -> shape of our parameters, from the modules that will hold them.

    Args:
      parts: "head" for a masked-LM head, "classifier" for a classifier.
      of_layers: use the paths of `by_layer`.
    """
    # For an encoder alone, use a head without parameters.
    spec = RetrieverSpec("dense", config)
    if "head" in parts:
        spec = RetrieverSpec.of("splade", config, tied=False)
    _, tree = retriever.split(spec)
    if "classifier" in parts:
        make = backbone(config.family).classifier
        assert make  # see `layout_of`
        model = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))
        tree["classifier"] = nnx.to_pure_dict(nnx.state(model))
    if of_layers:
        split = partial(by_layer, layout=config.family)
        tree["encoder"] = jax.eval_shape(split, tree["encoder"])
    return trees.shapes(tree)
