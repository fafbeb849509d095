"""The same results from every set of kernels: portable, avx2, avx512, and the reference.

Kernels are chosen once a process, so each set computes in one of its own: this file, run as a script.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

Arrays = dict[str, np.ndarray]

# Integers, and floats whose every rounding is stated, are equal to the bit. These are not.
WITHIN = {
    "cam": 2e-6,
    "cam float16": 2e-6,
    "logits": 2e-6,
    "grad": 1e-5,
    "scores": 1e-6,
    "resize": 1e-6,
}


def make_inputs() -> Arrays:
    rng = np.random.default_rng(5)

    def smooth(*shape: int) -> np.ndarray:
        noise = rng.standard_normal(shape)
        sigma = (0,) * (len(shape) - 2) + (1.7, 1.7)
        return ndimage.gaussian_filter(noise, sigma).astype(np.float32)

    weight = rng.standard_normal((14, 133)).astype(np.float32)
    odd = np.stack([smooth(33, 29), *([np.zeros((33, 29), np.float32)] * 5)])[None]
    odd[0, 1] = rng.integers(0, 3, (33, 29))  # ties
    odd[0, 2] = 2.5  # constant
    odd[0, 3] = np.where(np.indices((33, 29)).sum(0) % 2, -1.0, 1.0)  # a checkerboard
    odd[0, 4] = np.nan
    odd[0, 5] = rng.standard_normal((33, 29)) * 1e-42  # subnormal
    return {
        "features": smooth(3, 133, 17, 19),
        "weight": weight,
        "smooth": smooth(3, 5, 32, 32),
        "small": smooth(9, 2, 5, 9),
        "odd": odd,
        "large": smooth(1, 1, 67, 130),
        "lines": rng.integers(0, 256, (71, 1 + 12 * 37), np.uint8),
    }


def compute(inputs: Arrays) -> Arrays:
    """Everything that has a kernel, from torch and from numpy."""
    import torch

    from cxr_fast import _numpy_ops, ops, runtime

    torch.set_num_threads(1)
    out: Arrays = {}

    def put(case: str, result: ops.MiningResult | runtime.MiningResult) -> None:
        names = ("logits", "erased_at", "extent", "heatmap", "boxes", "scores", "counts")
        values = (result.logits, *result.mined, result.heatmap, *result.found)
        out.update({f"{case}/{n}": np.asarray(v) for n, v in zip(names, values, strict=True)})

    features, weight = (torch.from_numpy(inputs[key]) for key in ("features", "weight"))
    features.requires_grad_()
    weight.requires_grad_()
    for name, dtype in (("cam float16", torch.float16), ("cam", torch.float32)):
        cam = ops.cam(features.to(dtype), weight)
        out[f"torch/{name}"] = cam.detach().numpy()
    last = features.detach().contiguous(memory_format=torch.channels_last)
    out["channels_last/cam"] = ops.cam(last, weight).detach().numpy()
    grads = torch.autograd.grad(cam.square().sum(), (features, weight))
    out["features/grad"], out["weight/grad"] = (g.numpy() for g in grads)
    out["numpy/cam"] = runtime.cam(inputs["features"], inputs["weight"], threads=1)
    out["numpy16/cam float16"] = runtime.cam(
        inputs["features"].astype(np.float16), inputs["weight"], threads=1
    )
    for case in ("smooth", "small", "odd", "large"):
        cam = torch.from_numpy(inputs[case])
        for connectivity, mode, upsample in ((8, "normalized", 1), (4, "raw", 3)):
            settings = {"connectivity": connectivity, "mode": mode, "upsample": upsample}
            settings |= {"steps": 4, "thresholds": (0.3, 0.7), "max_boxes": 5}
            put(f"{case} {mode}/torch", ops.mine_cam(cam, **settings))
            put(f"{case} {mode}/numpy", runtime.mine_cam(inputs[case], **settings, threads=1))
        mask = cam > cam.nanmedian()
        out[f"{case}/labels"] = ops.label_components(mask).numpy()
        erased_at = ops.mine_attention(cam, 4).erased_at
        grad = torch.ones(*cam.shape[:2], 4) * torch.tensor([1.0, -0.5, 0.25, 3.0])
        out[f"{case} gap/grad"] = torch.ops.cxr_fast.masked_gap_backward(grad, erased_at).numpy()
    lines = inputs["lines"]  # of a PNG: a filter type in front, and 12 can be divided by all pixels
    lines[:, 0] %= 5
    for channels, size in ((1, 1), (2, 1), (3, 1), (4, 1), (1, 2)):
        width = (lines.shape[1] - 1) // (channels * size)
        pixels = _numpy_ops.png_unfilter(lines.tobytes(), len(lines), width, channels, size)
        out[f"png/{channels} of {size}"] = pixels
    for size in (1, 16, 17, 90):
        out[f"{size}/resize"] = _numpy_ops.resize(lines, size, 1 / 255)
    out["kernels"] = np.array([ops.CPU_KERNELS, runtime.instruction_set()])
    return out


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CXR_FAST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def computed(folder: Path, **environment: str) -> Arrays:
    """``compute`` in a process of its own."""
    target = folder / ("-".join(environment.values() or ["default"]) + ".npz")
    process = run_python(__file__, str(folder / "inputs.npz"), str(target), **environment)
    assert process.returncode == 0, process.stderr
    with np.load(target) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("instruction_sets")
    np.savez(path / "inputs.npz", **make_inputs())
    return path


@pytest.fixture(scope="module")
def default(folder: Path) -> Arrays:
    return computed(folder)


@pytest.fixture(scope="module")
def offered() -> list[str]:
    """What this processor and build offer, as the refusal of an unknown name says."""
    process = run_python("-c", USE_NUMPY, CXR_FAST_ISA="abacus")
    found = re.search(r"this processor and build offer ([\w, ]+);", process.stderr)
    assert found, process.stderr
    return found[1].split(", ")


USE_NUMPY = """
import numpy as np
from cxr_fast import runtime
runtime.label_components(np.ones((2, 2), bool))
"""


def assert_same(ours: Arrays, expected: Arrays) -> None:
    assert ours.keys() == expected.keys()
    for key in ours.keys() - {"kernels"}:
        a, b = ours[key], expected[key]
        name = key.rsplit("/", 1)[1]
        assert a.dtype == b.dtype, key
        if name in WITHIN:
            scale = float(np.nanmax(np.abs(b), initial=1e-30))
            np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=WITHIN[name], err_msg=key)
        else:
            np.testing.assert_array_equal(a, b, err_msg=key)


def test_there_is_something_to_compare(default: Arrays) -> None:
    assert default["smooth normalized/torch/erased_at"].max() == 4
    assert default["smooth normalized/torch/counts"].max() >= 3
    assert default["large/labels"].max() >= 10
    assert np.isnan(default["odd normalized/torch/heatmap"][0, 4]).all()


def test_torch_and_numpy_agree(default: Arrays) -> None:
    for key, value in default.items():
        if "/torch/" in key:
            np.testing.assert_array_equal(value, default[key.replace("/torch/", "/numpy/")], key)


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512"])
def test_each_instruction_set(name: str, folder: Path, default: Arrays, offered: list[str]) -> None:
    if name not in offered:
        pytest.skip(f"this processor has no {name}")
    ours = computed(folder, CXR_FAST_ISA=name)
    assert ours["kernels"].tolist() == [f"C++ ({name})", name]
    assert_same(ours, default)


def test_the_best_is_the_default(default: Arrays, offered: list[str]) -> None:
    assert offered[0] == "portable"
    assert default["kernels"].tolist() == [f"C++ ({offered[-1]})", offered[-1]]


def test_the_reference(folder: Path, default: Arrays) -> None:
    ours = computed(folder, CXR_FAST_KERNELS="reference")
    assert ours["kernels"][0] == "reference (asked for by CXR_FAST_KERNELS)"
    assert_same(ours, default)


# ---- an unknown name ----

REFUSAL = "CXR_FAST_ISA is 'abacus', but this processor and build offer portable"


def test_an_unknown_name_is_refused_by_the_numpy_module(offered: list[str]) -> None:
    process = run_python("-c", USE_NUMPY, CXR_FAST_ISA="abacus")
    assert process.returncode == 1
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith(f"RuntimeError: {REFUSAL}")
    assert last.endswith("unset it, or name one of these")


def test_an_unknown_name_is_refused_by_ops() -> None:
    pytest.importorskip("torch")
    process = run_python("-c", "import cxr_fast.ops", CXR_FAST_ISA="abacus")
    assert REFUSAL in process.stderr
    assert process.returncode == 1, "a Python exception, not an abort"
    assert "Traceback" in process.stderr


# ---- the reference in place of the kernels ----

AUTOCAST = """
import torch
from cxr_fast import ops
features, weight = torch.randn(2, 5, 6, 6, requires_grad=True), torch.randn(3, 5)
plain = ops.cam(features, weight)
with torch.autocast("cpu", dtype=torch.bfloat16):
    cast = ops.cam(features, weight)
assert cast.dtype == torch.float32, cast.dtype
assert torch.equal(plain, cast)
cast.sum().backward()
"""

STRIDES = """
import torch
from cxr_fast import ops
for layout in (torch.contiguous_format, torch.channels_last):
    features = torch.randn(2, 5, 7, 6).contiguous(memory_format=layout)
    cam = ops.cam(features, torch.randn(3, 5))
    assert cam.is_contiguous(), f"the fake kernel says contiguous, but strides are {cam.stride()}"
"""


@pytest.mark.parametrize("script", [AUTOCAST, STRIDES], ids=["autocast", "strides"])
def test_the_reference_keeps_the_rules_of_the_operators(script: str) -> None:
    pytest.importorskip("torch")
    process = run_python("-c", script, CXR_FAST_KERNELS="reference")
    assert process.returncode == 0, process.stderr


if __name__ == "__main__":
    with np.load(sys.argv[1]) as arrays:
        np.savez(sys.argv[2], **compute(dict(arrays)))
