"""cam: one skinny product over the channels."""

from __future__ import annotations

from dataclasses import dataclass

import inputs
import pytest
import torch
from conftest import Race
from products import matmul_cam
from racing import Check, Peer, Work
from torch import Tensor

from cxr_fast import ops


@dataclass(frozen=True)
class Case:
    n: int = 8
    d: int = 768
    side: int = 32
    c: int = 14
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        layout = " channels_last" if self.channels_last else ""
        return f"cam N{self.n} D{self.d} {self.side}x{self.side} C{self.c} {dtype}{layout}"


CASES = [
    Case(),
    Case(channels_last=True),
    Case(dtype=torch.bfloat16),
    Case(dtype=torch.bfloat16, channels_last=True),
    Case(d=2048, side=16),
    Case(c=1),
    Case(c=64),
    Case(n=1),
]


def close(tolerance: float) -> Check:
    """Equal within a fraction of the greatest value."""

    def check(ours: Tensor, theirs: Tensor) -> None:
        greatest = float(ours.abs().max())
        torch.testing.assert_close(theirs.to(torch.float32), ours, rtol=0, atol=tolerance * greatest)

    return check


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cam(case: Case, race: Race) -> None:
    x = inputs.features(case.n, case.d, case.side).to(case.dtype)
    if case.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    w = inputs.weight(case.c, case.d)
    exact = close(1e-5)

    def einsum(x: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("ndhw,cd->nchw", x, w)

    if case.dtype == torch.float32:
        peers = [
            Peer("torch.matmul", lambda: matmul_cam(x, w), exact),
            Peer("torch.einsum", lambda: einsum(x, w), exact),
        ]
    else:
        # Ours sums in float32 and returns it. The product in the narrow dtype rounds its result.
        narrow = w.to(case.dtype)
        peers = [
            Peer("matmul of .float()", lambda: matmul_cam(x.float(), w), exact),
            Peer("matmul, rounded", lambda: matmul_cam(x, narrow), close(2e-2)),
            Peer("einsum, rounded", lambda: einsum(x, narrow), close(2e-2)),
        ]
    pixels = case.n * case.side**2
    work = Work(
        x.numel() * x.element_size() + w.numel() * 4 + pixels * case.c * 4,
        2 * pixels * case.c * case.d,
    )
    race(str(case), lambda: ops.cam(x, w), peers, work)
