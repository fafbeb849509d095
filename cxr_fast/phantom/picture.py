"""One image of the archive: a chest, its findings, and how the film was taken."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cxr_fast.phantom.anatomy import (
    Body,
    Chest,
    Map,
    canonical_chest,
    draw_body,
    fill_outlines,
    heart_outline,
    layer,
    normal_heart,
    place,
    polygons,
    reposition,
)
from cxr_fast.phantom.findings import plant
from cxr_fast.phantom.planning import Box, Planned, plan
from cxr_fast.phantom.settings import (
    PhantomSettings,
    Study,
    image_generator,
    patient_generator,
    study_of,
)
from cxr_fast.phantom.skeleton import draw_chest, ribbon

U8 = npt.NDArray[np.uint8]

# The sides that pictures are drawn at. Larger ones are enlarged: nothing in a chest is sharper than
# that, and the noise is added at full size. Smaller ones are reduced: a nodule needs some pixels.
_WORKING = (128, 512)

# How far the heart's soft border reaches beyond its outline.
_HEART_EDGE = 0.004

_SUFFIXES = (".png", ".jpg", ".jpeg")

# Detectors as the release names them: width, height, pixel spacing in mm.
DETECTORS = ((2992, 2991, 0.143), (2500, 2048, 0.168), (2048, 2500, 0.171), (3056, 2544, 0.139))


class Phantom(NamedTuple):
    """One image and what was planted in it.

    ``image`` is uint8 ``[size, size]``, bright where the body is dense. ``labels`` are the findings
    in the order of ``config.BOXED_FINDINGS`` (empty: No Finding); ``boxes`` are (finding, x, y, w,
    h) in pixels of ``image``, one or two a finding. ``detector`` is width, height and pixel spacing
    (mm) of the film it pretends to come from.
    """

    image: U8
    labels: tuple[str, ...]
    boxes: list[tuple[str, float, float, float, float]]
    study: Study
    view: str
    detector: tuple[int, int, float]

    @property
    def name(self) -> str:
        """The file name: patient and follow-up number."""
        return self.study.name

    @property
    def patient_id(self) -> int:
        """The patient's number, from 1."""
        return self.study.patient_id


class _Exposure(NamedTuple):
    gamma: float
    gain: float
    offset: float
    noise: float
    border: tuple[float, float, float, float]
    marker: str


def render(index: int, settings: PhantomSettings, *, without: Collection[str] = ()) -> Phantom:
    """Image ``index`` of the archive that ``settings`` describe.

    The same bytes on every call, whatever was rendered before. ``without`` names findings to leave
    out of the same picture, to see what they changed.

    Raises IndexError where there is no such image, ValueError where ``settings.backgrounds`` holds
    no image that can be read.
    """
    study = study_of(index, settings)
    patient = patient_generator(settings, study.patient_id)
    generator = image_generator(settings, index)
    portable = generator.random() < 0.4
    detector = DETECTORS[int(generator.integers(len(DETECTORS)))]
    body = reposition(draw_body(patient, study.gender == "F"), generator)
    if portable:
        # Taken from the front at a short distance: the heart is magnified, the breath shallow.
        body = replace(body, heart_ratio=body.heart_ratio * 1.04, inspiration=body.inspiration * 0.97)
    if settings.backgrounds is not None:
        body = Body()
    exposure = _expose(generator)
    planned = plan(settings, body, generator)
    planned = tuple(one for one in planned if one.finding not in without)

    if settings.backgrounds is None:
        chest, boxes = _drawn(body, planned, _grid(settings.size))
        image = _develop(chest.attenuation, exposure, body, settings.size, generator)
    else:
        image, boxes = _on_background(patient, planned, settings.backgrounds, settings.size)
    pixels = []
    for finding, box in boxes:
        x, y, w, h = (round(value * settings.size, 3) for value in box)
        pixels.append((finding, x, y, w, h))
    labels = tuple(dict.fromkeys(finding for finding, _ in boxes))
    view = "AP" if portable else "PA"
    return Phantom(image, labels, pixels, study, view, detector)


def _grid(size: int) -> int:
    return min(max(size, _WORKING[0]), _WORKING[1])


def _expose(generator: np.random.Generator) -> _Exposure:
    uniform = generator.uniform
    border = (0.0, 0.0, 0.0, 0.0)
    if generator.random() < 0.3:
        left, top, right, bottom = generator.uniform(-0.04, 0.045, 4).clip(0).tolist()
        border = (left, top, right, bottom)
    return _Exposure(
        gamma=uniform(0.80, 1.35),
        gain=uniform(0.92, 1.14),
        offset=uniform(-0.04, 0.05),
        noise=uniform(1.2, 3.2),
        border=border,
        marker=str(generator.choice(("L", "R", ""), p=(0.55, 0.3, 0.15))),
    )


def _drawn(body: Body, planned: tuple[Planned, ...], grid: int) -> tuple[Chest, list[tuple[str, Box]]]:
    boxes: list[tuple[str, Box]] = []
    heart = normal_heart(body)
    for one in planned:
        if one.finding == "Cardiomegaly":
            heart = one.box
            boxes.append((one.finding, _heart_box(body, heart, grid)))
    chest = draw_chest(body, heart, grid)
    for one in planned:
        if one.finding != "Cardiomegaly":
            chest, box = plant(chest, one)
            boxes.append((one.finding, box))
    return chest, sorted(boxes, key=lambda item: item[0])


def _heart_box(body: Body, heart: Box, grid: int) -> Box:
    outline = place(heart_outline(heart), body)
    x0, y0 = np.clip(np.floor((outline.min(0) - _HEART_EDGE) * grid) / grid, 0, 1).tolist()
    x1, y1 = np.clip(np.ceil((outline.max(0) + _HEART_EDGE) * grid) / grid, 0, 1).tolist()
    return x0, y0, x1 - x0, y1 - y0


def _develop(
    attenuation: Map, exposure: _Exposure, body: Body, size: int, generator: np.random.Generator
) -> U8:
    """Attenuation to grey values: tone, borders, marker, enlargement, quantum noise."""
    grid = attenuation.shape[0]
    grey = np.clip(attenuation, 0, 1.25) ** np.float32(exposure.gamma)
    grey *= np.float32(235 * exposure.gain)
    grey += np.float32(255 * exposure.offset * 0.5)
    # The shoulder of the film curve: bright parts lose contrast before they are white.
    bright = np.maximum(grey - 190, 0)
    grey -= bright * bright * np.float32(1 / 260)
    if exposure.marker:
        _mark(grey, exposure.marker, body)
    left, top, right, bottom = (round(part * grid) for part in exposure.border)
    grey[:top] = grey[grid - bottom :] = 0
    grey[:, :left] = grey[:, grid - right :] = 0
    if size != grid:
        resized = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC)
        grey = np.array(resized)
    # Seen at a lower resolution, a pixel averages the noise of several.
    noise = generator.standard_normal((size, size), dtype=np.float32)
    noise *= np.float32(exposure.noise * min(size / 1024, 1.5))
    grey += noise
    image: U8 = np.clip(grey + np.float32(0.5), 0, 255).astype(np.uint8)
    return image


# Strokes of the laterality marker, in a box one high.
_LETTERS = {
    "L": (((0, 0), (0, 1), (0.6, 1)),),
    "R": (
        ((0, 1), (0, 0), (0.4, 0), (0.58, 0.12), (0.58, 0.38), (0.4, 0.5), (0, 0.5)),
        ((0.3, 0.5), (0.62, 1)),
    ),
}


def _mark(grey: Map, letter: str, body: Body) -> None:
    """A lead letter in the upper corner of the patient's side that it names."""
    jitter = np.random.default_rng(body.shape_seed + 3)
    tall = jitter.uniform(0.03, 0.05)
    x = jitter.uniform(0.90, 0.94) if letter == "L" else jitter.uniform(0.03, 0.07)
    y = jitter.uniform(0.035, 0.08)
    flat = Body(tilt=jitter.normal(0, 0.05))
    strokes = [
        (ribbon(np.array(stroke) * tall + (x, y), np.array(0.2 * tall)), 255)
        for stroke in _LETTERS[letter]
    ]
    lead = layer(grey.shape[0], lambda ink, raster: fill_outlines(ink, raster, flat, strokes))
    np.maximum(grey, lead * 252, out=grey)


@lru_cache(maxsize=8)
def _background_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES))


def read_background(folder: Path, choice: float, size: int) -> Image.Image:
    """A grey image ``size`` square from ``folder``; ``choice`` in [0, 1) says which.

    A file that cannot be read is passed over for the next. Raises ValueError where none can.
    """
    files = _background_files(folder)
    start = int(choice * len(files))
    for path in files[start:] + files[:start]:
        try:
            with Image.open(path) as picture:
                grey: Image.Image = picture
                if picture.mode.startswith("I"):
                    # Pillow clips 16-bit to 8 instead of scaling it.
                    wide = np.asarray(picture, dtype=np.float32)
                    grey = Image.fromarray(wide * (255 / max(float(wide.max()), 1.0)))
                return grey.convert("L").resize((size, size), Image.Resampling.BILINEAR)
        except OSError:
            continue
    raise ValueError(
        f"backgrounds needs at least one readable PNG or JPEG image, but none of the "
        f"{len(files)} candidates in {folder} can be read; put chest X-rays there, or use None "
        "for drawn anatomy"
    )


def _on_background(
    patient: np.random.Generator, planned: tuple[Planned, ...], folder: Path, size: int
) -> tuple[U8, list[tuple[str, Box]]]:
    picture = read_background(folder, float(patient.random()), size)
    grid = _grid(size)
    small = picture if size == grid else picture.resize((grid, grid), Image.Resampling.BILINEAR)
    before = np.asarray(small, dtype=np.float32) / 255
    chest = canonical_chest(before)
    boxes: list[tuple[str, Box]] = []
    for one in planned:
        if one.finding == "Cardiomegaly":
            # Laid over the picture's own heart, as bright as a heart, with a soft border.
            heart = layer(grid, polygons(Body(), heart_outline(one.box)), blur=0.005)
            dense = heart * (0.75 + 0.15 * one.strength) * np.maximum(0.78 - chest.attenuation, 0)
            chest = replace(chest, attenuation=chest.attenuation + dense)
            boxes.append((one.finding, _heart_box(Body(), one.box, grid)))
        else:
            chest, box = plant(chest, one)
            boxes.append((one.finding, box))
    change = (chest.attenuation - before) * 255
    if size != grid:
        resized = Image.fromarray(change).resize((size, size), Image.Resampling.BICUBIC)
        change = np.asarray(resized)
    image = np.asarray(picture, dtype=np.float32) + change
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8), boxes
