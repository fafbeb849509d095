"""ResNet-18, -34 and -50 without their classifier, under torchvision's parameter names.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; in bottlenecks the 3x3
convolution takes the stride, as torchvision's do. Weights move between the two libraries as they
are (width 1, three channels).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxr_fast.models.card import Architecture

# Per backbone: blocks in each of the four stages, and whether they are bottlenecks.
_STAGES = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}


class _Block(nn.Module):
    """Convolutions, each with its normalisation, and a shortcut past them.

    Every normalisation is registered right after its convolution: ``fold`` relies on it.
    """

    def __init__(self, channels: list[int], kernels: list[int], stride: int) -> None:
        super().__init__()
        self._count = len(kernels)
        strided = kernels.index(3)  # the first 3x3 convolution takes the stride
        for i, kernel in enumerate(kernels):
            conv = nn.Conv2d(
                channels[i],
                channels[i + 1],
                kernel,
                stride=stride if i == strided else 1,
                padding=kernel // 2,
                bias=False,
            )
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(channels[i + 1]))
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels[0] != channels[-1]:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels[0], channels[-1], 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels[-1]),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for i in range(1, self._count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            if i < self._count:
                x = F.relu(x, inplace=True)
        x += shortcut
        return F.relu(x, inplace=True)


class ResNet(nn.Module):
    """The convolutional part of a ResNet: images in, the outputs of its last two stages out.

    ``penultimate_channels`` and ``last_channels`` are their channel counts.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        blocks, has_bottlenecks = _STAGES[architecture.backbone]
        wide = architecture.channels
        self.conv1 = nn.Conv2d(architecture.in_channels, wide(64), 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(wide(64))
        into = wide(64)
        outputs = []
        for stage, count in enumerate(blocks[: architecture.depth]):
            inner = wide(64 * 2**stage)
            outer = wide(256 * 2**stage) if has_bottlenecks else inner
            layer = nn.Sequential()
            for block in range(count):
                last = stage == architecture.depth - 1
                strided = stage > 0 and block == 0 and not (last and architecture.last_stride == 1)
                stride = 2 if strided else 1
                if has_bottlenecks:
                    layer.append(_Block([into, inner, inner, outer], [1, 3, 1], stride))
                else:
                    layer.append(_Block([into, inner, outer], [3, 3], stride))
                into = outer
            self.add_module(f"layer{stage + 1}", layer)
            outputs.append(outer)
        self.penultimate_channels, self.last_channels = outputs[-2:]
        self.neck: nn.Sequential | None = None
        if architecture.neck:
            self.neck = nn.Sequential(
                nn.Conv2d(self.last_channels, architecture.neck, 1, bias=False),
                nn.BatchNorm2d(architecture.neck),
                nn.ReLU(inplace=True),
            )
            self.last_channels = architecture.neck
        initialise(self)

    @property
    def dtype(self) -> torch.dtype:
        """What the convolutions compute in."""
        return self.conv1.weight.dtype

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 1 or 3, S, S] -> (X_k, X_{k-1}): the outputs of the last stage and the one before.

        [N, D_k, h, w] and [N, D_{k-1}, H, W], at 1/32 and 1/16 of the images' size for the published
        network, rounded up, so h = ceil(H / 2). Grey images are repeated for a network of three
        channels. ValueError for another shape, TypeError for pixels that are not floating point.
        """
        images = self._checked(images)
        if not self.architecture.bilateral:
            return self._stages(images)
        # Both halves as one batch; with an odd width they share the middle column.
        half = (images.shape[3] + 1) // 2
        halves = torch.cat((images[..., :half], images[..., -half:].flip(3)))
        x_k, x_k_minus_1 = self._stages(halves)
        return _joined(x_k), _joined(x_k_minus_1)

    def _stages(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        depth = self.architecture.depth
        for stage in range(1, depth):
            x = self.get_submodule(f"layer{stage}")(x)
        last = cast(Tensor, self.get_submodule(f"layer{depth}")(x))
        return last if self.neck is None else cast(Tensor, self.neck(last)), x

    def _checked(self, images: Tensor) -> Tensor:
        wanted = self.architecture.in_channels
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] not in (1, wanted) or 0 in shape[2:]:
            raise ValueError(
                f"images must be [N, {'1 or 3' if wanted == 3 else 1}, height, width] with at "
                f"least one pixel, but are {list(shape)}. Add the missing axes, or convert the "
                "images to the model's channels."
            )
        if not images.is_floating_point():
            raise TypeError(
                f"images must be floating point, but are {images.dtype}. Scale the pixels to "
                "[0, 1] and normalise them with the mean and std of the model card first."
            )
        return images.expand(-1, wanted, -1, -1)


def _joined(halves: Tensor) -> Tensor:
    """Maps [2N, D, H, W] of left halves and mirrored right halves -> [N, D, H, 2W]."""
    count = halves.shape[0] // 2  # not chunk(2), of which torch.export takes the count for a constant
    return torch.cat((halves[:count], halves[count:].flip(3)), 3)


def initialise(module: nn.Module) -> None:
    """Draw convolution weights as torchvision does: He's normal distribution over the fan-out.

    Normalisations begin as the identity and linear layers by torch's default already.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
