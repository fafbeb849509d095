"""Refusals of bad arguments, the same for tensors and arrays: expected, came, what to do.

Shapes are sequences of ints and dtypes whatever the array library uses, so
one sentence serves torch and numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args

from cxr_fast.config import MiningSettings, Mode

MAX_SIDE = 1 << 15
MAX_BOXES = 255
MAX_UPSAMPLE = 64
_MOST_REGIONS = 127  # ranks of findings are int8


def dtype_name(dtype: Any) -> str:
    """``float32`` for both ``torch.float32`` and numpy's dtype."""
    return str(dtype).removeprefix("torch.")


def _listed(dtypes: Sequence[Any]) -> str:
    names = [dtype_name(dtype) for dtype in dtypes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def require_dtype(name: str, dtype: Any, allowed: Sequence[Any]) -> None:
    """TypeError unless ``dtype`` is one of ``allowed``."""
    if dtype not in allowed:
        raise TypeError(
            f"{name} must be {_listed(allowed)}, but is {dtype_name(dtype)}; convert it first"
        )


def require_dims(name: str, shape: Sequence[int], layout: str, dims: int) -> None:
    """ValueError unless ``shape`` has ``dims`` entries; ``layout`` says them, like [N, C, H, W]."""
    if len(shape) != dims:
        raise ValueError(
            f"{name} must have the {dims} dimensions {layout}, but has shape {tuple(shape)}; "
            "reshape it, or add the missing axis with [None]"
        )


def require_maps(name: str, shape: Sequence[int], layout: str = "[N, C, H, W]") -> None:
    """ValueError unless ``shape`` is four-dimensional with a height and width of 1 to 32768."""
    require_dims(name, shape, layout, 4)
    require_sides(name, shape)


def require_sides(name: str, shape: Sequence[int]) -> None:
    """ValueError unless the last two sizes are 1 to 32768."""
    for side, size in zip(("height", "width"), shape[-2:], strict=True):
        if size < 1 or size > MAX_SIDE:
            raise ValueError(
                f"{name} must have a {side} of 1 to {MAX_SIDE}, but has shape {tuple(shape)}"
            )


def require_equal_shape(name: str, shape: Sequence[int], partner: str, expected: Sequence[int]) -> None:
    """ValueError unless ``shape`` equals ``expected``, which belongs to ``partner``."""
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name} must have shape {tuple(expected)} to go with {partner}, "
            f"but has shape {tuple(shape)}"
        )


def require_cam_arguments(features: Sequence[int], weight: Sequence[int]) -> None:
    """Shapes of ``cam``: features [N, D, H, W], weight [C, D]."""
    require_maps("features", features, "[N, D, H, W]")
    require_dims("weight", weight, "[C, D]", 2)
    if weight[1] != features[1]:
        raise ValueError(
            f"weight must have one column a channel of features, [C, {features[1]}], but has shape "
            f"{tuple(weight)}; pass the weight of the linear layer behind the pooling, as it is"
        )


def require_int(name: str, value: Any, least: int, greatest: int) -> None:
    """TypeError or ValueError unless ``value`` is an int of that range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, but is {value!r} ({type(value).__name__})")
    if not least <= value <= greatest:
        raise ValueError(f"{name} must be from {least} to {greatest}, but is {value}")


def require_steps(steps: Any, first_step: Any = 1) -> None:
    """``steps`` and ``first_step`` fit into the one byte of ``erased_at``."""
    require_int("steps", steps, 1, 255)
    require_int("first_step", first_step, 1, 255)
    if first_step + steps > 256:
        raise ValueError(
            f"steps must end at 255, the most that erased_at (uint8) can hold, but first_step "
            f"{first_step} and steps {steps} end at {first_step + steps - 1}; run fewer"
        )


def require_threshold(name: str, value: Any) -> None:
    """ValueError unless 0 < value < 1, also after rounding to float32."""
    # The least float32 above 0 is 2**-149, the greatest below 1 is 1 - 2**-24.
    if not isinstance(value, int | float) or not 2**-149 <= value <= 1 - 2**-24:
        raise ValueError(
            f"{name} must be above 0 and below 1, but is {value!r}; it is a fraction of the range "
            "of each map, 0.5 in the paper"
        )


def require_connectivity(connectivity: Any) -> None:
    """ValueError unless 4 or 8."""
    if not isinstance(connectivity, int) or connectivity not in (4, 8):
        raise ValueError(
            f"connectivity must be 4 (sides) or 8 (sides and corners), but is {connectivity!r}"
        )


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, but is {value!r}")


def require_box_arguments(
    thresholds: Sequence[Any],
    select: Any,
    max_boxes: Any,
    max_overlap: Any,
    upsample: Any,
    connectivity: Any,
) -> None:
    """Everything about ``heatmap_boxes`` besides the heatmap and the image size."""
    if isinstance(thresholds, int | float) or len(thresholds) == 0:
        raise ValueError(
            f"thresholds must be a sequence of at least one number, but is {thresholds!r}; "
            "for one threshold write (0.5,)"
        )
    for value in thresholds:
        if not isinstance(value, int | float) or not 0.0 < value <= 1.0:
            raise ValueError(
                f"thresholds must be above 0 and at most 1, but hold {value!r}; they are fractions "
                "of each heatmap's range, so write 180 / 255 for an intensity of 180"
            )
    require_choice("select", select, ("components", "peak"))
    require_int("max_boxes", max_boxes, 1, MAX_BOXES)
    if not isinstance(max_overlap, int | float) or not 0.0 <= max_overlap <= 1.0:
        raise ValueError(f"max_overlap is an IoU from 0 to 1, but is {max_overlap!r}")
    require_int("upsample", upsample, 1, MAX_UPSAMPLE)
    require_connectivity(connectivity)


def require_mining_settings(settings: MiningSettings) -> None:
    """By the rules of the operators: what is written down can be run. TypeError or ValueError."""
    require_steps(settings.steps)
    if settings.select == "regions" and settings.steps > _MOST_REGIONS:
        raise ValueError(
            f"steps: expected at most {_MOST_REGIONS} with select='regions', a box each, got "
            f"{settings.steps}; take fewer"
        )
    require_threshold("cam_threshold", settings.cam_threshold)
    require_choice("mode", settings.mode, get_args(Mode))
    require_box_arguments(
        settings.thresholds,
        # Not the operator's: see mining.mine_regions.
        "components" if settings.select == "regions" else settings.select,
        settings.max_boxes,
        settings.max_overlap,
        settings.upsample,
        settings.connectivity,
    )


def require_image_size(image_size: Any, images: int) -> None:
    """``image_size`` is (height, width) in pixels, or has one such row an image."""
    shape = getattr(image_size, "shape", None)
    if shape is None:
        pair = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)
        if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
            raise ValueError(
                f"image_size must be (height, width) in pixels, or [{images}, 2] with one row an "
                f"image, but is {image_size!r}"
            )
    elif tuple(shape) != (images, 2):
        raise ValueError(
            f"image_size must be (height, width) in pixels, or [{images}, 2] with one row an image, "
            f"but has shape {tuple(shape)}"
        )


def known_fields(owner: str, kind: type[Any], values: object) -> dict[str, Any]:
    """Pick the entries of a JSON object that are fields of dataclass ``kind``; lists as tuples.

    ValueError, which names ``owner``, for what is no object or lacks a field without default.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{owner} must be a JSON object, but is {values!r:.80}.")
    known = {}
    for entry in fields(kind):
        if entry.name in values:
            value = values[entry.name]
            known[entry.name] = tuple(value) if isinstance(value, list) else value
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{owner} must have the entry {entry.name!r}, but lacks it.")
    return known
