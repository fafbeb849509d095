"""Every command of docs/own-classifier.md, run as it stands there on networks of random weights."""

from __future__ import annotations

import re
import shlex
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from others import ResNet, settled
from PIL import Image
from torch import Tensor, nn

from cxr_fast.archive.findings import read_findings
from cxr_fast.cli import main
from cxr_fast.models.adopt import TORCHXRAYVISION_FINDINGS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[2] / "docs" / "own-classifier.md"


class _Layer(nn.Module):
    def __init__(self, into: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(into)
        self.conv = nn.Conv2d(into, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(torch.relu(self.norm(x)))), 1)


class DenseNet(nn.Module):
    """What torchxrayvision's has to say: parts, names, and a forward that gives no logits."""

    def __init__(self, weights: str) -> None:
        super().__init__()
        assert weights == "densenet121-res224-all"
        torch.manual_seed(5)
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 7, 4, 3, bias=False),
            nn.MaxPool2d(3, 2, 1),
            _Layer(8),
            nn.AvgPool2d(2),
            _Layer(16),
            nn.BatchNorm2d(24),
        )
        self.classifier = nn.Linear(24, 18)
        self.pathologies = list(TORCHXRAYVISION_FINDINGS)
        settled(self)

    def forward(self, image: Tensor) -> Tensor:
        raise NotImplementedError


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    Path("IMAGES").mkdir()
    for i in range(2):
        noise = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
        noise.resize((200, 160), Image.Resampling.BICUBIC).save(f"IMAGES/{i}.png")
    torch.manual_seed(6)
    torch.save(settled(ResNet(classes=2)).state_dict(), "weights.pth")
    library: Any = types.ModuleType("torchxrayvision")
    library.models = types.SimpleNamespace(DenseNet=DenseNet)
    monkeypatch.setitem(sys.modules, "torchxrayvision", library)
    (program,) = blocks("python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(program, {})
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert [c[1] for c in commands] == ["-LO", "adopt", "mine", "adopt", "adopt", "mine"]
    for program_name, *arguments in commands:
        if program_name == "curl":  # what it would fetch, of random weights
            published = settled(ResNet((3, 4, 6, 3), True, channels=1, classes=18))
            torch.save(published.state_dict(), arguments[-1].rpartition("/")[2])
            continue
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
    for run in ("RUN", "DENSE_RUN"):
        assert {row["image_id"] for row in read_findings(run).to_pylist()} == {"0.png", "1.png"}
