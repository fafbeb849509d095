"""From a batch of images to what was mined of it, by torch: the network, and the operators.

A ``Miner`` is a pure function of its images: the same batch gives the same rows on every call and in
every process, which restarts and distributed runs rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_fast import ops, runtime
from cxr_fast.config import MiningSettings
from cxr_fast.model_files import model_path
from cxr_fast.models import (
    FoldedClassifier,
    ModelCard,
    can_pack,
    fold,
    load_checkpoint,
    normalise,
    pack,
)
from cxr_fast.rows import MinedBatch, Network

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Mined(NamedTuple):
    """All that a batch gave: ``probability`` [N, C] of step 1, and the operators' results."""

    probability: Tensor
    result: ops.MiningResult


@dataclass(frozen=True)
class Miner:
    """A folded network on its device, in its precision, with the settings to mine by."""

    model: FoldedClassifier
    card: ModelCard
    settings: MiningSettings
    device: torch.device
    dtype: torch.dtype

    @property
    def network(self) -> Network:
        """See ``BatchMiner``."""
        return Network(
            self.card.class_names,
            self.card.input_size,
            self.settings,
            str(self.dtype).removeprefix("torch."),
            self.device.type,
            {"torch": torch.__version__, "convolutions": self.model.convolutions},
        )

    @property
    def where(self) -> str:
        """See ``BatchMiner``."""
        return str(self.device)

    @property
    def reads_inline(self) -> bool:
        """See ``BatchMiner``."""
        return self.device.type == "cpu"

    @contextmanager
    def in_threads(self) -> Iterator[Callable[[], None]]:
        """See ``BatchMiner``: one thread inside an operator for each thread that calls it."""
        before = torch.get_num_threads()
        try:
            yield lambda: torch.set_num_threads(1)
        finally:
            # What a thread sets is also what threads to come would start from.
            torch.set_num_threads(before)

    def empty(self, batch_size: int) -> NDArray[np.float32]:
        """See ``BatchMiner``: pinned for a GPU, which copies from there without waiting."""
        size = self.card.input_size
        zeros = torch.zeros(batch_size, size, size, pin_memory=self.device.type == "cuda")
        images: NDArray[np.float32] = zeros.numpy()
        return images

    def mine_batch(
        self, images: NDArray[np.float32], image_sizes: NDArray[np.float64], heatmaps: bool
    ) -> MinedBatch:
        """See ``BatchMiner``."""
        mined = self.mine(torch.from_numpy(images), torch.from_numpy(image_sizes))
        result = mined.result
        flat = result.heatmap.flatten(2)
        lo, hi = flat.aminmax(dim=2)
        peak = torch.where(hi > lo, flat.argmax(dim=2), -1)  # the first of equal ones
        heatmap = levels = erased_at = None
        if heatmaps:
            heatmap = _levels(result.heatmap).cpu().numpy()
            levels = _levels(result.cam).cpu().numpy()
            erased_at = result.mined.erased_at.cpu().numpy()
        boxes, scores, counts = (part.cpu().numpy() for part in result.found)
        return MinedBatch(
            mined.probability.float().cpu().numpy(),
            boxes,
            scores,
            counts,
            peak.cpu().numpy(),
            (result.heatmap.shape[2], result.heatmap.shape[3]),
            heatmap,
            levels,
            erased_at,
            (~result.mined.extent.isnan().flatten(1).any(1)).cpu().numpy(),
            lambda: _on_host(result),
        )

    @torch.inference_mode()
    def mine(self, images: Tensor, image_sizes: Tensor) -> Mined:
        """Mine images [N, S, S] float32 in [0, 1]; ``image_sizes`` [N, 2] height, width in pixels."""
        cam = self.model(self.prepare(images))
        logits, result = mine_maps(self.model, self.settings, cam, image_sizes)
        return Mined(logits.sigmoid(), result)

    def prepare(self, images: Tensor) -> Tensor:
        """Normalised images [N, 1 or 3, S, S] on the device, channels_last."""
        images = images.to(self.device, non_blocking=True)
        return normalise(images[:, None], self.card).to(self.dtype)


def _levels(maps: Tensor) -> Tensor:
    """``rows.levels_of`` on the device."""
    flat = maps.float().flatten(2)
    lo, hi = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    span = torch.where(hi > lo, hi - lo, 1.0)
    return ((flat - lo) / span * 255).round().to(torch.uint8).reshape(maps.shape)


def _on_host(result: ops.MiningResult) -> runtime.MiningResult:
    logits, cam, mined, heatmap, found = result
    return runtime.MiningResult(
        logits.float().cpu().numpy(),
        cam.float().cpu().numpy(),
        runtime.MinedAttention(*(part.cpu().numpy() for part in mined)),
        heatmap.cpu().numpy(),
        runtime.HeatmapBoxes(*(part.cpu().numpy() for part in found)),
    )


def mine_maps(
    model: FoldedClassifier, settings: MiningSettings, cam: Tensor, image_sizes: Tensor
) -> tuple[Tensor, ops.MiningResult]:
    """Logits [N, C] with nothing erased, and what mining makes of cam [N, C, H, W] of ``model``.

    ``image_sizes`` [N, 2] height and width in pixels.
    """
    s = settings
    if s.select == "regions":
        return model.logits(cam), mine_regions(cam, s, image_sizes, model.bias)
    result = ops.mine_cam(
        cam.contiguous(),
        model.bias,
        s.steps,
        s.cam_threshold,
        s.connectivity,
        s.mode,
        image_sizes,
        s.thresholds,
        s.select,
        s.max_boxes,
        s.max_overlap,
        s.upsample,
    )
    # Of global average pooling, the first step's logits are there already.
    gap = model.architecture.pooling == "gap"
    return (result.logits[..., 0] if gap else model.logits(cam)), result


def mine_regions(
    cam: Tensor, settings: MiningSettings, image_sizes: Tensor, bias: Tensor | None = None
) -> ops.MiningResult:
    """Mine cam [N, C, H, W] with a box around what each step erases: ``select="regions"``.

    Maps are enlarged first, so the result's are [N, C, H * upsample, W * upsample]. A step that erases
    nothing has no box. Scores fall from 1: the peak of what a step saw over that of the first, both
    above the first step's lowest value. ``image_sizes`` [N, 2] height and width in pixels,
    ``bias`` [C]. Not in the paper: steps are those of Sec. 3.2, boxes are not of the heatmap.
    """
    enlarged = cam.float()
    if settings.upsample > 1:
        enlarged = torch.nn.functional.interpolate(
            enlarged, scale_factor=settings.upsample, mode="bilinear", align_corners=False
        )
    enlarged = enlarged.contiguous()
    mined = ops.mine_attention(enlarged, settings.steps, settings.cam_threshold, settings.connectivity)
    heatmap = ops.aggregate_heatmap(enlarged, mined, settings.mode)
    logits = ops.masked_gap(enlarged, mined.erased_at, settings.steps)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)[:, None]
    return ops.MiningResult(logits, enlarged, mined, heatmap, _region_boxes(mined, image_sizes))


def _region_boxes(mined: ops.MinedAttention, image_sizes: Tensor) -> ops.HeatmapBoxes:
    height, width = mined.erased_at.shape[2:]
    low, high = mined.extent[..., 0], mined.extent[..., 1]
    steps = high.shape[2]
    boxes, exists = [], []
    for step in range(1, steps + 1):
        region = mined.erased_at == step
        rows, columns = region.any(3), region.any(2)
        edges = [
            columns.int().argmax(2),
            rows.int().argmax(2),
            width - columns.flip(2).int().argmax(2),
            height - rows.flip(2).int().argmax(2),
        ]
        exists.append(rows.any(2))
        boxes.append(torch.stack(edges, -1) * exists[-1][..., None])
    found = torch.stack(exists, 2)
    sizes = image_sizes.to(high.device, torch.float64).expand(high.shape[0], 2)
    scale = torch.stack([sizes[:, 1] / width, sizes[:, 0] / height], 1).repeat(1, 2)[:, None, None]
    first = (high[..., :1] - low[..., :1]).clamp(min=torch.finfo(torch.float32).tiny)
    scores = torch.where(found, (high - low[..., :1]) / first, 0.0)
    counts = found.sum(2, dtype=torch.int32)
    return ops.HeatmapBoxes((torch.stack(boxes, 2) * scale).float(), scores.float(), counts)


def load_miner(
    model: str | Path,
    settings: MiningSettings | None = None,
    precision: Precision = "auto",
    device: str = "auto",
) -> Miner:
    """Load a checkpoint (or ``"demo"``, the bundled model) for mining, on one device.

    ``settings`` default to those recorded with the model. Raises FileNotFoundError, CheckpointError
    (a file that is no model), or ValueError for a precision or device that this machine lacks.
    """
    return load_miners(model, settings, precision, resolve_devices(device)[:1])[0]


def load_miners(
    model: str | Path,
    settings: MiningSettings | None,
    precision: Precision,
    devices: Sequence[torch.device],
) -> tuple[Miner, ...]:
    """Load a model once for each device; raises what ``load_miner`` does.

    On a processor its convolutions are packed where torch can run them so.
    """
    classifier, card = load_checkpoint(model_path(model))
    dtype = resolve_precision(precision, devices[0])
    miners = []
    for device in devices:
        folded = fold(classifier).to(device, dtype)
        folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
        if device.type == "cpu" and can_pack(dtype):
            folded = pack(folded, card.input_size)
        miners.append(Miner(folded, card, settings or card.mining, device, dtype))
    return tuple(miners)


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """What ``auto`` means here: bfloat16 where the hardware multiplies it, float32 elsewhere.

    ValueError for float16 on a processor.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    if precision == "float16" and device.type == "cpu":
        raise ValueError(
            "precision float16 needs a GPU: processors compute it in software; use bfloat16, or "
            "float32, or auto"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _cpu_multiplies_bfloat16() -> bool:
    cpu = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def resolve_device(device: str) -> torch.device:
    """The first of ``resolve_devices``, for what runs on one."""
    return resolve_devices(device)[0]


def resolve_devices(device: str) -> list[torch.device]:
    """The devices of a run: ``auto`` is every GPU, or else the processor; several by commas.

    ``cuda`` is every GPU, too, ``cuda:1`` one. ValueError for a name that is none, for a GPU that is
    not there, and for a mixture.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    try:
        chosen = [torch.device(name.strip()) for name in device.split(",")]
    except RuntimeError as error:
        raise ValueError(
            f"device must be auto, cpu or cuda, or GPUs such as cuda:0,cuda:1, but is {device!r}"
        ) from error
    if any(one.type not in ("cpu", "cuda") for one in chosen):
        raise ValueError(f"device must be cpu or cuda, or several GPUs, but is {device!r}")
    if any(one.type == "cuda" for one in chosen) and not gpus:
        raise ValueError("device cuda was asked for, but torch finds none here; use --device cpu")
    if chosen == [torch.device("cuda")]:
        return [torch.device("cuda", index) for index in range(gpus)]
    if len(chosen) > 1 and any(one.type != "cuda" or one.index is None for one in chosen):
        raise ValueError(
            f"several devices must be GPUs with numbers, such as cuda:0,cuda:1, but are {device!r}"
        )
    absent = [one.index for one in chosen if one.type == "cuda" and (one.index or 0) >= gpus]
    if absent or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"device is {device!r}, but this machine has {gpus} GPUs, numbered from 0; name each once"
        )
    return chosen
