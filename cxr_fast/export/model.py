"""A model as an ONNX file: network, and mining where asked for, one code path for both forms."""

from __future__ import annotations

import torch

from cxr_fast import __version__
from cxr_fast.export import boxes, pictures, steps
from cxr_fast.export.graph import (
    FIRST_BFLOAT16_OPSET,
    FIRST_OPSET,
    FLOAT,
    INT32,
    INT64,
    LAST_OPSET,
    UINT8,
    Graph,
    Value,
)
from cxr_fast.export.grid import Grid
from cxr_fast.export.metadata import IMAGE, IMAGE_SIZE, KEY, ExportMetadata, to_json
from cxr_fast.export.network import Maps, cam_of, logits_of, resized
from cxr_fast.models import FoldedClassifier

# Below it Resize and the reductions have older forms; above it nothing is needed but for bfloat16.
_DEFAULT_OPSET = 18


def onnx_file(model: FoldedClassifier, metadata: ExportMetadata, opset: int | None = None) -> bytes:
    """An ONNX file of ``model``, whose weights are of ``metadata.precision``, as ``metadata`` says.

    ValueError for an opset that the graph cannot be written in, and for more than 2 GB.
    """
    g = Graph(_resolved(opset, model.trunk.conv1.weight.dtype))
    contract = metadata.input
    batch: int | str = "batch"
    if contract.raw:
        pixels = g.input(IMAGE, UINT8, [batch, "rows", "columns"])
        assert contract.size is not None
        with g.scope("input"):
            images = pictures.as_input(g, pixels, contract.size)
            images = pictures.normalised(g, images, contract.mean, contract.std, contract.standardise)
    else:
        sides = [contract.size] * 2 if contract.size else ["height", "width"]
        value = g.input(IMAGE, FLOAT, [batch, contract.channels, *sides])
        images = Maps(value, (contract.size, contract.size) if contract.size else None)
    if metadata.form == "end2end":
        if contract.raw:
            size = pictures.picture_size(g, IMAGE)
        else:
            size = g.cast(g.input(IMAGE_SIZE, INT64, [batch, 2]), FLOAT)
    cam = cam_of(g, model, images, contract.channels)
    with g.scope("pooling"):
        logits = logits_of(g, model, cam)
    classes = len(metadata.class_names)
    g.output("logits", logits, FLOAT, [batch, classes])
    if metadata.form == "cam":
        g.output("cam", cam.value, FLOAT, [batch, classes, *_sides(cam)])
    else:
        mined(g, cam, metadata, size)
    return g.serialise({KEY: to_json(metadata)}, __version__)


def mined(g: Graph, cam: Maps, metadata: ExportMetadata, image_size: Value) -> None:
    """Add the mining of cam [N, C, H, W], and its outputs. image_size [N or 1, 2] float32."""
    settings, classes = metadata.mining, len(metadata.class_names)
    if settings.select == "regions" and settings.upsample > 1:
        with g.scope("enlarge"):
            cam = _enlarged(g, cam, settings.upsample)
    grid = Grid(g, cam.value, cam.size)
    with g.scope("mining"):
        done = steps.mine(g, cam.value, grid, settings)
    with g.scope("boxes"):
        if settings.select == "regions":
            found = boxes.region_boxes(g, done, grid, image_size)
        else:
            found = boxes.heatmap_boxes(g, done.heatmap, grid, classes, settings, image_size)
    count = settings.steps if settings.select == "regions" else settings.max_boxes
    maps = ["batch", classes, *_sides(cam)]
    g.output("boxes", found.boxes, FLOAT, ["batch", classes, count, 4])
    g.output("scores", found.scores, FLOAT, ["batch", classes, count])
    g.output("counts", found.counts, INT32, ["batch", classes])
    if "heatmap" in metadata.outputs:
        g.output("heatmap", done.heatmap, FLOAT, maps)
    if "erased_at" in metadata.outputs:
        g.output("erased_at", g.cast(steps.erased_at(g, done.regions), INT32), INT32, maps)


def _enlarged(g: Graph, cam: Maps, factor: int) -> Maps:
    shape = g.op("Shape", cam.value)
    value = resized(g, cam.value, g.op("Mul", shape, g.ints([1, 1, factor, factor])))
    return Maps(value, (cam.size[0] * factor, cam.size[1] * factor) if cam.size else None)


def _sides(maps: Maps) -> tuple[int | str, int | str]:
    return maps.size or ("map_height", "map_width")


def _resolved(opset: int | None, dtype: torch.dtype) -> int:
    least = FIRST_BFLOAT16_OPSET if dtype == torch.bfloat16 else FIRST_OPSET
    chosen = max(_DEFAULT_OPSET, least) if opset is None else opset
    if not least <= chosen <= LAST_OPSET:
        reason = ", as ONNX has no bfloat16 convolution before" if least > FIRST_OPSET else ""
        raise ValueError(
            f"--opset must be from {least} to {LAST_OPSET}{reason}, but is {chosen}; leave it out for "
            f"{max(_DEFAULT_OPSET, least)}"
        )
    return chosen
