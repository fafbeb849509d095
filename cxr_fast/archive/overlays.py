"""Pictures of mined images like the paper's Fig. 2: each step's heatmap, their aggregate, the boxes.

A row a class: the image with the found boxes in green and the true ones in red, the normalised CAM of
each step (erased pixels left grey), and the aggregated heatmap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cxr_fast.runtime import MiningResult

GREEN, RED, WHITE = (70, 220, 90), (255, 70, 60), (235, 235, 235)
PANEL, MARGIN, CAPTION = 320, 8, 22

# Corners of a perceptual ramp from black-blue through red to light yellow, readable in grey as well.
_RAMP = np.array(
    [(0, 0, 30), (60, 10, 110), (150, 30, 110), (220, 70, 60), (250, 160, 30), (252, 250, 170)],
    float,
)


@dataclass(frozen=True)
class Truth:
    """One true box: finding and (x1, y1, x2, y2) in original pixels."""

    finding: str
    box: tuple[float, float, float, float]


class MinedClass(NamedTuple):
    """One class of one image: name, probability (None: not said), step maps [T, H, W] with NaN where
    erased, the heatmap [H, W], boxes [K, 4] in original pixels and scores [K] (None: not said).
    """

    name: str
    probability: float | None
    steps: NDArray[np.float32]
    heatmap: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32] | None


def step_maps(
    cam: NDArray[np.float32], erased_at: NDArray[np.uint8], extent: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The normalised CAM of each step, [T, H, W], NaN on pixels that earlier steps erased."""
    maps = []
    for t, (lo, hi) in enumerate(extent, start=1):
        spread = hi - lo if hi > lo else np.float32(1)
        alive = (erased_at == 0) | (erased_at >= t)
        maps.append(np.where(alive, (cam - lo) / spread, np.nan).astype(np.float32))
    return np.stack(maps)


def mined_class(name: str, probability: float, mined: MiningResult, row: int, index: int) -> MinedClass:
    """What was mined of class ``index`` in image ``row`` of a batch."""
    attention, found = mined.mined, mined.found
    count = int(found.counts[row, index])
    return MinedClass(
        name,
        probability,
        step_maps(mined.cam[row, index], attention.erased_at[row, index], attention.extent[row, index]),
        _zero_to_one(mined.heatmap[row, index]),
        found.boxes[row, index, :count],
        found.scores[row, index, :count],
    )


def _zero_to_one(heatmap: NDArray[np.float32]) -> NDArray[np.float32]:
    """What boxes are cut from: the identity on a normalised heatmap, min-max on a raw one."""
    lo, hi = heatmap.min(), heatmap.max()
    return (heatmap - lo) / (hi - lo) if hi > lo else np.zeros_like(heatmap)


def draw_overlay(
    image: NDArray[np.uint8] | NDArray[np.uint16],
    title: str,
    classes: Sequence[MinedClass],
    truth: Sequence[Truth] = (),
) -> Image.Image:
    """The picture of one image; ``image`` [H, W] at its original size."""
    height, width = image.shape
    scale = PANEL / max(height, width)
    panel_size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = Image.fromarray(eight_bit(image)).resize(panel_size, Image.Resampling.BOX)
    columns = 2 + max((len(mined.steps) for mined in classes), default=0)
    cell = panel_size[0] + MARGIN, panel_size[1] + MARGIN + CAPTION
    sheet = Image.new(
        "RGB", (MARGIN + columns * cell[0], CAPTION + len(classes) * cell[1]), (18, 18, 20)
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    pen.text((MARGIN, 4), f"{title}    green: mined, red: truth", fill=WHITE, font=font)
    for row, mined in enumerate(classes):
        boxes = grey.convert("RGB")
        _draw_boxes(boxes, mined, truth, scale)
        told = "" if mined.probability is None else f"  p = {mined.probability:.2f}"
        panels = [(f"{mined.name}{told}", boxes)]
        panels += [
            (f"step {t}", coloured(grey, values)) for t, values in enumerate(mined.steps, start=1)
        ]
        panels.append(("aggregated", coloured(grey, mined.heatmap)))
        for column, (caption, panel) in enumerate(panels):
            corner = MARGIN + column * cell[0], CAPTION + row * cell[1]
            pen.text((corner[0], corner[1] + 3), caption, fill=WHITE, font=font)
            sheet.paste(panel, (corner[0], corner[1] + CAPTION))
    return sheet


def eight_bit(image: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Grey of 8 bits, as it is shown."""
    return (image if image.dtype == np.uint8 else image >> 8).astype(np.uint8)


def ramp(level: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The colours [..., 3], 0 to 255, of levels [...] from 0 to 1."""
    position = np.asarray(level, np.float64)[..., None] * (len(_RAMP) - 1)
    lower = np.clip(position.astype(int), 0, len(_RAMP) - 2)[..., 0]
    colour: NDArray[np.float64] = _RAMP[lower] + (position - lower[..., None]) * (
        _RAMP[lower + 1] - _RAMP[lower]
    )
    return colour


def coloured(grey: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """The map in colour over the picture; pixels without a value stay grey."""
    known = np.isfinite(values).astype(np.float32)

    def enlarged(small: NDArray[np.float32], how: Image.Resampling) -> NDArray[np.float32]:
        return np.asarray(Image.fromarray(small).resize(grey.size, how))

    # Interpolated among known pixels only, so that a map does not fade towards what was erased.
    weight = enlarged(known, Image.Resampling.BILINEAR)
    total = enlarged(np.clip(np.nan_to_num(values), 0, 1) * known, Image.Resampling.BILINEAR)
    level = total / np.maximum(weight, 1e-6)
    covered = enlarged(known, Image.Resampling.NEAREST) > 0
    # The stronger the map, the less of the picture shows through.
    opacity = (0.25 + 0.4 * level[..., None]) * covered[..., None]
    base = np.asarray(grey.convert("RGB"), dtype=float)
    return Image.fromarray(np.rint(base * (1 - opacity) + ramp(level) * opacity).astype(np.uint8))


def _draw_boxes(picture: Image.Image, mined: MinedClass, truth: Sequence[Truth], scale: float) -> None:
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    for true in truth:
        if true.finding == mined.name:
            pen.rectangle([edge * scale for edge in true.box], outline=RED, width=2)
    for row, box in enumerate(mined.boxes):
        x1, y1, x2, y2 = (float(edge) * scale for edge in box)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=GREEN, width=2)
        if mined.scores is None:
            continue
        place, told = (x1 + 4, y1 + 3), f"{mined.scores[row]:.2f}"
        pen.rectangle(pen.textbbox(place, told, font=font), fill=(18, 18, 20))
        pen.text(place, told, fill=GREEN, font=font)


def truths_by_name(
    images: Sequence[str], findings: Sequence[str], boxes: NDArray[np.float32]
) -> Mapping[str, list[Truth]]:
    """True boxes of each image's file name."""
    by_name: dict[str, list[Truth]] = {}
    for name, finding, (x1, y1, x2, y2) in zip(images, findings, boxes.tolist(), strict=True):
        by_name.setdefault(name, []).append(Truth(finding, (x1, y1, x2, y2)))
    return by_name


def write_overlay(folder: Path, image_id: str, picture: Image.Image) -> Path:
    """Saves under a name made of the image's id; whole or not at all."""
    # In the same subfolders as the image, and never outside of this one.
    parts = ["__" if part == ".." else part for part in image_id.split("/") if part]
    target = folder.joinpath(*parts[:-1], parts[-1] + ".overlay.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    picture.save(unfinished, format="PNG")
    unfinished.replace(target)
    return target
