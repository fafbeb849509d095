"""A folded network made ready for a processor: what a compiler would make of it, without one.

torch run eagerly brings the weights of every convolution into oneDNN's own order at every call, and
adds shortcuts and cuts below zero in passes of their own over memory. Here the weights are brought
into that order once, and each convolution adds and cuts before it writes. The operators are those
that torch.compile calls for frozen weights; they come with torch.

oneDNN's ReLU makes 0 of NaN, where torch's keeps it, and what overflows must not end as a finding. So
inside a block it is a leaky one, which keeps NaN and whose slope is nothing in any sum. At the end of a
block, where torch offers the plain one alone, no NaN can arise: an image is given up (its CAMs are NaN)
unless both parts of that sum are far below the largest number.

Images pass through a few at a time, so that a layer reads what the last one wrote from the cache, and
into memory that was used before: a fresh page costs more than the arithmetic on it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxr_fast.models.card import Architecture
from cxr_fast.models.fold import FoldedClassifier
from cxr_fast.models.resnet import ResNet

# The maps that the first convolution writes for the images that pass together: the largest of all.
_BYTES_TOGETHER = 8 * 2**20

# The slope of a ReLU below zero, and the bound of what may come into the last sum of a block.
_SLOPE = 1e-30
_LARGEST = 1e37

# The operators' arguments as they are passed here. They are torch's own affair: of another torch that
# changed them nothing is taken.
_ARGUMENTS = {
    "_reorder_convolution_weight": ("self", "padding", "stride", "dilation", "groups", "input_size"),
    "_convolution_pointwise": (
        *("X", "W", "B", "padding", "stride", "dilation", "groups"),
        *("attr", "scalars", "algorithm"),
    ),
    "_convolution_pointwise.binary": (
        *("X", "other", "W", "B", "padding", "stride", "dilation", "groups"),
        *("binary_attr", "alpha", "unary_attr", "unary_scalars", "unary_algorithm"),
    ),
    "_convolution_pointwise_.binary": (
        *("other", "X", "W", "B", "padding", "stride", "dilation", "groups"),
        *("binary_attr", "alpha", "unary_attr", "unary_scalars", "unary_algorithm"),
    ),
}


class PackedClassifier(FoldedClassifier):
    """images -> CAMs as ``FoldedClassifier``, on a processor, in one precision; made by ``pack``.

    An image's CAM does not depend on the batch around it as long as ``images_together`` divides the
    batch. Threads may share it. It stays where it is: ``to`` and its like raise TypeError.
    """

    convolutions = "packed by oneDNN"
    trunk: _PackedTrunk

    @property
    def images_together(self) -> int:
        """How many images pass through the network at a time."""
        return self.trunk.images_together

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 1 or 3, S, S] -> cam [N, C, H, W] float32. Errors: ``ResNet.stages``."""
        parts = images.split(self.images_together)
        return torch.cat([self.cam_from_taps(*self.taps(part)) for part in parts])

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a packed network cannot be copied or sent to another process; load the model there"
        )


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's torch can run a packed network of that precision.

    It takes an x86 processor and a torch built with oneDNN (on Arm the operators go to another library,
    and nobody has tried it), and for bfloat16 instructions for it.
    """
    if not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"):
        return False
    for name, expected in _ARGUMENTS.items():
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.mkldnn, packet, None), overload or "default", None)
        if operator is None or tuple(a.name for a in operator._schema.arguments) != expected:
            return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(folded: FoldedClassifier, input_size: int) -> PackedClassifier:
    """Make the same network with its convolutions packed, for images [N, 1 or 3, S, S] of S x S pixels.

    ``folded`` is on the processor, float32 or bfloat16; the result keeps of it the classifier's weights
    alone. Best with S = ``input_size`` and one thread an operator, which is how ``cxr_fast.archive``
    runs it; with others oneDNN may order weights anew at every call. ValueError where ``can_pack`` is
    false or the network is not on the processor, TypeError for a packed one.
    """
    if isinstance(folded, PackedClassifier):
        raise TypeError("pack takes a folded network, but this one is packed already; use it as it is")
    weight = folded.trunk.conv1.weight
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        raise ValueError(
            f"pack takes a network on a processor whose torch has oneDNN, float32 or bfloat16 (where "
            f"the processor has it), but this one is {weight.dtype} on {weight.device}; use it as it is"
        )
    together = _images_together(weight, input_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order that is best depends on it
    try:
        with torch.no_grad():
            trunk = _PackedTrunk(folded.trunk, input_size, together)
    finally:
        torch.set_num_threads(threads)
    return PackedClassifier(trunk, folded.weights).eval()


def _images_together(stem: Tensor, input_size: int) -> int:
    """The power of two, at least 1, whose first maps are just within ``_BYTES_TOGETHER``."""
    side = (input_size + 1) // 2
    fitting = _BYTES_TOGETHER // (side * side * stem.shape[0] * stem.element_size())
    return 1 << max(0, fitting.bit_length() - 1)


class _Convolution:
    """A convolution with its weights in oneDNN's order. No module: such weights can only be used."""

    def __init__(self, conv: nn.Conv2d, input_shape: list[int]) -> None:
        self._geometry = ([*cast(Any, conv.padding)], [*conv.stride], [*conv.dilation], conv.groups)
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self._geometry, input_shape
        )
        self._largest = float(conv.weight.detach().abs().max())

    def plain(self, x: Tensor) -> Tensor:
        return self._run(x, "none", [])

    def relu(self, x: Tensor) -> Tensor:
        return self._run(x, "leaky_relu", [_SLOPE])

    def _run(self, x: Tensor, attr: str, scalars: list[float]) -> Tensor:
        run = torch.ops.mkldnn._convolution_pointwise.default
        return cast(Tensor, run(x, self._weight, self._bias, *self._geometry, attr, scalars, ""))

    def bound(self, x: Tensor) -> Tensor:
        """[N], at least all that the convolution gives for x >= 0, apart from its bias; or NaN."""
        return x.sum((1, 2, 3)) * self._largest

    def add_relu(self, x: Tensor, shortcut: Tensor, into_shortcut: bool) -> Tensor:
        """Give relu(conv(x) + shortcut), rounded once; ``into_shortcut`` writes it over that."""
        rest: tuple[Any, ...] = (self._weight, self._bias, *self._geometry, "add", 1.0, "relu", [], "")
        if into_shortcut:
            return cast(Tensor, torch.ops.mkldnn._convolution_pointwise_.binary(shortcut, x, *rest))
        return cast(Tensor, torch.ops.mkldnn._convolution_pointwise.binary(x, shortcut, *rest))


class _PackedBlock:
    """A block of the convolutions under its name. ``spares_input``: what comes in is read again."""

    def __init__(self, name: str, convolutions: dict[str, _Convolution], spares_input: bool) -> None:
        own = [c for part, c in convolutions.items() if part.startswith(f"{name}.conv")]
        *self._convolutions, self._last = own
        self._shortcut = convolutions.get(f"{name}.downsample.0")
        self._into_shortcut = self._shortcut is not None or not spares_input

    def __call__(self, x: Tensor, bounds: list[Tensor]) -> Tensor:
        """Add to ``bounds`` [N] what both parts of the sum are bounded by."""
        shortcut = x
        if self._shortcut is not None:
            bounds.append(self._shortcut.bound(x))
            shortcut = self._shortcut.plain(x)
        for convolution in self._convolutions:
            x = convolution.relu(x)
        bounds.append(self._last.bound(x))
        return self._last.add_relu(x, shortcut, self._into_shortcut)


class _PackedTrunk(ResNet):
    """The stages of a folded ``ResNet`` in packed convolutions."""

    def __init__(self, trunk: ResNet, input_size: int, images_together: int) -> None:
        nn.Module.__init__(self)  # layers of its own it has none
        self.architecture = trunk.architecture
        self.penultimate_channels, self.last_channels = trunk.penultimate_channels, trunk.last_channels
        self.images_together = images_together
        self._dtype = trunk.dtype
        shapes = _input_shapes(self.architecture, images_together, input_size)
        convolutions = {
            name: _Convolution(cast(nn.Conv2d, trunk.get_submodule(name)), shape)
            for name, shape in shapes.items()
        }
        self._stem = convolutions["conv1"]
        self._neck = convolutions.get("neck.0")
        depth = self.architecture.depth
        self._layers = [
            [
                # X_{k-1} goes into the last stage and to the classifier, too.
                _PackedBlock(f"layer{stage}.{block}", convolutions, stage == depth and block == 0)
                for block in range(len(cast(nn.Sequential, trunk.get_submodule(f"layer{stage}"))))
            ]
            for stage in range(1, depth + 1)
        ]

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def _stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self._stem.relu(images.contiguous(memory_format=torch.channels_last))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        *layers, last_layer = self._layers
        bounds: list[Tensor] = []
        for layer in layers:
            for block in layer:
                x = block(x, bounds)
        last = x
        for block in last_layer:
            last = block(last, bounds)
        if self._neck is not None:
            last = self._neck.relu(last)
        last[~(torch.stack(bounds) < _LARGEST).all(0)] = torch.nan
        return last, x

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        raise TypeError(
            "a packed network stays on its processor in its precision; move or cast the folded one, "
            "then pack that"
        )


def _input_shapes(architecture: Architecture, images: int, size: int) -> dict[str, list[int]]:
    """What comes into each convolution, [N, C, H, W], by its name."""
    shapes: dict[str, list[int]] = {}
    with torch.device("meta"):
        trunk = ResNet(architecture).eval()
        for name, part in trunk.named_modules():
            if isinstance(part, nn.Conv2d):
                part.register_forward_pre_hook(
                    lambda _, inputs, name=name: shapes.update({name: list(inputs[0].shape)})
                )
        trunk.stages(torch.empty(images, architecture.in_channels, size, size))
    return shapes
