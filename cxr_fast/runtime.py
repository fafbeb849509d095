"""The operators of ``cxr_fast.ops`` for numpy arrays, in processes that have no torch.

Names, shapes, equations and results are those of ``cxr_fast.ops``; only gradients are missing. Every
function takes ``threads``: how many threads it may use, 0 for as many as this process has cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxr_fast import _numpy_ops, checks
from cxr_fast.config import MiningSettings

DEFAULTS = MiningSettings()
FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))

FloatArray = NDArray[Any]


class MinedAttention(NamedTuple):
    """``erased_at`` [N, C, H, W] uint8 and ``extent`` [N, C, T, 2] float32, as ``cxr_fast.ops``."""

    erased_at: NDArray[np.uint8]
    extent: NDArray[np.float32]


class HeatmapBoxes(NamedTuple):
    """``boxes`` [N, C, K, 4] in pixels of the image, ``scores`` [N, C, K], ``counts`` [N, C]."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    counts: NDArray[np.int32]


class MiningResult(NamedTuple):
    """What ``attention_mining`` gives: logits [N, C, T], cam and heatmap [N, C, H, W], and the rest."""

    logits: NDArray[np.float32]
    cam: FloatArray
    mined: MinedAttention
    heatmap: NDArray[np.float32]
    found: HeatmapBoxes


def cam(features: FloatArray, weight: FloatArray, threads: int = 0) -> FloatArray:
    """``cam[n,c,h,w] = sum over d of weight[c,d] * features[n,d,h,w]``.

    features [N, D, H, W] and weight [C, D], float16, float32 or float64; returns [N, C, H, W]
    float32 (float64 if either input is). TypeError, ValueError: see ``cxr_fast.ops.cam``. Eq. 7.
    """
    features, weight = _floats("features", features), _floats("weight", weight)
    checks.require_cam_arguments(features.shape, weight.shape)
    wide = np.dtype(np.float64) in (features.dtype, weight.dtype)
    if wide:
        features = features.astype(np.float64, copy=False)
    weight = weight.astype(np.float64 if wide else np.float32, copy=False)
    result: FloatArray = _numpy_ops.cam(
        np.ascontiguousarray(features), np.ascontiguousarray(weight), _threads(threads)
    )
    return result


def mine_attention(
    cam: FloatArray,
    steps: int = 3,
    threshold: float = 0.5,
    connectivity: int = 8,
    erased_at: NDArray[np.uint8] | None = None,
    first_step: int = 1,
    threads: int = 0,
) -> MinedAttention:
    """Erase the peak's component of every [N, C, H, W] map, ``steps`` times.

    Arguments, results and errors as ``cxr_fast.ops.mine_attention``. Sec. 3.2.
    """
    cam = _maps("cam", cam)
    checks.require_steps(steps, first_step)
    checks.require_threshold("threshold", threshold)
    checks.require_connectivity(connectivity)
    if erased_at is not None:
        erased_at = _erased("erased_at", erased_at, "cam", cam.shape)
    return MinedAttention(
        *_numpy_ops.mine_attention(
            cam, steps, threshold, connectivity, erased_at, first_step, _threads(threads)
        )
    )


def masked_gap(
    cam: FloatArray, erased_at: NDArray[np.uint8], steps: int = 3, threads: int = 0
) -> NDArray[np.float32]:
    """Logits [N, C, T] without bias: the mean of cam over what each step left, erased pixels as 0.

    Arguments and errors as ``cxr_fast.ops.masked_gap``, float32 throughout. Eq. 2.
    """
    cam = _maps("cam", cam)
    erased_at = _erased("erased_at", erased_at, "cam", cam.shape)
    checks.require_steps(steps)
    result: NDArray[np.float32] = _numpy_ops.masked_gap(cam, erased_at, steps, _threads(threads))
    return result


def aggregate_heatmap(
    cam: FloatArray, mined: MinedAttention, mode: str = "normalized", threads: int = 0
) -> NDArray[np.float32]:
    """The aggregated heatmap [N, C, H, W] of Eq. 8; cam may be [T, N, C, H, W], one map a step.

    Arguments and errors as ``cxr_fast.ops.aggregate_heatmap``.
    """
    cam = _floats("cam", cam).astype(np.float32, copy=False)
    erased_at, extent = np.asarray(mined.erased_at), np.asarray(mined.extent)
    checks.require_maps("mined.erased_at", erased_at.shape)
    checks.require_dtype("mined.erased_at", erased_at.dtype, (np.dtype(np.uint8),))
    checks.require_dtype("mined.extent", extent.dtype, (np.dtype(np.float32),))
    checks.require_dims("mined.extent", extent.shape, "[N, C, T, 2]", 4)
    steps = extent.shape[2]
    checks.require_steps(steps)
    expected: tuple[int, ...] = erased_at.shape
    checks.require_equal_shape(
        "mined.extent", extent.shape, "mined.erased_at", (*expected[:2], steps, 2)
    )
    if cam.ndim == 5:
        expected = (steps, *expected)
    checks.require_equal_shape("cam", cam.shape, "mined", expected)
    checks.require_choice("mode", mode, ("normalized", "raw"))
    result: NDArray[np.float32] = _numpy_ops.aggregate_heatmap(
        np.ascontiguousarray(cam),
        np.ascontiguousarray(erased_at),
        np.ascontiguousarray(extent),
        mode,
        _threads(threads),
    )
    return result


def heatmap_boxes(
    heatmap: FloatArray,
    image_size: tuple[int, int] | NDArray[Any] = (1024, 1024),
    thresholds: Sequence[float] = DEFAULTS.thresholds,
    select: str = DEFAULTS.select,
    max_boxes: int = DEFAULTS.max_boxes,
    max_overlap: float = DEFAULTS.max_overlap,
    upsample: int = DEFAULTS.upsample,
    connectivity: int = DEFAULTS.connectivity,
    threads: int = 0,
) -> HeatmapBoxes:
    """The best boxes of every [N, C, H, W] heatmap, in order of score.

    Arguments, results and errors as ``cxr_fast.ops.heatmap_boxes``. Sec. 3.2.
    """
    heatmap = _maps("heatmap", heatmap)
    settings = _box_settings(thresholds, select, max_boxes, max_overlap, upsample, connectivity)
    sizes = _image_sizes(image_size, heatmap.shape[0])
    return HeatmapBoxes(*_numpy_ops.heatmap_boxes(heatmap, sizes, settings, _threads(threads)))


def label_components(
    mask: NDArray[np.bool_], connectivity: int = 8, threads: int = 0
) -> NDArray[np.int32]:
    """Number the connected components of every mask [..., H, W] bool, int32 of that shape.

    Arguments, errors and source as ``cxr_fast.ops.label_components``.
    """
    mask = np.ascontiguousarray(mask)
    checks.require_dtype("mask", mask.dtype, (np.dtype(np.bool_),))
    if mask.ndim < 2:
        raise ValueError(f"mask must have the dimensions [..., H, W], but has shape {mask.shape}")
    checks.require_sides("mask", mask.shape)
    checks.require_connectivity(connectivity)
    result: NDArray[np.int32] = _numpy_ops.label_components(mask, connectivity, _threads(threads))
    return result


def mine_cam(
    cam: FloatArray,
    bias: FloatArray | None = None,
    steps: int = DEFAULTS.steps,
    threshold: float = DEFAULTS.cam_threshold,
    connectivity: int = DEFAULTS.connectivity,
    mode: str = DEFAULTS.mode,
    image_size: tuple[int, int] | NDArray[Any] = (1024, 1024),
    thresholds: Sequence[float] = DEFAULTS.thresholds,
    select: str = DEFAULTS.select,
    max_boxes: int = DEFAULTS.max_boxes,
    max_overlap: float = DEFAULTS.max_overlap,
    upsample: int = DEFAULTS.upsample,
    threads: int = 0,
) -> MiningResult:
    """Everything after the CAM [N, C, H, W], in one pass.

    Arguments, results and errors as ``cxr_fast.ops.mine_cam``.
    """
    maps = _maps("cam", cam)
    checks.require_steps(steps)
    checks.require_threshold("threshold", threshold)
    checks.require_choice("mode", mode, ("normalized", "raw"))
    settings = _box_settings(thresholds, select, max_boxes, max_overlap, upsample, connectivity)
    if bias is not None:
        bias = np.ascontiguousarray(_floats("bias", bias), dtype=np.float32)
        checks.require_equal_shape("bias", bias.shape, "the classes of cam", (maps.shape[1],))
    logits, erased_at, extent, heatmap, *found = _numpy_ops.mine_cam(
        maps,
        bias,
        steps,
        threshold,
        mode,
        _image_sizes(image_size, maps.shape[0]),
        settings,
        _threads(threads),
    )
    mined = MinedAttention(erased_at, extent)
    return MiningResult(logits, maps, mined, heatmap, HeatmapBoxes(*found))


def mine_regions(
    cam: FloatArray,
    bias: FloatArray | None = None,
    steps: int = DEFAULTS.steps,
    threshold: float = DEFAULTS.cam_threshold,
    connectivity: int = DEFAULTS.connectivity,
    mode: str = DEFAULTS.mode,
    image_size: tuple[int, int] | NDArray[Any] = (1024, 1024),
    upsample: int = DEFAULTS.upsample,
    threads: int = 0,
) -> MiningResult:
    """Mine cam [N, C, H, W] with a box around what each step erases, as ``mining.mine_regions``.

    All maps of the result are enlarged, [N, C, H * upsample, W * upsample]. The other arguments, and
    errors, are those of ``mine_cam``.
    """
    enlarged = _enlarged(_enlarged(_maps("cam", cam), upsample, 3), upsample, 2)
    mined = mine_attention(enlarged, steps, threshold, connectivity, threads=threads)
    heatmap = aggregate_heatmap(enlarged, mined, mode, threads)
    logits = masked_gap(enlarged, mined.erased_at, steps, threads)
    if bias is not None:
        logits = logits + np.asarray(bias, np.float32)[:, None]
    found = _region_boxes(mined, _image_sizes(image_size, len(enlarged)))
    return MiningResult(logits, enlarged, mined, heatmap, found)


def _enlarged(maps: NDArray[np.float32], factor: int, axis: int) -> NDArray[np.float32]:
    """Bilinear along one axis, half-pixel centres (align_corners=False)."""
    side = maps.shape[axis]
    place = ((np.arange(side * factor, dtype=np.float32) + 0.5) / factor - 0.5).clip(min=0)
    first = place.astype(np.int64)
    shape = [1] * maps.ndim
    shape[axis] = -1
    share = (place - first).astype(np.float32).reshape(shape)
    before, behind = maps.take(first, axis), maps.take((first + 1).clip(max=side - 1), axis)
    return np.ascontiguousarray((1 - share) * before + share * behind)


def _region_boxes(mined: MinedAttention, image_sizes: NDArray[np.float64]) -> HeatmapBoxes:
    height, width = mined.erased_at.shape[2:]
    low, high = mined.extent[..., 0], mined.extent[..., 1]
    boxes, exists = [], []
    for step in range(1, high.shape[2] + 1):
        region = mined.erased_at == step
        rows, columns = region.any(3), region.any(2)
        edges = [
            columns.argmax(2),
            rows.argmax(2),
            width - columns[..., ::-1].argmax(2),
            height - rows[..., ::-1].argmax(2),
        ]
        exists.append(rows.any(2))
        boxes.append(np.stack(edges, -1) * exists[-1][..., None])
    found = np.stack(exists, 2)
    sizes = np.broadcast_to(image_sizes, (len(high), 2))
    scale = np.stack([sizes[:, 1] / width, sizes[:, 0] / height] * 2, 1)[:, None, None]
    # What saw nothing, or no number, has no box and no score.
    with np.errstate(invalid="ignore"):
        span = np.maximum(high[..., :1] - low[..., :1], np.finfo(np.float32).tiny)
        scores = np.where(found, (high - low[..., :1]) / span, np.float32(0))
    return HeatmapBoxes(
        (np.stack(boxes, 2) * scale).astype(np.float32),
        scores.astype(np.float32),
        found.sum(2, dtype=np.int32),
    )


def attention_mining(
    features: FloatArray,
    weight: FloatArray,
    bias: FloatArray | None = None,
    steps: int = DEFAULTS.steps,
    threshold: float = DEFAULTS.cam_threshold,
    connectivity: int = DEFAULTS.connectivity,
    mode: str = DEFAULTS.mode,
    image_size: tuple[int, int] | NDArray[Any] = (1024, 1024),
    thresholds: Sequence[float] = DEFAULTS.thresholds,
    select: str = DEFAULTS.select,
    max_boxes: int = DEFAULTS.max_boxes,
    max_overlap: float = DEFAULTS.max_overlap,
    upsample: int = DEFAULTS.upsample,
    threads: int = 0,
) -> MiningResult:
    """Features and classifier in; logits, CAM, heatmaps and boxes out.

    features [N, D, H, W], weight [C, D], bias [C]; the rest, and what comes back, as
    ``cxr_fast.ops.attention_mining``.
    """
    return mine_cam(
        cam(features, weight, threads),
        bias,
        steps,
        threshold,
        connectivity,
        mode,
        image_size,
        thresholds,
        select,
        max_boxes,
        max_overlap,
        upsample,
        threads,
    )


def instruction_set() -> str:
    """Say which kernels this processor runs: portable, avx2 or avx512 (CXR_FAST_ISA asks for less)."""
    return str(_numpy_ops.isa())


def _threads(threads: int) -> int:
    checks.require_int("threads", threads, 0, 4096)
    return threads or len(os.sched_getaffinity(0))


def _floats(name: str, value: Any) -> FloatArray:
    array = np.asarray(value)
    checks.require_dtype(name, array.dtype, FLOATS)
    return array


def _maps(name: str, value: Any) -> NDArray[np.float32]:
    array = _floats(name, value)
    checks.require_maps(name, array.shape)
    return np.ascontiguousarray(array, dtype=np.float32)


def _erased(name: str, value: Any, partner: str, shape: Sequence[int]) -> NDArray[np.uint8]:
    array = np.asarray(value)
    checks.require_dtype(name, array.dtype, (np.dtype(np.uint8),))
    checks.require_equal_shape(name, array.shape, partner, shape)
    return np.ascontiguousarray(array)


def _image_sizes(image_size: Any, images: int) -> NDArray[np.float64]:
    checks.require_image_size(image_size, images)
    return np.ascontiguousarray(np.atleast_2d(np.asarray(image_size, dtype=np.float64)))


def _box_settings(
    thresholds: Sequence[float],
    select: str,
    max_boxes: int,
    max_overlap: float,
    upsample: int,
    connectivity: int,
) -> Any:
    checks.require_box_arguments(thresholds, select, max_boxes, max_overlap, upsample, connectivity)
    return _numpy_ops.BoxSettings(
        list(map(float, thresholds)), select, max_boxes, max_overlap, upsample, connectivity
    )
