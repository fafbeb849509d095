"""TensorRT parses both forms and builds engines of them, which needs no GPU.

Skipped where TensorRT-RTX is not installed; it comes with
``pip install onnxruntime-ep-nv-tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings``.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import card_of, exported, network

from cxr_fast.config import MiningSettings
from cxr_fast.models import Architecture

BILINEAR = Architecture("resnet18", "bilinear", 0.25, 1)
BILATERAL = Architecture("resnet18", "none", 0.25, 1, bilateral=True, pooling="lse", depth=3)
REGIONS = MiningSettings(select="regions", upsample=4)


@pytest.fixture(scope="module")
def trt() -> Any:
    """The Python module; its libraries are in the wheel of onnxruntime's provider."""
    libraries = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if libraries is None or libraries.origin is None:
        pytest.skip("TensorRT-RTX is not installed")
    folder = Path(libraries.origin).parent
    for pattern in ("libcudart.so*", "libtensorrt_rtx.so*", "libtensorrt_onnxparser_rtx.so*"):
        for library in folder.glob(pattern):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return pytest.importorskip("tensorrt_rtx_bindings")


def build(trt: Any, content: bytes) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, logger)
    parsed = parser.parse(content)
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    profile = builder.create_optimization_profile()
    for i in range(definition.num_inputs):
        tensor = definition.get_input(i)
        sides = list(tensor.shape)
        least, most = (
            [
                side if side > 0 else (batch if axis == 0 else any_side)
                for axis, side in enumerate(sides)
            ]
            for batch, any_side in ((1, 64), (8, 160))
        )
        profile.set_shape(tensor.name, least, most, most)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(definition, config) is not None


@pytest.mark.parametrize("form", ["cam", "end2end"])
@pytest.mark.parametrize(
    ("architecture", "mining", "options"),
    [
        (BILINEAR, MiningSettings(), {}),
        (BILINEAR, MiningSettings(upsample=4, mode="raw", connectivity=4), {"any_size": True}),
        (BILINEAR, MiningSettings(select="peak", max_overlap=0.7), {"raw_input": True}),
        (BILATERAL, REGIONS, {}),
        (BILATERAL, REGIONS, {"any_size": True}),
        (Architecture("resnet18", "deconv", 0.25, 3), MiningSettings(max_overlap=1.0), {}),
        (Architecture("resnet50", "bilinear", 0.125, 1), MiningSettings(steps=1), {"opset": 23}),
    ],
    ids=["fixed", "any size", "raw", "regions", "regions, any size", "deconv", "bottlenecks"],
)
def test_an_engine_is_built(
    trt: Any, form: str, architecture: Architecture, mining: MiningSettings, options: dict[str, Any]
) -> None:
    card = card_of(architecture, mining=mining)
    build(trt, exported(network(card), card, form, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_engines_in_half_precision(trt: Any, dtype: torch.dtype) -> None:
    card = card_of(BILINEAR)
    build(trt, exported(network(card, dtype=dtype), card))
