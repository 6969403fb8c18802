"""An ONNX graph, written node by node, without torch."""

import pathlib
from collections.abc import Mapping

import numpy as np

from lsrjax import finite
from lsrjax.errors import InputError

# ScatterElements has a maximum since opset 18; onnxruntime reads both since 1.14.
_OPSET, _IR = 18, 8


class Graph:
    """Collects nodes and weights; values are named by strings."""

    def __init__(self, folder: pathlib.Path, *, external: bool):
        """An empty graph; an `InputError` if onnx is not installed.

        With `external`, large weights go to a file in `folder` as they are added.
        """
        try:
            import onnx
        except ImportError as error:
            raise InputError(
                "--to onnx needs the package onnx: pip install 'lsrjax[onnx]'."
            ) from error
        self._onnx = onnx
        self._nodes: list = []
        self._weights: list = []
        self._folder = folder
        self._external = external
        self._count = 0

    def add(self, op: str, *inputs: str, **attributes) -> str:
        """Adds a node; returns the name of its output."""
        name = self._name(op)
        node = self._onnx.helper.make_node(op, inputs, [name], name=name, **attributes)
        self._nodes.append(node)
        return name

    def cast(self, x: str, dtype: str) -> str:
        """Adds a cast to "FLOAT" or "INT64"."""
        return self.add("Cast", x, to=getattr(self._onnx.TensorProto, dtype))

    def constant(self, value, dtype=np.float32) -> str:
        """Adds a small constant."""
        name = self._name("constant")
        array = np.asarray(value, dtype)
        self._weights.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, value) -> str:
        """Adds a float32 parameter; an `InputError` if a number is not finite."""
        array = np.ascontiguousarray(finite.floats(value, name, self._folder))
        if not self._external or array.nbytes < 1024:
            self._weights.append(self._onnx.numpy_helper.from_array(array, name))
            return name
        tensor = self._onnx.TensorProto(
            name=name,
            dims=array.shape,
            data_type=self._onnx.TensorProto.FLOAT,
            data_location=self._onnx.TensorProto.EXTERNAL,
        )
        file = "model.onnx.data"
        with open(self._folder / file, "ab") as out:
            place = {"location": file, "offset": out.tell(), "length": array.nbytes}
            out.write(array.data.cast("B"))
        for key, entry in place.items():
            tensor.external_data.add(key=key, value=str(entry))
        self._weights.append(tensor)
        return name

    def top_k(self, x: str, count: str) -> str:
        """Adds the `count` largest values along the last axis."""
        names = [self._name("largest"), self._name("places")]
        self._nodes.append(self._onnx.helper.make_node("TopK", [x, count], names))
        return names[0]

    def scan(self, body, *inputs: str) -> str:
        """Applies `body` to each row of the inputs; returns the stacked outputs.

        `body` adds nodes for one row, given its names, and returns the output's name.
        """
        helper, outer = self._onnx.helper, self._nodes
        self._nodes = []
        rows = [self._name("row") for _ in inputs]
        out = body(*rows)
        graph = helper.make_graph(
            self._nodes,
            self._name("body"),
            [self._onnx.ValueInfoProto(name=row) for row in rows],
            [self._onnx.ValueInfoProto(name=out)],
        )
        self._nodes = outer
        return self.add("Scan", *inputs, body=graph, num_scan_inputs=len(inputs))

    def save(self, views: Mapping[str, tuple[str, int]], path: pathlib.Path) -> None:
        """Writes the graph; `views` maps the output's name to (value, size)."""
        helper, proto = self._onnx.helper, self._onnx.TensorProto
        for name, (value, _) in views.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self._nodes,
            "lsrjax",
            [
                helper.make_tensor_value_info(name, proto.INT64, ["batch", "length"])
                for name in ("input_ids", "attention_mask")
            ],
            [
                helper.make_tensor_value_info(name, proto.FLOAT, ["batch", size])
                for name, (_, size) in views.items()
            ],
            initializer=self._weights,
        )
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR)
        model.producer_name = "lsrjax"
        path.write_bytes(model.SerializeToString())
        self._onnx.checker.check_model(path)

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"
