"""The linear layer on pooled features in somebody's ONNX file.

Walked from the logits towards the image: what changes nothing (dropout, casts, shapes, a sigmoid behind
the logits) is passed, a matrix product or a 1x1 convolution with constant weights is the layer, a mean
over both spatial axes the pooling, and what that averages is the feature map. Anything else between
is refused by its name: then there is no class activation map, or it must be pointed at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_fast.export.graph import ModelFile, Node, Value

_SHAPING = {"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}
_PASSED_BEHIND = _SHAPING | {"Sigmoid"}
# What is found in place of a mean, in words.
_FOUND = {
    "GlobalMaxPool": "global max pooling",
    "MaxPool": "max pooling",
    "ReduceMax": "max pooling",
    "GlobalLpPool": "a pooling that is no mean",
    "Concat": "several poolings side by side",
    "Softmax": "a softmax",
    "LogSoftmax": "a log-softmax",
    "Gather": "one token picked out of many (a transformer)",
    "Slice": "one token picked out of many (a transformer)",
    "LayerNormalization": "a layer normalisation (a transformer, or ConvNeXt)",
    "Attention": "attention",
    "MatMul": "a product of two computed maps (attention)",
    "BatchNormalization": "a normalisation behind the pooling",
}
_ACTIVATIONS = {"Relu", "LeakyRelu", "Gelu", "Tanh", "HardSwish", "Elu", "Selu", "PRelu", "Clip", "Erf"}
_LINEAR = {"Gemm", "MatMul", "Conv"}


class Head(NamedTuple):
    """logits [N, C] = weight [C, D] @ mean of ``features`` [N, D, H, W] + bias [C]; weights float32."""

    features: Value
    logits: Value
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class _Linear(NamedTuple):
    given: Value
    gives: Value
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class NoHeadError(ValueError):
    """What stands in the place of a linear layer on a mean, in words."""


def find_head(model: ModelFile, features: str | None = None, head: str | None = None) -> Head:
    """Find them, or take the names of nodes or values: the features' and the linear layer's.

    NoHeadError where there are none, or several; ValueError where there is nothing of a name.
    """
    if head is not None:
        return _head_of(model, _named(model, "--head", head), features)
    found, refused = [], []
    for output in model.outputs:
        try:
            found.append(_head_of(model, output.name, features))
        except NoHeadError as error:
            refused.append(f"before its output {output.name!r} there is {error}")
    if len(found) > 1:
        raise NoHeadError(
            f"several outputs of it are such logits: {', '.join(h.logits for h in found)}; name "
            "the one with --head"
        )
    if not found:
        raise NoHeadError("; ".join(refused))
    return found[0]


def _named(model: ModelFile, option: str, name: str) -> Value:
    """The value of that name, or the first that the node of that name gives."""
    if name in model.producers:
        return name
    for node in model.nodes:
        if node.name == name:
            return node.outputs[0]
    last = ", ".join(node.name or node.outputs[0] for node in model.nodes[-6:])
    raise ValueError(
        f"{option} must name a node or a value of the file, but nothing in it is called {name!r}; its "
        f"last nodes are {last}"
    )


def _head_of(model: ModelFile, output: Value, features: str | None) -> Head:
    value = _passed(model, output, _PASSED_BEHIND)
    node = model.producers.get(value)
    if node is not None and (pooled := _averaged(model, node)) is not None:
        # The other order: class maps by a 1x1 convolution, then their mean.
        value, node = pooled, model.producers.get(pooled)
        linear = _linear(model, value) if node is not None and node.kind == "Conv" else None
        if linear is not None:
            return Head(linear.given, output, linear.weight, linear.bias)
        raise NoHeadError(f"a mean of maps by {_called(node)}, and no linear layer behind it")
    linear = _linear(model, value)
    if linear is None:
        raise NoHeadError(_what(model, node))
    if features is not None:
        tensor = _named(model, "--features", features)
        return Head(tensor, linear.gives, linear.weight, linear.bias)
    value = _passed(model, linear.given, _SHAPING)
    node = model.producers.get(value)
    averaged = None if node is None else _averaged(model, node)
    if averaged is None:
        raise NoHeadError(_what(model, node))
    return Head(averaged, linear.gives, linear.weight, linear.bias)


def _passed(model: ModelFile, value: Value, kinds: set[str]) -> Value:
    while (node := model.producers.get(value)) is not None and node.kind in kinds:
        value = node.inputs[0]
    return value


def _linear(model: ModelFile, value: Value) -> _Linear | None:
    """The linear layer with constant weights that gives a value."""
    node = model.producers.get(value)
    if node is None:
        return None
    if node.kind == "Add":
        for product, other in (node.inputs, node.inputs[::-1]):
            bias, inner = model.constant(other), _linear(model, _passed(model, product, _SHAPING))
            if bias is None or inner is None:
                continue
            if bias.size in (1, len(inner.weight)):
                total = inner.bias + bias.astype(np.float32).reshape(-1)
                return inner._replace(gives=value, bias=total)
        return None
    if node.kind not in _LINEAR:
        return None
    matrix = model.constant(node.inputs[1])
    if matrix is None:
        return None
    weight, of = matrix.astype(np.float32), node.attributes
    scale = 1.0
    if node.kind == "Conv":
        if weight.shape[2:] != (1, 1) or of.get("group", 1) != 1 or any(of.get("pads", ())):
            return None
        weight = weight[:, :, 0, 0]
    elif weight.ndim != 2 or of.get("transA", 0):
        return None
    elif not of.get("transB", 0):
        weight = weight.T
    if node.kind == "Gemm":
        weight, scale = weight * np.float32(of.get("alpha", 1.0)), of.get("beta", 1.0)
    bias = np.zeros(len(weight), np.float32)
    if len(node.inputs) > 2 and node.inputs[2]:
        added = model.constant(node.inputs[2])
        if added is None:
            return None
        bias = bias + np.float32(scale) * added.astype(np.float32).reshape(-1)
    return _Linear(node.inputs[0], value, np.ascontiguousarray(weight), bias)


def _averaged(model: ModelFile, node: Node) -> Value | None:
    """What a node takes the mean of over the two spatial axes, or None."""
    if node.kind in ("GlobalAveragePool", "AveragePool"):
        return node.inputs[0]
    if node.kind != "ReduceMean":
        return None
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1:
        given = model.constant(node.inputs[1])
        axes = None if given is None else given.reshape(-1).tolist()
    if axes is None:
        return None
    before = model.producers.get(node.inputs[0])
    if before is not None and before.kind == "Reshape" and list(axes) in ([2], [-1]):
        return before.inputs[0]  # [N, D, H * W] of a map
    return node.inputs[0] if sorted(int(axis) % 4 for axis in axes) == [2, 3] else None


def _what(model: ModelFile, node: Node | None) -> str:
    """What stands where a linear layer or a mean would have to."""
    if node is None:
        return "an input or a constant"
    before: Node | None = node
    for _ in range(4):  # a bias, an activation of several nodes
        if before is None or before.kind in _LINEAR:
            break
        before = model.producers.get(before.inputs[0]) if before.inputs else None
    hidden = node.kind in _ACTIVATIONS or _linear(model, node.outputs[0]) is not None
    if hidden and before is not None and before.kind in ("Gemm", "MatMul"):
        return f"a hidden layer ({_called(before)})"
    if node.kind == "ReduceMean":
        return f"a mean over other axes than height and width ({_called(node)}), as in a transformer"
    said = _FOUND.get(node.kind)
    return f"{said} ({_called(node)})" if said else _called(node)


def _called(node: Node | None) -> str:
    return "an input" if node is None else f"{node.kind} {node.name or node.outputs[0]!r}"
