"""The names and shapes of our parameters in other programs, both ways.

Our side is the nested dictionary of `nnx.to_pure_dict`: `encoder/...` as in
`lsrjax.models.encoder.Encoder`, and the heads of `lsrjax.models.heads`:
`head/mlm/{transform/...,decoder,bias}`, `head/connector/{kernel,bias}`,
`head/echo/{kernel,bias,scale}`. The other side is a flat PyTorch state dict in one of
these layouts:

- 'bert', 'xlm-roberta': a Hugging Face encoder, alone or with its masked-LM head;
- 'milco': the reference implementation of MILCO.

A masked LM whose decoder is the word table (a tied one) has no `head/mlm/decoder`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def _encoder() -> dict[str, str]:
    """Path below `encoder/` -> name behind the encoder's prefix; {i} is the layer."""
    names = {
        "embeddings/word/embedding": "embeddings.word_embeddings.weight",
        "embeddings/position/embedding": "embeddings.position_embeddings.weight",
        "embeddings/token_type/embedding": "embeddings.token_type_embeddings.weight",
        "embeddings/norm/scale": "embeddings.LayerNorm.weight",
        "embeddings/norm/bias": "embeddings.LayerNorm.bias",
    }
    for ours, weight, theirs in (
        ("attention/query", "kernel", "attention.self.query"),
        ("attention/key", "kernel", "attention.self.key"),
        ("attention/value", "kernel", "attention.self.value"),
        ("attention/out", "kernel", "attention.output.dense"),
        ("attention_norm", "scale", "attention.output.LayerNorm"),
        ("up", "kernel", "intermediate.dense"),
        ("down", "kernel", "output.dense"),
        ("output_norm", "scale", "output.LayerNorm"),
    ):
        names[f"layers/{{i}}/{ours}/{weight}"] = f"encoder.layer.{{i}}.{theirs}.weight"
        names[f"layers/{{i}}/{ours}/bias"] = f"encoder.layer.{{i}}.{theirs}.bias"
    return names


def _mlm(transform: str, norm: str, head: str) -> dict[str, str]:
    return {
        "head/mlm/transform/dense/kernel": f"{transform}.weight",
        "head/mlm/transform/dense/bias": f"{transform}.bias",
        "head/mlm/transform/norm/scale": f"{norm}.weight",
        "head/mlm/transform/norm/bias": f"{norm}.bias",
        "head/mlm/decoder": f"{head}.decoder.weight",
        "head/mlm/bias": f"{head}.bias",
    }


def _bert_mlm(head: str) -> dict[str, str]:
    return _mlm(f"{head}.transform.dense", f"{head}.transform.LayerNorm", head)


_ENCODER = _encoder()


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Names of one program.

    Attributes:
      prefixes: of the encoder; the first one beside a masked-LM head, the last one
        where the encoder is alone.
      heads: path -> name of everything but the encoder.
      required: parts of the tree that every model of this layout has.
      optional: single paths that a model may lack.
      bias_copy: second name of the masked-LM bias. It is the one in use: where the
        two differ, its values count.
    """

    prefixes: tuple[str, ...]
    heads: dict[str, str]
    required: frozenset[str]
    optional: frozenset[str]
    bias_copy: str


LAYOUTS = {
    "bert": _Layout(
        prefixes=("bert.", ""),
        heads=_bert_mlm("cls.predictions"),
        required=frozenset({"encoder"}),
        optional=frozenset({"head/mlm/decoder"}),
        bias_copy="cls.predictions.decoder.bias",
    ),
    "xlm-roberta": _Layout(
        prefixes=("roberta.", ""),
        heads=_mlm("lm_head.dense", "lm_head.layer_norm", "lm_head"),
        required=frozenset({"encoder"}),
        optional=frozenset({"head/mlm/decoder"}),
        bias_copy="lm_head.decoder.bias",
    ),
    "milco": _Layout(
        prefixes=("m_model.",),
        heads={
            "head/connector/kernel": "projector.weight",
            "head/connector/bias": "projector.bias",
            **_bert_mlm("mlm_head.predictions"),
            "head/echo/kernel": "echo.weight",
            "head/echo/bias": "echo.bias",
            "head/echo/scale": "scale",
        },
        required=frozenset({"encoder", "head/connector", "head/mlm"}),
        optional=frozenset(),
        bias_copy="mlm_head.predictions.decoder.bias",
    ),
}

# Tensors of other programs that no model here uses, and why.
DROPPED = {
    r"((bert|roberta|m_model)\.)?pooler\..*": "sentence-pair head of pre-training",
    r"((bert|roberta|m_model)\.)?embeddings\.position_ids": "0, 1, 2, ... as a buffer",
    r"cls\.seq_relationship\..*": "next-sentence head of pre-training",
    r"en_lsr\..*": "frozen teacher that the MILCO reference saves with its student",
}
_DROPPED = re.compile("|".join(DROPPED))
# The oldest BERT checkpoints carry TensorFlow's names.
_TENSORFLOW = {".gamma": ".weight", ".beta": ".bias"}


def to_hf_name(path: str, layout: str, prefix: str | None = None) -> str:
    """Name in a layout of one parameter, 'encoder/layers/3/up/kernel' for example.

    Args:
      path: path in our parameter tree, parts separated by '/'.
      layout: one of LAYOUTS.
      prefix: the encoder's prefix; None is the one beside a masked-LM head.

    Raises:
      ValueError: the layout or the path is unknown.
    """
    prefix = _layout(layout).prefixes[0] if prefix is None else prefix
    table = _table(layout, prefix, _num_layers([path], _LAYER_PATH))
    if path not in table:
        raise ValueError(
            f"No parameter {path!r} in layout {layout!r}; known: "
            + ", ".join([f"encoder/{known}" for known in _ENCODER])
            + "".join(f", {known}" for known in _layout(layout).heads)
            + "."
        )
    return table[path]


def to_hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the other program of the parameter at `path` with our `shape`."""
    if path.startswith("head/echo/"):
        # One output: a vector here, a matrix with one row (and scalars with an axis)
        # there.
        return (1, *shape)
    # Kernels are [in, out] here, [out, in] in PyTorch.
    return shape[::-1] if path.endswith("/kernel") else shape


def export_state(params: Mapping[str, Any], layout: str) -> dict[str, np.ndarray]:
    """Flat state dict of a parameter tree, or of its gradients.

    An encoder alone gets no prefix in the Hugging Face layouts, an encoder with a
    masked-LM head gets the one of the model class ('bert.', 'roberta.'). An untied
    decoder brings its own copy of the bias in these two layouts, as transformers reads
    that one then.

    Args:
      params: nested dictionary; the layers are keyed by int or str.
      layout: one of LAYOUTS.

    Returns:
      name -> C-ordered array, dtypes unchanged.

    Raises:
      ValueError: parameters are missing or have no name in the layout; lists them.
    """
    flat = flatten_tree(params)
    rules = _layout(layout)
    prefix = rules.prefixes[0 if "head" in params else -1]
    table = _table(layout, prefix, _num_layers(flat, _LAYER_PATH))
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
        # A vector (LexEcho's kernel) is its own transpose.
        value = value.T if path.endswith("/kernel") else value
        shape = to_hf_shape(path, flat[path].shape)
        state[table[path]] = np.array(value, order="C").reshape(shape)
    if "head/mlm/decoder" in rules.optional and "head/mlm/decoder" in flat:
        state[rules.bias_copy] = state[table["head/mlm/bias"]].copy()
    return state


def import_state(state: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Parameter tree of a flat state dict; the inverse of `export_state`.

    Tensors in DROPPED are left out. A decoder with the values of the word table counts
    as tied to it and is left out too, except in layout 'milco', where the two belong
    to different vocabularies.

    Args:
      state: name -> array.
      layout: one of LAYOUTS.

    Returns:
      Nested dictionary of numpy arrays, dtypes unchanged, layers keyed by int.

    Raises:
      ValueError: tensors are missing or unknown; lists them.
    """
    rules = _layout(layout)
    named = {}
    for name, value in state.items():
        if not _DROPPED.fullmatch(name):
            stem, dot, last = name.rpartition(".")
            named[stem + _TENSORFLOW.get(dot + last, dot + last)] = value
    prefix = _find_prefix(named, layout)
    num_layers = _num_layers(named, re.escape(prefix) + r"encoder\.layer\.(\d+)\.")
    table = _table(layout, prefix, num_layers)
    if rules.bias_copy in named:
        named[table["head/mlm/bias"]] = named.pop(rules.bias_copy)
    paths = {name: path for path, name in table.items()}
    found = {paths[name]: value for name, value in named.items() if name in paths}
    missing = _missing_paths(rules, table, found)
    unknown = [name for name in named if name not in paths]
    if missing or unknown:
        raise ValueError(
            f"The state dict does not fit layout {layout!r} with {num_layers} layers "
            f"(encoder names start with {prefix + 'embeddings.'!r})."
            + _listing("missing", [table[path] for path in missing])
            + _listing("left over", [_shown(name, named[name]) for name in unknown])
            + "\nUse a checkpoint of the encoder, alone or with its masked-LM head, or "
            "remove the tensors that are left over from the file."
        )
    tree: dict[str, Any] = {}
    for path, value in found.items():
        value = np.asarray(value)
        if path.startswith("head/echo/"):
            if value.shape[:1] != (1,):
                raise ValueError(
                    f"{_shown(table[path], value)} should have 1 row, the one output "
                    "of LexEcho; the checkpoint is of another model."
                )
            value = value[0]
        elif path.endswith("/kernel"):
            value = np.array(value.T, order="C")
        _insert(tree, path, value)
    if "head/mlm/decoder" in rules.optional and "head/mlm/decoder" in found:
        word = tree["encoder"]["embeddings"]["word"]["embedding"]
        if np.array_equal(tree["head"]["mlm"]["decoder"], word):
            del tree["head"]["mlm"]["decoder"]
    return tree


def flatten_tree(tree: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    """Nested dictionary -> {'parts/of/the/path': leaf}, each path after `above`."""
    flat = {}
    for key, value in tree.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping):
            flat |= flatten_tree(value, path + "/")
        else:
            flat[path] = value
    return flat


_LAYER_PATH = r"encoder/layers/(\d+)/"


def _layout(layout: str) -> _Layout:
    if layout not in LAYOUTS:
        raise ValueError(f"Unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    return LAYOUTS[layout]


def _num_layers(names: Iterable[str], pattern: str) -> int:
    matches = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _table(layout: str, prefix: str, num_layers: int) -> dict[str, str]:
    """Path -> name of every parameter a model of this layout can have."""
    table = {}
    for path, name in _ENCODER.items():
        for i in range(num_layers) if "{i}" in path else [0]:
            table["encoder/" + path.format(i=i)] = prefix + name.format(i=i)
    return table | _layout(layout).heads


def _part(path: str) -> str:
    """'encoder', or 'head/mlm' and its like: what a model has as a whole or lacks."""
    return "/".join(path.split("/")[: 2 if path.startswith("head/") else 1])


def _missing_paths(
    rules: _Layout, table: Mapping[str, str], found: Mapping[str, Any]
) -> list[str]:
    """Paths that a model with the parts seen in `found` must have and lacks."""
    parts = rules.required | {_part(path) for path in found}
    return [
        path
        for path in table
        if _part(path) in parts and path not in found and path not in rules.optional
    ]


def _find_prefix(state: Mapping[str, Any], layout: str) -> str:
    word = _ENCODER["embeddings/word/embedding"]
    prefixes = _layout(layout).prefixes
    for prefix in prefixes:
        if prefix + word in state:
            return prefix
    expected = " or ".join(repr(prefix + word) for prefix in prefixes)
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
