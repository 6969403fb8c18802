"""Ways to spoil bytes, JSON and tensors, drawn from a random generator."""

import copy
import json
import math
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

# Nothing may come of naming it; importing it would show in `sys.modules`.
MODULE = "this"
VALUES = [
    *(None, True, False, 0, 1, -1, 3, 0.5, 2**31, 2**63, 10**30, -1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, "nan", "Infinity"),
    *("", " ", "x", "0", "1.5", "\0", "\ud800", "é\u0301\u202e", "a" * 9999),
    *("../..", "/", "/dev/null", "~", "(", f"{MODULE}.s", "stage:x", "[MASK]"),
    *([], [None], [[]], [math.nan], ["x", 1], [1, 2, 3], {}, {"x": None}),
    *({"content": "x"}, {"type": "x"}, [{"x": 1}], [[[[[[[[]]]]]]]]),
]
_PIECES = [
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b"\t", b","),
    *(b"\\", b'"', b"{", b"}", b"[", b"]", b"null", b"NaN", b"1e999", b"-0", b" "),
    *(b"\\ud800", b"\xed\xa0\x80", b"\xc3", b"\x1b[2J", b"[" * 99_999, b"9" * 5000),
]


def one(rng: np.random.Generator, values):
    """One of some values, as it is."""
    return values[int(rng.integers(len(values)))]


def spoiled_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """Bytes that are flipped, cut, doubled, moved, or have others among them."""
    start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    short = data[start : min(end, start + 40)]
    lines = data.splitlines(keepends=True)
    kind = int(rng.integers(9))
    if kind == 0 and data:
        bit = bytes([data[start - 1] ^ (1 << int(rng.integers(8)))])
        return data[: start - 1] + bit + data[start:] if start else bit + data[1:]
    if kind == 1:
        return data[:start]
    if kind == 2:
        return data[:start] + data[start + len(short) :]
    if kind == 3:
        return data[:start] + short + data[start:]
    if kind == 4 and lines:
        line = one(rng, lines)
        lines.insert(int(rng.integers(len(lines) + 1)), line)
        return b"".join(lines)
    if kind == 5:
        return one(rng, [b"", b"\n", b"{}", b"[]", b"null", b"\0" * 64, b"x\ty\n"])
    if kind == 6:
        return data.decode("utf-8", "replace").encode(
            one(rng, ["utf-16", "utf-8-sig", "utf-32"])
        )
    if kind == 7:
        return data.replace(b"\n", one(rng, [b"\r", b"\r\n", b"\n\n", b"\0"]))
    return data[:start] + one(rng, _PIECES) + data[start:]


def spoiled_value(rng: np.random.Generator, value):
    """JSON of which something is replaced, left out, doubled or renamed."""
    value = copy.deepcopy(value)
    inner = list(_inner(value))
    if not inner:
        return one(rng, VALUES)
    holder, key = one(rng, inner)
    kind = int(rng.integers(6))
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[one(rng, ["x", "", str(key).upper(), f"{key} "])] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] = one(rng, [-holder[key], holder[key] + 1, str(holder[key]), 1e9])
    else:
        holder[key] = copy.deepcopy(one(rng, VALUES))
    return value


def spoiled_json(rng: np.random.Generator, data: bytes) -> bytes:
    """The same of JSON or of a line of JSON lines, as bytes."""
    try:
        rows = [json.loads(data)]
    except ValueError:
        rows = [json.loads(line) for line in data.splitlines()]
    row = int(rng.integers(len(rows)))
    rows[row] = spoiled_value(rng, rows[row])
    ascii = bool(rng.integers(2))
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")


def _inner(value, depth: int = 6):
    """(dict or list, key or index) of each value inside, to some depth."""
    if not depth or not isinstance(value, dict | list):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        yield from _inner(value[key], depth - 1)


def spoil_tensors(rng: np.random.Generator, path: pathlib.Path) -> None:
    """Changes a tensor of a safetensors file: a number, name, shape, type; or all."""
    tensors = load_file(path)
    name = one(rng, sorted(tensors))
    values = np.array(tensors.pop(name))
    kind = int(rng.integers(7))
    if kind <= 1 and values.dtype.kind == "f":
        values.flat[int(rng.integers(values.size))] = one(
            rng, [np.nan, np.inf, -np.inf]
        )
    elif kind == 2:
        name = one(rng, [f"module.{name}", f"{name}x", name.upper(), "x"])
    elif kind == 3:
        values = values[..., :-1].copy()
    elif kind == 4:
        values = values.astype(one(rng, [np.int32, np.float16, np.float64]))
    elif kind == 5:
        values = values.reshape(-1, *([1] * int(rng.integers(3))))
    if kind != 6:
        tensors[name] = values
    save_file(tensors, path)
