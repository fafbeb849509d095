"""Every Triton kernel compiled for three generations of GPUs, within budgets; no GPU is needed.

Budgets are a step above what Triton 3.7 makes. Four programs an SM, of 128 threads each, may have 128
registers a thread; shared memory is 164 KiB an SM on sm_80 and 228 KiB from sm_90.
"""

from __future__ import annotations

import re

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (Linux on x86-64 has it)")

import offline

from cxr_fast.kernels import cam as kernels
from cxr_fast.kernels.label_components import label_components
from cxr_fast.kernels.mine_attention import mine_attention

CAPABILITIES = [80, 90, 100]
FOUR_AN_SM = {80: 164 * 1024 // 4 - 1024, 90: 228 * 1024 // 4 - 1024, 100: 228 * 1024 // 4 - 1024}


def launches_of_cam(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    layout: torch.memory_format,
    classes: int,
    capability: int,
) -> list[offline.Launch]:
    features = torch.empty(64, 768, 32, 32, dtype=dtype, device="meta").to(memory_format=layout)
    weight = torch.empty(classes, 768, device="meta")
    grad = torch.empty(64, classes, 32, 32, device="meta")
    tile = kernels.backward_blocks(classes, dtype, 1024, capability // 10)

    def call() -> None:
        kernels.cam(features, weight)
        kernels.cam_backward(grad, features, weight, True, True, tile)

    return offline.record(monkeypatch, call)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fourteen_classes(
    dtype: torch.dtype,
    layout: torch.memory_format,
    capability: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = launches_of_cam(monkeypatch, dtype, layout, 14, capability)
    names = [launch.kernel.fn.__name__ for launch in launches]
    assert names == [
        "_pieces_kernel",
        "_cam_kernel",
        "_pieces_kernel",
        "_pieces_kernel",
        "_weight_kernel",
    ]
    for launch in launches:
        compiled = offline.compile_for(capability, launch)
        assert compiled.registers <= 128, compiled[:4]
        assert compiled.shared <= FOUR_AN_SM[capability], compiled[:4]
        # ptxas reserves a few bytes of stack where it rounds registers down to fit one program more.
        assert compiled.spilled <= 8, compiled[:4]
        if compiled.name == "_pieces_kernel":
            continue
        # 16 bytes a thread past the registers, and no copy of the features narrower than 8.
        assert "cp.async.cg.shared.global" in compiled.ptx
        assert not re.search(r"cp\.async\.ca\.shared\.global \[[^]]*\], \[[^]]*\], 0x4", compiled.ptx)
        on_tensor_cores = re.search(r"(mma\.sync|wgmma|tcgen05\.mma)\S*\.bf16", compiled.ptx)
        assert bool(on_tensor_cores) == (dtype != torch.float32)
        assert "tf32" not in compiled.ptx
        if compiled.name == "_cam_kernel" and on_tensor_cores:
            # Each thread adds every block's sum to its totals, and the rest to them at the end.
            tile = launch.arguments["BC"] * launch.arguments["BP"] // 128
            additions = re.findall(r"\tadd(?:\.rn)?\.f32(x2)?", compiled.ptx)
            assert sum(2 if pair else 1 for pair in additions) >= 2 * tile


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("classes", "dtype"), [(40, torch.float16), (300, torch.bfloat16)])
def test_many_classes(
    classes: int, dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for launch in launches_of_cam(monkeypatch, dtype, torch.channels_last, classes, capability):
        compiled = offline.compile_for(capability, launch)
        assert compiled.shared <= 163 * 1024, compiled[:4]  # one program an SM on all of them
        assert compiled.spilled <= 16, compiled[:4]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("side", [32, 64])
def test_mining(side: int, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cam = torch.empty(64, 14, side, side, device="meta")
    call = lambda: mine_attention(cam, 3, 0.5, 8, None, 1)  # noqa: E731
    (launch,) = offline.record(monkeypatch, call)
    compiled = offline.compile_for(capability, launch)
    assert compiled.registers <= 240
    assert compiled.shared <= 1024
    assert compiled.spilled == 0
    assert "fma" not in compiled.ptx, "a cut would be contracted"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_labels(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.empty(64, 14, 512, 512, dtype=torch.bool, device="meta")
    launches = offline.record(monkeypatch, lambda: label_components(mask, 8))
    assert len(launches) == 5
    for launch in launches:
        compiled = offline.compile_for(capability, launch)
        assert compiled.registers <= 112, compiled[:4]
        assert compiled.shared <= 4096, compiled[:4]
        assert compiled.spilled == 0, compiled[:4]
