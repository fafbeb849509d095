"""Networks as other libraries have them: the same names of weights, and heads of many spellings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def settled(network: nn.Module) -> Any:
    """With statistics far from the identity, as after training; in eval mode."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.2)
            nn.init.normal_(part.bias, std=0.2)
            part.running_mean.normal_(std=0.2)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return network.eval()


class _Residual(nn.Module):
    def __init__(self, into: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = width * 4 if bottleneck else width
        self.relu = nn.ReLU(inplace=True)
        if bottleneck:
            self.conv1 = nn.Conv2d(into, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            self.conv1 = nn.Conv2d(into, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.bottleneck = bottleneck
        self.downsample: nn.Module | None = None
        if stride > 1 or into != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(self.relu(y)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's and timm's, under their names; ``width`` 64 is the published one."""

    def __init__(
        self,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        bottleneck: bool = False,
        channels: int = 3,
        classes: int = 4,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        into = width
        for stage, count in enumerate(blocks):
            inner = width * 2**stage
            layer = nn.Sequential()
            for block in range(count):
                layer.append(_Residual(into, inner, 2 if stage and not block else 1, bottleneck))
                into = inner * 4 if bottleneck else inner
            setattr(self, f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(into, classes)

    def maps(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.maps(x)), 1))


class Headed(nn.Module):
    """A few convolutions, and a head of any spelling; ``weight`` [C, D] is its matrix."""

    def __init__(self, spelling: str, classes: int = 3, side: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
        )
        self.spelling = spelling
        self.linear = nn.Linear(12, classes)
        self.unbiased = nn.Linear(12, classes, bias=False)
        self.conv = nn.Conv2d(12, classes, 1)
        self.hidden = nn.Linear(12, 12)
        self.wide = nn.Linear(24, classes)
        self.norm = nn.LayerNorm(12)
        self.score = nn.Conv2d(12, 1, 1)
        self.whole = nn.AvgPool2d(side // 4)
        self.dropout = nn.Dropout(0.3)

    @property
    def weight(self) -> Tensor:
        kinds = {"no bias": self.unbiased, "conv behind": self.conv, "conv before": self.conv}
        return kinds.get(self.spelling, self.linear).weight.flatten(1).float()

    def forward(self, image: Tensor) -> Tensor:
        x = self.body(image)
        pooled = F.adaptive_avg_pool2d(x, 1)
        vector = pooled.flatten(1)
        match self.spelling:
            case "mean":
                return self.linear(x.mean((2, 3)))
            case "mean, negative axes, squeezed":
                return self.linear(x.mean((-1, -2), keepdim=True).squeeze(-1).squeeze(-1))
            case "view, dropout":
                return self.linear(self.dropout(pooled.view(x.shape[0], -1)))
            case "matmul, bias first":
                return self.linear.bias + vector @ self.linear.weight.t()
            case "no bias":
                return self.unbiased(vector)
            case "conv behind":
                return self.conv(pooled).flatten(1)
            case "conv before":
                return F.adaptive_avg_pool2d(self.conv(x), 1).flatten(1)
            case "average of the whole map":
                return self.linear(self.whole(x).flatten(1))
            case "flattened, mean":
                return self.linear(x.flatten(2).mean(-1))
            case "sigmoid":
                return torch.sigmoid(self.linear(vector))
            case "hidden layer":
                return self.linear(F.relu(self.hidden(vector)))
            case "max pooling":
                return self.linear(F.adaptive_max_pool2d(x, 1).flatten(1))
            case "both poolings":
                return self.wide(torch.cat((vector, F.adaptive_max_pool2d(x, 1).flatten(1)), 1))
            case "attention pooling":
                share = self.score(x).flatten(2).softmax(2)
                return self.linear((share @ x.flatten(2).transpose(1, 2)).flatten(1))
            case "tokens":
                return self.linear(x.flatten(2).transpose(1, 2).mean(1))
            case "class token":
                return self.linear(x.flatten(2).transpose(1, 2)[:, 0])
            case "layer normalisation":
                return self.linear(self.norm(vector))
            case "softmax":
                return self.linear(vector).softmax(1)
            case "part of the map":
                return self.linear(F.avg_pool2d(x, 4, stride=16).flatten(1))
        assert self.spelling == "plain"
        return self.linear(vector)


def export(
    network: nn.Module,
    path: Path,
    side: int = 32,
    channels: int = 3,
    opset: int = 17,
    batch: bool = True,
    dtype: torch.dtype = torch.float32,
    axes: dict[int, str] | None = None,
) -> Path:
    """As a person exports a network, by torch itself."""
    example = torch.rand(2, channels, side, side, dtype=dtype)
    dynamic = ({0: "batch"} if batch else {}) | (axes or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            opset_version=opset,
            dynamic_axes={"x": dynamic} if dynamic else None,
        )
    return path
