"""The operators' tests on another device: ``--device cuda``, or ``--device emulated``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class OnDevice(TorchDispatchMode):
    """Operators get their tensors on a device, and the test gets the results on its own."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "cxr_fast":
            return func(*args, **(kwargs or {}))
        moved = tree_map_only(torch.Tensor, lambda t: t.to(self.device), (args, kwargs or {}))
        result = func(*moved[0], **moved[1])
        return tree_map_only(torch.Tensor, lambda t: t.cpu(), result)


@pytest.fixture
def gap_tolerance(request: pytest.FixtureRequest) -> float:
    """By how much masked_gap may differ from the fused pass: GPUs add up in another order."""
    return 0.0 if request.config.getoption("--device") == "cpu" else 1e-5


@pytest.fixture
def least_exact_factor(request: pytest.FixtureRequest) -> float:
    """Above which factors of cam keep all their bits: the pieces of GPUs end at 2^-133."""
    return 1e-33 if request.config.getoption("--device").startswith("cuda") else 0.0


@pytest.fixture(autouse=True)
def _on_device(request: pytest.FixtureRequest) -> Iterator[None]:
    device = request.config.getoption("--device")
    if device == "cpu":
        yield
        return
    if request.node.get_closest_marker("cpu_only"):
        pytest.skip("tests/cuda asks the same of CUDA tensors")
    emulated = device == "emulated"
    with request.getfixturevalue("emulator").gpu() if emulated else OnDevice(device):
        yield
