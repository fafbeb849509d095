"""What a phantom archive is made from, and which patient each image belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cxr_fast.config import BOXED_FINDINGS

# Images come in blocks of twelve that five patients share, so that any image's patient is known
# without walking through the images before it.
_IMAGES_PER_PATIENT = (1, 1, 2, 3, 5)
_BLOCK = sum(_IMAGES_PER_PATIENT)

# Last words of the seeds of what several images share; an image's own seed has no third word, and
# numpy pads with zeros, so these are never zero.
_BLOCK_STREAM = 1
_PATIENT_STREAM = 2


@dataclass(frozen=True)
class PhantomSettings:
    """How a phantom archive is drawn. Image ``i`` depends on these values and on ``i`` alone.

    ``size`` is the side of the square images in pixels; the picture is the same at any size.
    ``findings_per_image`` gives the proportions of images with 0, 1, 2, ... different findings;
    ``prevalence`` the weight of each finding, in the order of ``config.BOXED_FINDINGS``.
    ``second_box`` is the chance that a finding is seen at a second place too (never for
    Cardiomegaly and Pneumothorax). ``backgrounds`` is a folder of PNG or JPEG images to plant the
    findings on, instead of drawn anatomy.

    Raises ValueError for a value out of range, FileNotFoundError where ``backgrounds`` is not a
    folder.
    """

    images: int = 200
    size: int = 1024
    seed: int = 0
    backgrounds: Path | None = None
    findings_per_image: tuple[float, ...] = (0.3, 0.45, 0.2, 0.05)
    prevalence: tuple[float, ...] = (1.0,) * len(BOXED_FINDINGS)
    second_box: float = 0.15

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(
                f"images must be 0 or more, got {self.images}; say how many images to draw"
            )
        if self.size < 64:
            raise ValueError(
                f"size must be at least 64 pixels, got {self.size}; a nodule is smaller than a "
                "pixel's neighbourhood below that, so choose 64 or more"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}; choose another seed")
        if not 0.0 <= self.second_box <= 1.0:
            raise ValueError(
                f"second_box is a chance and must lie in [0, 1], got {self.second_box}; "
                "use 0 for one box a finding"
            )
        _check_weights("findings_per_image", self.findings_per_image)
        _check_weights("prevalence", self.prevalence)
        if len(self.prevalence) != len(BOXED_FINDINGS):
            raise ValueError(
                f"prevalence needs {len(BOXED_FINDINGS)} weights, one for each of "
                f"{', '.join(BOXED_FINDINGS)}, got {len(self.prevalence)}"
            )
        most = max(n for n, weight in enumerate(self.findings_per_image) if weight > 0)
        if most > sum(weight > 0 for weight in self.prevalence):
            raise ValueError(
                f"findings_per_image asks for {most} different findings in an image, but only "
                f"{sum(weight > 0 for weight in self.prevalence)} have a prevalence above 0; "
                "shorten findings_per_image or raise a prevalence"
            )
        if self.backgrounds is not None and not Path(self.backgrounds).is_dir():
            raise FileNotFoundError(
                f"backgrounds must be a folder of PNG or JPEG images, but {self.backgrounds} is "
                "not a folder; give one that exists, or None for drawn anatomy"
            )


def _check_weights(name: str, weights: tuple[float, ...]) -> None:
    if not all(0 <= weight < float("inf") for weight in weights) or not sum(weights) > 0:
        raise ValueError(
            f"{name} must be weights of 0 or more with one above 0, got {weights}; "
            "they need not sum to 1"
        )


class Study(NamedTuple):
    """Who an image shows. ``follow_up`` counts a patient's images from 0."""

    name: str
    patient_id: int
    follow_up: int
    age: int
    gender: str
    test: bool


def patient_generator(settings: PhantomSettings, patient_id: int) -> np.random.Generator:
    """The random stream of what a patient's images share: anatomy, background, age."""
    words = [settings.seed, patient_id, _PATIENT_STREAM]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def image_generator(settings: PhantomSettings, index: int) -> np.random.Generator:
    """The random stream of one image: findings, exposure, noise."""
    words = [settings.seed, index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def study_of(index: int, settings: PhantomSettings) -> Study:
    """The patient, follow-up number and split of image ``index``.

    One patient in five is a test patient, with all of that patient's images. Raises IndexError
    where the archive has no image ``index``.
    """
    if not 0 <= index < settings.images:
        raise IndexError(
            f"image {index} asked for, but the archive has images 0 to {settings.images - 1}; "
            "raise PhantomSettings.images or ask for another"
        )
    block, place = divmod(index, _BLOCK)
    words = [settings.seed, block, _BLOCK_STREAM]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
    ends = np.cumsum(generator.permutation(_IMAGES_PER_PATIENT))
    test = int(generator.integers(len(ends)))
    member = int(np.searchsorted(ends, place, side="right"))
    patient_id = block * len(ends) + member + 1
    follow_up = place - (int(ends[member - 1]) if member else 0)

    person = patient_generator(settings, patient_id)
    gender = "F" if person.random() < 0.44 else "M"
    age = int(np.clip(person.normal(47, 17), 3, 90)) + follow_up // 2
    name = f"{patient_id:08d}_{follow_up:03d}.png"
    return Study(name, patient_id, follow_up, age, gender, member == test)
