"""An ONNX graph under construction. The one file that imports ``onnx``.

Operators are added by name and give the names of their results; what a number or an array is for is
said where it becomes a constant, and equal constants are stored once. Loops are bodies written as
functions; constants stay outside of them, in the graph's initializers.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, inliner, numpy_helper

Value = str  # the name of a tensor in the graph

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
INT64, INT32, UINT8, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL

FIRST_OPSET = 17
LAST_OPSET = 23
# From here on Conv, ConvTranspose and MaxPool are defined on bfloat16.
FIRST_BFLOAT16_OPSET = 22
# From here on all reductions take their axes as an input.
_AXES_ARE_INPUTS = 18


class Graph:
    """Nodes, constants, inputs and outputs of one model of the standard operators of ``opset``."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._taken: dict[str, int] = {}
        self._scope: tuple[str, ...] = ()

    @contextlib.contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of what is added in the block: ``mining/step1/...``."""
        before = self._scope
        self._scope = (*before, name)
        yield
        self._scope = before

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> Value:
        """Add an input of the model; a dimension with a name may have any size."""
        self._taken[name] = 1
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, value: Value, kind: int, shape: Sequence[int | str]) -> None:
        """Give a value out of the model, under its public name."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def op(self, kind: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Add an operator; an input that is left out is ``""``. Its result, or a tuple of several."""
        name = self._fresh(kind)
        results = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, inputs, results, name=name, **attributes))
        return results[0] if outputs == 1 else tuple(results)

    def reduce(self, kind: str, x: Value, *axes: int, keepdims: bool = True) -> Value:
        """``ReduceMax`` and its relatives over ``axes``, in the form that the opset has."""
        keep = int(keepdims)
        reduced: Value
        if kind == "ReduceSum" or self.opset >= _AXES_ARE_INPUTS:
            reduced = self.op(kind, x, self.ints(axes), keepdims=keep)
        else:
            reduced = self.op(kind, x, axes=list(axes), keepdims=keep)
        return reduced

    def cast(self, x: Value, kind: int) -> Value:
        """``x`` in another type."""
        cast: Value = self.op("Cast", x, to=kind)
        return cast

    def any(self, x: Value, *axes: int) -> Value:
        """Whether any of float ``x``, 0 or 1, is 1 along ``axes``; bool."""
        found: Value = self.op("Greater", self.reduce("ReduceMax", x, *axes), self.floats(0.5))
        return found

    def floats(self, values: Any) -> Value:
        """A float32 constant."""
        return self.constant(np.asarray(values, dtype=np.float32))

    def ints(self, values: Any) -> Value:
        """An int64 constant."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def constant(self, array: NDArray[Any]) -> Value:
        """A constant of the array's type; equal ones share one."""
        return self._store(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape)))

    def constant_of(self, raw: bytes, kind: int, shape: Sequence[int]) -> Value:
        """A constant of a type that numpy lacks, from its little-endian bytes."""
        return self._store(helper.make_tensor("", kind, list(shape), raw, raw=True))

    def loop(
        self, state: Sequence[Value], body: Callable[..., tuple[Value, Sequence[Value]]]
    ) -> tuple[Value, ...]:
        """Repeat ``body`` until its condition is false; it runs at least once.

        body(*state) -> (whether to go on: bool scalar, the next state). States keep their type,
        float32. Without a limit of rounds.
        """
        name = self._fresh("Loop")
        outside, self._nodes = self._nodes, []
        entries = [f"{name}.state{i}" for i in range(len(state))]
        inputs = [
            helper.make_tensor_value_info(f"{name}.round", INT64, []),
            helper.make_tensor_value_info(f"{name}.before", BOOL, []),
            *(helper.make_tensor_value_info(entry, FLOAT, None) for entry in entries),
        ]
        going, after = body(*entries)
        leaving = [f"{name}.next{i}" for i in range(len(after))]
        self._nodes += [
            helper.make_node("Identity", [going], [f"{name}.going"], name=f"{name}.going"),
            *(
                helper.make_node("Identity", [value], [to], name=to)
                for value, to in zip(after, leaving, strict=True)
            ),
        ]
        outputs = [
            helper.make_tensor_value_info(f"{name}.going", BOOL, []),
            *(helper.make_tensor_value_info(to, FLOAT, None) for to in leaving),
        ]
        inside = helper.make_graph(self._nodes, f"{name}.body", inputs, outputs)
        self._nodes = outside
        results = [f"{name}.{i}" for i in range(len(state))]
        start = self.constant(np.asarray(True))
        self._nodes.append(
            helper.make_node("Loop", ["", start, *state], results, name=name, body=inside)
        )
        return tuple(results)

    def include(self, model: ModelFile, given: Value, wanted: Sequence[Value]) -> list[Value]:
        """Add those nodes of another model that its values ``wanted`` need, and give these values.

        Its only input becomes ``given``; its names get the prefix ``network/``.
        """
        prefix = "network/"
        theirs = compose.add_prefix_graph(model.graph, prefix)
        needed = {prefix + value for value in wanted}
        nodes = []
        for node in reversed(theirs.node):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(_read_by(node))
        entry = prefix + model.inputs[0].name
        self._nodes.append(helper.make_node("Identity", [given], [entry], name=entry))
        self._nodes += reversed(nodes)
        self._initializers |= {t.name: t for t in theirs.initializer if t.name in needed}
        return [prefix + value for value in wanted]

    def serialise(self, metadata: dict[str, str], producer_version: str) -> bytes:
        """The model as a file's bytes, after the checks of ``onnx``.

        ValueError where it exceeds the 2 GB that one file can hold, or one of its operators is not
        defined for what it is given.
        """
        graph = helper.make_graph(
            self._nodes, "cxr_fast", self._inputs, self._outputs, list(self._initializers.values())
        )
        opset = helper.make_opsetid("", self.opset)
        model = helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=helper.find_min_ir_version_for([opset]),
            producer_name="cxr_fast",
            producer_version=producer_version,
        )
        helper.set_model_props(model, metadata)
        size = model.ByteSize()
        if size >= onnx.checker.MAXIMUM_PROTOBUF:
            raise ValueError(
                f"an ONNX file holds at most 2 GB, but this model has {size / 2**30:.1f} GiB; "
                "export it with --dtype float16"
            )
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ValueError(f"the model cannot be written with opset {self.opset}: {error}") from error
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def _fresh(self, kind: str) -> str:
        name = "/".join((*self._scope, kind))
        count = self._taken.get(name, 0)
        self._taken[name] = count + 1
        return f"{name}_{count}" if count else name

    def _store(self, tensor: onnx.TensorProto) -> Value:
        digest = hashlib.sha256(tensor.SerializeToString(deterministic=True)).hexdigest()
        name = f"constant_{digest[:16]}"
        if name not in self._initializers:
            tensor.name = name
            self._initializers[name] = tensor
        return name


class Tensor(NamedTuple):
    """An input or output of a model: its type, and a number, a name or None for each dimension."""

    name: Value
    kind: int
    shape: tuple[int | str | None, ...]


class Node(NamedTuple):
    """An operator of a model; ``attributes`` are numbers, texts and lists of them."""

    name: str
    kind: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attributes: dict[str, Any]


class ModelFile:
    """An ONNX file that any program wrote, to look at and to ``include``.

    ``inputs`` without the constants, ``outputs``, ``producers``: the node that gives each value.
    ValueError, in a sentence, where it cannot be read or has operators beyond the standard ones.
    """

    def __init__(self, path: Path) -> None:
        try:
            model = onnx.load(path)
            if model.functions:
                model = inliner.inline_local_functions(model)
        except Exception as error:  # of protobuf, onnx and the system: no base of their own
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{path} must be an ONNX file, beside the files of its weights if it has some, but "
                f"cannot be read as one: {first:.300}"
            ) from error
        self.graph = model.graph
        if not self.graph.node:
            raise ValueError(f"{path} must be an ONNX file of a network, but has no operators")
        strange = {n.op_type for n in self.graph.node if n.domain not in ("", "ai.onnx")}
        if strange:
            raise ValueError(
                f"{path} must have standard operators only, but has {', '.join(sorted(strange)[:5])}: "
                "some program rewrote it for itself. Give the file as it was exported"
            )
        self.opset: int = next(
            (o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1
        )
        self._constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = [_tensor(i) for i in self.graph.input if i.name not in self._constants]
        self.outputs = [_tensor(o) for o in self.graph.output]
        self.nodes = [_node(node) for node in self.graph.node]
        self.producers: dict[Value, Node] = {}
        known = {"", *self._constants, *(i.name for i in self.inputs)}
        for node in self.nodes:  # in order, so that a walk along them ends
            if not known.issuperset(node.inputs) or known.intersection(node.outputs) - {""}:
                raise ValueError(
                    f"{path} must be an ONNX file whose operators stand in order, but {node.kind} "
                    f"{(node.name or node.outputs)!r} does not. Export the network again"
                )
            known.update(node.outputs)
            self.producers |= {value: node for value in node.outputs if value}

    def constant(self, value: Value) -> NDArray[Any] | None:
        """A value that no input changes, or None."""
        if value in self._constants:
            return numpy_helper.to_array(self._constants[value])
        node = self.producers.get(value)
        if node is None:
            return None
        if node.kind == "Constant":
            held = node.attributes
            tensor = held.get("value")
            return numpy_helper.to_array(tensor) if tensor is not None else np.asarray(*held.values())
        if node.kind in ("Identity", "Cast", "Transpose"):
            array = self.constant(node.inputs[0])
            if array is not None and node.kind == "Transpose":
                array = array.transpose(node.attributes.get("perm"))
            return array
        return None

    @property
    def precision(self) -> str:
        """The type of most of the weights: float32, float16 or bfloat16."""
        names: dict[int, str] = {FLOAT: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}
        counts = dict.fromkeys(names.values(), 0)
        constants = [*self._constants.values()]
        constants += [n.attributes["value"] for n in self.nodes if "value" in n.attributes]
        for tensor in constants:
            if isinstance(tensor, onnx.TensorProto) and tensor.data_type in names:
                counts[names[tensor.data_type]] += int(np.prod(tensor.dims))
        return max(counts, key=lambda name: counts[name])


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim
    )
    return Tensor(info.name, kind.elem_type, shape)


def _node(node: onnx.NodeProto) -> Node:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return Node(node.name, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _read_by(node: onnx.NodeProto) -> set[Value]:
    """What a node reads, its bodies included."""
    values = set(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                values |= _read_by(inner)
            values.update(output.name for output in body.output)
    return values
