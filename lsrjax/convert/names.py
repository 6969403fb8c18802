"""Maps our parameters to names and shapes of other programs, and back.

Our side is the nested dictionary of `nnx.to_pure_dict`: `encoder/...` as the family's
file in `lsrjax.models.backbones` says, and the heads of `lsrjax.models.heads`:
`head/mlm/{transform/...,decoder,bias}`, `head/connector/{kernel,bias}`,
`head/echo/{kernel,bias,scale}`, `classifier/{dense,out}/{kernel,bias}`. The other side
is a flat PyTorch state dict in a layout of `lsrjax.convert.layouts`.

A masked LM whose decoder is tied to the word table has no `head/mlm/decoder`.

We stack parameters over an encoder's layers, and queries, keys and values in one
tensor; other programs do not. Names correspond to the paths of `by_layer`.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from lsrjax.convert.layouts import DROPPED, Layout, layout_of
from lsrjax.distributed import trees
from lsrjax.models.backbones.names import WORD, Names

# The oldest BERT checkpoints have TensorFlow's names.
_TENSORFLOW = {".gamma": ".weight", ".beta": ".bias"}


def to_hf_name(path: str, layout: str, prefix: str | None = None) -> str:
    """Name of one parameter in a layout, for example 'encoder/layers/3/up/kernel'.

    `prefix` is the encoder's; None is that of an encoder with a masked-LM head.

    Raises:
      ValueError: the layout or the path is unknown.
    """
    prefix = layout_of(layout).prefixes[0] if prefix is None else prefix
    languages = _languages([path], layout)
    table = _table(layout, prefix, _num_layers([path], _LAYER_PATH), languages)
    if path not in table:
        raise ValueError(
            f"No parameter {path!r} in layout {layout!r}; known: "
            + ", ".join(
                [f"encoder/{known}" for known in layout_of(layout).names.encoder]
            )
            + "".join(f", {known}" for known in layout_of(layout).heads)
            + "."
        )
    return table[path]


def to_hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the other program of the parameter at `path` with our `shape`."""
    if path.startswith("head/echo/"):
        # One output: theirs has a first axis of length 1.
        return (1, *shape)
    if _folds(path) > 1:
        # Several products side by side: [in, n, out] here, [n out, in] in PyTorch.
        shape = (*shape[:-2], shape[-2] * shape[-1])
    # Kernels are [in, out] here, [out, in] in PyTorch.
    return shape[::-1] if path.endswith("/kernel") else shape


def export_state(params: Mapping[str, Any], layout: str) -> dict[str, np.ndarray]:
    """Flat state dict, name -> C-ordered array, of a parameter tree or its gradients.

    In the Hugging Face layouts, an encoder alone gets no prefix, and an encoder with a
    masked-LM head gets that of the model class ('bert.', 'roberta.'). With an untied
    decoder, these layouts also get the copy of the bias that transformers then reads.

    Raises:
      ValueError: lists parameters that are missing or have no name in the layout.
    """
    flat = trees.named({**params, "encoder": by_layer(params["encoder"], layout)})
    rules = layout_of(layout)
    alone = not {"head", "classifier"} & params.keys()
    prefix = rules.prefixes[-1 if alone else 0]
    languages = _languages(flat, layout)
    table = _table(layout, prefix, _num_layers(flat, _LAYER_PATH), languages)
    missing = _missing_paths(rules, table, flat)
    unknown = [path for path in flat if path not in table]
    if missing or unknown:
        raise ValueError(
            f"The parameters do not fit layout {layout!r}."
            + _listing("missing", missing)
            + _listing("left over", [_shown(path, flat[path]) for path in unknown])
            + "\nChoose the layout of the model that the parameters belong to."
        )
    state = {}
    for path, value in flat.items():
        value = np.asarray(value)
        if _folds(path) > 1:
            value = value.reshape(*value.shape[:-2], -1)
        # A vector (LexEcho's kernel) is its own transpose.
        value = value.T if path.endswith("/kernel") else value
        shape = to_hf_shape(path, flat[path].shape)
        state[table[path]] = np.array(value, order="C").reshape(shape)
    if rules.bias_copy and rules.tied and "head/mlm/decoder" in flat:
        state[rules.bias_copy] = state[table["head/mlm/bias"]].copy()
    return state


def import_state(state: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Parameter tree of a flat state dict; the inverse of `export_state`.

    Leaves out the tensors in DROPPED, and a decoder equal to the word table, which
    counts as tied; in layout 'milco', the two belong to different vocabularies, so the
    decoder stays.

    Raises:
      ValueError: lists tensors that are missing or unknown.
    """
    names = import_names(state, layout)
    for path, name in names.items():
        if path.startswith("head/echo/") and state[name].shape[:1] != (1,):
            raise ValueError(
                f"{_shown(name, state[name])} should have 1 row, the one output of"
                " LexEcho; the checkpoint is of another model."
            )
    return import_tree({path: state[name] for path, name in names.items()}, layout)


def import_names(
    state: Mapping[str, Any], layout: str, *, missing: str = "", left_over: str = ""
) -> dict[str, str]:
    """Path -> name in the state dict, for every parameter in it.

    Args:
      state: name -> anything with a `shape`.
      missing: regex of whole names that may be missing.
      left_over: regex of whole names that may be left over.

    Raises:
      ValueError: lists other tensors that are missing or unknown.
    """
    rules = layout_of(layout)
    used = set(rules.heads.values())
    named = {}  # name in the layout -> in the state dict
    unused = re.compile("|".join([*DROPPED, *rules.names.unused]))
    for own in state:
        name = _usual(own, rules.names)
        if name in used or not unused.fullmatch(name):
            named[name] = own
    for other, name in rules.names.aliases.items():
        if other in named and name not in named:
            named[name] = named.pop(other)
    decoder = rules.heads.get("head/mlm/decoder")
    words = rules.names.encoder[WORD]
    both = any(prefix + words in named for prefix in rules.prefixes)
    if rules.tied and decoder in named and not both:
        # A tied tensor, saved under its other name.
        named[rules.prefixes[0] + words] = named.pop(decoder)
    prefix = _find_prefix({name: state[own] for name, own in named.items()}, layout)
    layers = (n for n in rules.names.encoder.values() if "{i}" in n)
    layer, _ = next(layers).split("{i}")
    num_layers = _num_layers(named, re.escape(prefix + layer) + r"(\d+)\.")
    languages = _languages(named, layout, prefix)
    table = _table(layout, prefix, num_layers, languages)
    if rules.bias_copy in named:
        named[table["head/mlm/bias"]] = named.pop(rules.bias_copy)
    paths = {name: path for path, name in table.items()}
    found = {paths[name]: own for name, own in named.items() if name in paths}
    lacking = [table[path] for path in _missing_paths(rules, table, found)]
    lacking = [
        name
        for name in lacking
        if not re.fullmatch(missing, name) and not re.fullmatch(rules.names.zeros, name)
    ]
    unknown = [
        _shown(name, state[own])
        for name, own in named.items()
        if name not in paths and not re.fullmatch(left_over, own)
    ]
    if lacking or unknown:
        raise ValueError(
            f"The state dict does not fit layout {layout!r} with {num_layers} layers "
            f"(encoder names start with {prefix + 'embeddings.'!r})."
            + _listing("missing", lacking)
            + _listing("left over", unknown)
            + "\nUse a checkpoint of the encoder, alone or with its masked-LM head, or"
            " allow them by name: lsrjax convert --to lsrjax has"
            " --allow_missing and --allow_left_over."
        )
    return found


def import_tree(values: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Parameter tree of arrays in the other program's layout, by our paths."""
    ours = {}
    for path, value in values.items():
        value = np.asarray(value)
        if path.startswith("head/echo/"):
            value = value[0]
        elif path.endswith("/kernel"):
            value = np.array(value.T, order="C")
        if (n := _folds(path)) > 1:
            value = value.reshape(*value.shape[:-1], n, value.shape[-1] // n)
        ours[path] = value
    tree = unflatten_tree(ours)
    if layout_of(layout).tied and "head/mlm/decoder" in values:
        word = tree["encoder"]["embeddings"]["word"]["embedding"]
        if np.array_equal(tree["head"]["mlm"]["decoder"], word):
            del tree["head"]["mlm"]["decoder"]
    return {**tree, "encoder": stacked(tree["encoder"], layout)}


# Products that are one kernel [in, n, out] here, and one [n out, in] there.
_FOLDED = {"attention/qkv": 3, "attention/qk": 2, "glu": 2}


def _folds(path: str) -> int:
    """The products that a parameter holds side by side."""
    module, _, _ = path.rpartition("/")
    found = (n for name, n in _FOLDED.items() if module.endswith(f"/{name}"))
    return next(found, 1)


def by_layer(encoder: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Splits an encoder's parameters by layer, as other programs have them.

    `layers` gets int keys, and each layer `attention/{query,key,value}` and
    `glu/{up,gate}` where these are tensors of their own in the layout.
    """
    names = layout_of(layout).names
    rest = {key: value for key, value in encoder.items() if key not in _LAYERS}
    layers = [encoder["first"]] if names.first_apart and "first" in encoder else []
    if encoder.get("layers"):
        count = len(jax.tree.leaves(encoder["layers"])[0])
        layers += [
            jax.tree.map(lambda x, i=i: x[i], encoder["layers"]) for i in range(count)
        ]
    if not layers:
        return rest
    split = partial(_split, apart=names.apart) if names.apart else dict
    return {**rest, "layers": {i: split(one) for i, one in enumerate(layers)}}


_LAYERS = ("first", "layers")


def _split(
    layer: Mapping[str, Any], apart: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    flat = trees.named(layer)
    for whole, parts in apart.items():
        for kind in ("kernel", "bias"):
            if (value := flat.pop(f"{whole}/{kind}", None)) is not None:
                for place, part in enumerate(parts):
                    flat[f"{part}/{kind}"] = value[..., place, :]
    return unflatten_tree(flat)


def _joined(
    layer: Mapping[str, Any], apart: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    flat = trees.named(layer)
    for whole, parts in apart.items():
        for kind in ("kernel", "bias"):
            if f"{parts[0]}/{kind}" in flat:
                values = [flat.pop(f"{part}/{kind}") for part in parts]
                flat[f"{whole}/{kind}"] = np.stack(values, axis=-2)
    return unflatten_tree(flat)


def stacked(encoder: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """The inverse of `by_layer`, for numpy arrays."""
    if "layers" not in encoder:
        return dict(encoder)
    names = layout_of(layout).names
    join = partial(_joined, apart=names.apart) if names.apart else dict
    layers = [join(encoder["layers"][i]) for i in sorted(encoder["layers"])]
    found = {key: value for key, value in encoder.items() if key != "layers"}
    if names.first_apart:
        found["first"], *layers = layers
    if layers:
        found["layers"] = jax.tree.map(lambda *x: np.stack(x), *layers)
    return found


def unflatten_tree(values: Mapping[str, Any]) -> dict[str, Any]:
    """{'parts/of/the/path': leaf} -> nested dictionary, layers keyed by int."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        _insert(tree, path, value)
    return tree


_LAYER_PATH = r"encoder/layers/(\d+)/"


def _usual(name: str, names: Names) -> str:
    """A tensor's name in the layout, of one in other words."""
    stem, dot, last = name.rpartition(".")
    name = stem + _TENSORFLOW.get(dot + last, dot + last)
    if names.other_prefix and name.startswith(names.other_prefix):
        return names.prefixes[0] + name.removeprefix(names.other_prefix)
    return name


def _num_layers(names: Iterable[str], pattern: str) -> int:
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _languages(
    found: Iterable[str], layout: str, prefix: str | None = None
) -> list[str]:
    """The languages of adapters, from names in the other program or from our paths.

    `prefix` is the encoder's in the other program; None: `found` are our paths.
    """
    patterns = [
        f"encoder/{path}" if prefix is None else prefix + name
        for path, name in layout_of(layout).names.encoder.items()
        if _LANGUAGE in path
    ]
    matching = [
        re.compile(
            re.escape(pattern)
            .replace(re.escape("{i}"), r"\d+")
            .replace(re.escape(_LANGUAGE), "([^/.]+)")
        )
        for pattern in patterns
    ]
    if not matching:
        return []
    matches = (one.fullmatch(name) for name in found for one in matching)
    return sorted({match[1] for match in matches if match})


_LANGUAGE = "{language}"


def _table(
    layout: str, prefix: str, num_layers: int, languages: Iterable[str] = ()
) -> dict[str, str]:
    """Path -> name of every parameter that a model of this layout can have."""
    table = {}
    for path, name in layout_of(layout).names.encoder.items():
        for i in range(num_layers) if "{i}" in path else [0]:
            for own in languages if _LANGUAGE in path else [""]:
                ours, theirs = (x.format(i=i, language=own) for x in (path, name))
                table["encoder/" + ours] = prefix + theirs
    return table | dict(layout_of(layout).heads)


def _part(path: str) -> str:
    """'encoder', 'head/mlm', …: a part that a model has as a whole or not at all."""
    return "/".join(path.split("/")[: 2 if path.startswith("head/") else 1])


def _missing_paths(
    rules: Layout, table: Mapping[str, str], found: Mapping[str, Any]
) -> list[str]:
    """Paths that are required by the parts in `found`, but missing."""
    parts = rules.required | {_part(path) for path in found}
    return [
        path
        for path in table
        if _part(path) in parts
        and path not in found
        and not re.fullmatch(rules.may_lack, path)
    ]


def _find_prefix(state: Mapping[str, Any], layout: str) -> str:
    rules = layout_of(layout)
    words = rules.names.encoder[WORD]
    for prefix in rules.prefixes:
        if prefix + words in state:
            return prefix
    expected = " or ".join(repr(prefix + words) for prefix in rules.prefixes)
    raise ValueError(
        f"The state dict has no {expected}, so it is not of layout {layout!r}."
        + _listing("found", [_shown(name, value) for name, value in state.items()])
        + "\nUse a checkpoint of the encoder, alone or with its masked-LM head."
    )


def _insert(tree: dict[Any, Any], path: str, value: np.ndarray) -> None:
    *above, last = path.split("/")
    for part in above:
        tree = tree.setdefault(int(part) if part.isdigit() else part, {})
    tree[last] = value


def _shown(name: str, value: Any) -> str:
    return f"{name} {list(value.shape)}"


def _listing(title: str, lines: list[str], limit: int = 40) -> str:
    if not lines:
        return ""
    shown = lines[:limit]
    if len(lines) > limit:
        shown.append(f"... and {len(lines) - limit} more")
    return f"\n{title} ({len(lines)}):" + "".join(f"\n  {line}" for line in shown)
