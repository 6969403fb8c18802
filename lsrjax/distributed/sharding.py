"""The mesh, the partition rules of parameters, and the placement of arrays.

The mesh has two axes. Texts are divided over `data`; attention heads, the inner width
of feed-forward blocks and the vocabularies over `model`. The compiler inserts the
communication, so a computation is written once, for all texts and terms, and its result
does not depend on the mesh. `fsdp` also divides parameters and the optimizer's state
over `data`, and gathers a layer's parameters where they are used.

The functions work in the mesh that `jax.set_mesh` has set, and without one.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lsrjax.distributed.trees import path_name
from lsrjax.errors import InputError

DATA, MODEL = "data", "model"
Pooled = TypeVar("Pooled")  # an array, or a tuple of them


@dataclasses.dataclass(frozen=True)
class Rule:
    """The partition of one kind of parameter.

    Attributes:
      pattern: regex for the end of the parameter's path.
      axes: mesh axis of each dimension.
      otherwise: the axes if the sizes do not divide; None: replicated.
      heads: whole attention heads stay together.
      keys: these are the heads of keys and values, which may be fewer.
    """

    pattern: str
    axes: tuple[str | None, ...]
    otherwise: tuple[str | None, ...] | None = None
    heads: bool = False
    keys: bool = False


RULES = (
    # A table over a vocabulary that does not divide is stored by hidden dimension; the
    # pooling redistributes it into even slices of the vocabulary.
    Rule("embeddings/word/embedding", (MODEL, None), (None, MODEL)),
    Rule("embeddings/word/prompt", (None, None)),
    Rule("embeddings/word/prompt_start", ()),
    Rule("mlm/decoder", (MODEL, None), (None, MODEL)),
    Rule("mlm/bias", (MODEL,)),
    Rule("embeddings/(position|token_type)/embedding", (None, None)),
    Rule("attention/qkv/kernel", (None, None, MODEL), heads=True),
    Rule("attention/qkv/bias", (None, MODEL), heads=True),
    Rule("attention/out/kernel", (MODEL, None), heads=True),
    Rule("attention/out/bias", (None,)),
    Rule("glu/kernel", (None, None, MODEL)),
    Rule("glu/bias", (None, MODEL)),
    Rule("up/kernel", (None, MODEL)),
    Rule("up/bias", (MODEL,)),
    Rule("down/kernel", (MODEL, None)),
    Rule("down/bias", (None,)),
    Rule("(norm|attention_norm|output_norm|final_norm)/(scale|bias)", (None,)),
    Rule("(connector|transform/dense)/kernel", (None, None)),
    Rule("(connector|transform/dense)/bias", (None,)),
    Rule("static", (MODEL,)),
    Rule("(echo|weigh)/kernel", (None,)),
    Rule("(echo|weigh)/(bias|scale)", ()),
    Rule("(projection|autoencoder)/kernel", (None, None)),
    Rule("projection/bias", (None,)),
    Rule("autoencoder/(bias|center|idle)", (None,)),
)


# The parameters of all layers of an encoder, stacked.
_STACKED = re.compile("(^|/)layers(?=/)")
# The parts of an adapted matrix, see `lsrjax.models.low_rank`.
_LOW_RANK = re.compile("/(base|a|b|scale)$")


def is_stacked(name: str) -> bool:
    """Whether a parameter's first axis is that of an encoder's layers."""
    return _STACKED.search(name) is not None


def make_mesh(
    data: int, model: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh over all devices of all processes, or over `devices`.

    Args:
      data: devices that texts are divided over; -1: the remaining ones.
      model: devices that heads, inner widths and vocabularies are divided over; or -1.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    sizes = [data, model]
    if sizes.count(-1) == 1:
        free = sizes.index(-1)
        sizes[free] = count // max(sizes[1 - free], 1)
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise InputError(
            f"config.mesh is data {data} x model {model}, but there are {count} devices"
            f" ({devices[0].device_kind}). Their product has to be {count}; -1 stands"
            " for the rest."
        )
    return jax.make_mesh(
        tuple(sizes),
        (DATA, MODEL),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


@contextlib.contextmanager
def on_mesh(data: int, model: int) -> Iterator[Mesh]:
    """Sets a mesh of all devices, and yields it; `make_mesh` has the sizes."""
    mesh = make_mesh(data, model)
    with jax.set_mesh(mesh):
        yield mesh


def on_one_device():
    """A context without a mesh: its computation stays in this process."""
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh that is set; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains each dimension of `x` to a mesh axis (None: not divided)."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def gathered(
    params: dict, num_heads: int, rules: Sequence[Rule] = (), *, key_heads: int = 0
) -> dict:
    """Parameters of a layer for computation: not divided over `data`.

    The nested dict's paths may begin anywhere in the model's; the rest as of `layout`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return params
    model = axis_size(MODEL)
    heads = (num_heads, key_heads or num_heads)

    def gather(path, leaf):
        axes, _ = _axes(path_name(path), leaf.shape, model, heads, rules)
        return constrain(leaf, *axes)

    return jax.tree_util.tree_map_with_path(gather, params)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The partition of each parameter by path, and notes on what does not divide."""

    mesh: Mesh
    specs: Mapping[str, P]
    shapes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]

    def shardings(self, tree):
        """Sharding of each leaf of a train state, or of parameters.

        A leaf whose path ends in a parameter's, and which has its shape (like the
        optimizer's moments), has the parameter's sharding; all others are replicated.
        """

        def of(path, leaf):
            parts = path_name(path).split("/")
            for first in range(len(parts)):
                name = "/".join(parts[first:])
                if self.shapes.get(name) == np.shape(leaf):
                    return NamedSharding(self.mesh, self.specs[name])
            return NamedSharding(self.mesh, P())

        return jax.tree_util.tree_map_with_path(of, tree)

    def abstract(self, tree):
        """A train state, or parameters, as shapes with their shardings."""
        return abstract(tree, self.shardings(tree))


def abstract(tree, shardings):
    """The shapes of arrays with shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        shardings,
    )


def layout_of(spec, params: dict, mesh: Mesh, fsdp: bool) -> Layout:
    """`layout` of a model, by the spec of its architecture."""
    encoder = spec.encoder
    return layout(
        params,
        mesh,
        num_heads=encoder.num_heads,
        key_heads=encoder.key_heads,
        fsdp=fsdp,
        rules=spec.rules,
    )


def layout(
    params: dict,
    mesh: Mesh,
    *,
    num_heads: int,
    fsdp: bool,
    rules: Sequence[Rule] = (),
    key_heads: int = 0,
) -> Layout:
    """Applies the rules to a model.

    Args:
      key_heads: heads of keys and values; 0: as many as of queries.
      fsdp: divide matrices over `data` too, along their largest dimension that divides.
      rules: of a head and an encoder, in addition to `RULES`.

    Raises:
      InputError: a parameter that no rule, or more than one, matches.
    """
    specs, shapes = {}, {}
    heads = (num_heads, key_heads or num_heads)
    undivided: dict[str, list[str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        axes, problem = _axes(name, leaf.shape, mesh.shape[MODEL], heads, rules)
        if problem:
            undivided.setdefault(problem, []).append(name)
        if fsdp:
            axes = _with_data(name, axes, leaf.shape, mesh)
        specs[name], shapes[name] = P(*axes), tuple(leaf.shape)
    notes = [
        f"{problem} ({len(names)} parameters, such as {names[0]})"
        for problem, names in undivided.items()
    ]
    return Layout(mesh, specs, shapes, tuple(notes))


def _axes(
    name, shape, model: int, heads: tuple[int, int], more: Sequence[Rule] = ()
) -> tuple[tuple, str]:
    """Axes of a parameter, and why they differ from those of its rule.

    `heads` are those of queries, and those of keys.
    """
    if is_stacked(name):
        axes, problem = _axes(_STACKED.sub("", name), shape[1:], model, heads, more)
        return (None, *axes), problem
    rules = [r for r in (*RULES, *more) if re.search(rf"(^|/){r.pattern}$", name)]
    part = _LOW_RANK.search(name)
    if not rules and part:
        whole = name[: part.start()]
        rules = [
            _of_part(r, part[1])
            for r in (*RULES, *more)
            if re.search(rf"(^|/){r.pattern}$", whole)
        ]
    if len(rules) != 1 or len(rules[0].axes) != len(shape):
        found = ", ".join(r.pattern for r in rules) or "none"
        raise InputError(
            f"The parameter {name} {tuple(shape)} needs exactly one rule of its rank in"
            f" lsrjax.distributed.sharding.RULES or in the head's own `rules`; found:"
            f" {found}."
        )
    (rule,) = rules
    units = dict(zip(rule.axes, shape, strict=True)).get(MODEL, 0)
    units = heads[rule.keys] if rule.heads and units else units
    if units % model == 0:
        return rule.axes, ""
    what = "attention heads" if rule.heads else "entries"
    problem = f"{units:,} {what} do not divide by mesh.model = {model}: "
    if rule.otherwise and MODEL in rule.otherwise:
        size = dict(zip(rule.otherwise, shape, strict=True))[MODEL]
        if size % model == 0:
            return rule.otherwise, problem + "stored by hidden dimension"
    return (None,) * len(shape), problem + "on every device"


def _of_part(rule: Rule, part: str) -> Rule:
    """The rule of a part of an adapted matrix; the axis of the rank is not divided."""

    def of(axes):
        first, *products, last = axes
        return {
            "base": axes,
            "a": (first, *products, None),
            "b": (*products, None, last),
            "scale": (),
        }[part]

    otherwise = rule.otherwise and of(rule.otherwise)
    return dataclasses.replace(rule, axes=of(rule.axes), otherwise=otherwise)


def _with_data(name, axes, shape, mesh: Mesh) -> tuple:
    if is_stacked(name):
        # The axis of layers is not divided: each layer is gathered where it is used.
        return (None, *_with_data("", axes[1:], shape[1:], mesh))
    if len(shape) < 2:
        return axes
    data = mesh.shape[DATA]
    fitting = [
        (size, place)
        for place, (axis, size) in enumerate(zip(axes, shape, strict=True))
        if axis is None and size % data == 0
    ]
    if not fitting:
        return axes
    _, place = max(fitting)
    return (*axes[:place], DATA, *axes[place + 1 :])


def place(tree, shardings):
    """Places host values, the same in every process, on the devices."""

    def put(value, sharding):
        value = np.asarray(value)
        return jax.make_array_from_callback(
            value.shape, sharding, lambda index: value[index]
        )

    return jax.tree.map(put, tree, shardings)


def local_rows(mesh: Mesh) -> list[int]:
    """The places on the `data` axis at which this process has devices."""
    mine = jax.process_index()
    return [
        row
        for row, devices in enumerate(mesh.devices)
        if any(device.process_index == mine for device in devices.flat)
    ]


def to_global(batch, mesh: Mesh, rows: Sequence[int]):
    """A batch on the mesh, from the rows that this process has read.

    Args:
      batch: tree of host arrays [len(rows) * k, ...]; k may differ between leaves.
      rows: the places on the `data` axis that the arrays are for, in order.

    Returns:
      Arrays [data * k, ...], divided over `data`.
    """
    sharding = over_data(mesh)
    place_of = {row: place for place, row in enumerate(rows)}

    def put(value):
        size = len(value) // len(rows)
        shape = (size * mesh.shape[DATA], *value.shape[1:])

        def piece(index):
            row = (index[0].start or 0) // size
            first = place_of[row] * size
            return value[first : first + size]

        return jax.make_array_from_callback(shape, sharding, piece)

    return jax.tree.map(put, batch)


def over_data(mesh: Mesh) -> NamedSharding:
    """The first dimension divided over `data`."""
    return NamedSharding(mesh, P(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def over_vocabulary(
    pool: Callable[..., Pooled],
    h_BLD: Any,
    w_VD: jax.Array,
    b_V: jax.Array,
    mask_BL,
) -> Pooled:
    """Calls `pool(h, w, b, mask)` on each device's texts and slice of the vocabulary.

    Args:
      pool: returns arrays [B, V], with each term independent of the others.
      h_BLD: hidden states, or a tree of arrays of tokens.
      mask_BL: non-zero at tokens.

    Returns:
      The arrays of `pool`, [B, W], divided over both axes. W is V, rounded up to a
      multiple of the `model` axis by terms whose weights and bias are 0.
    """
    if axis_size(DATA) * axis_size(MODEL) == 1:
        return pool(h_BLD, w_VD, b_V, mask_BL)
    extra = -len(b_V) % axis_size(MODEL)
    if extra:
        w_VD = jax.numpy.pad(w_VD, ((0, extra), (0, 0)))
        b_V = jax.numpy.pad(b_V, (0, extra))
    return jax.shard_map(
        pool,
        in_specs=(P(DATA), P(MODEL), P(MODEL), P(DATA)),
        out_specs=P(DATA, MODEL),
        # The pooling's loops start from constants, which the check mistakes for values
        # that differ between devices.
        check_vma=False,
    )(h_BLD, w_VD, b_V, mask_BL)
