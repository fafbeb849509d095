"""What an exported file says of itself: the contract between who exports a model and who runs it.

One JSON object under the key ``cxr_fast``, in the metadata of an ONNX file and beside a torch.export
program::

    {"format": "cxr_fast.export", "version": 1, "cxr_fast": "0.1.0", "form": "end2end",
     "precision": "float32", "class_names": [...], "pooling": "gap", "sharpness": 4.0,
     "input": {"raw": false, "channels": 1, "size": 512, "mean": [...], "std": [...],
               "standardise": false},
     "mining": {"steps": 3, ...}, "outputs": ["logits", "boxes", ...], "model_sha256": "...",
     "provenance": "..."}

Whoever adds what changes the meaning of a file raises the version; readers ignore keys that they do not
know. Imports neither torch nor onnx.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from cxr_fast import __version__, checks
from cxr_fast.config import MiningSettings

Form = Literal["cam", "end2end"]

KEY = "cxr_fast"
FORMAT = "cxr_fast.export"
VERSION = 1

IMAGE, IMAGE_SIZE = "image", "image_size"
# Every name that an output may have, in the order in which a file has them.
OUTPUTS = ("logits", "cam", "boxes", "scores", "counts", "heatmap", "erased_at")


@dataclass(frozen=True)
class InputContract:
    """What the input ``image`` takes.

    Not ``raw``: float32 [N, channels, H, W], grey pixels scaled to [0, 1], resized as
    ``archive.images.to_input`` does, then ``(pixel - mean) / std``, with one entry, or one a channel;
    with ``standardise`` an image's own mean and standard deviation (at least 1e-3) take their place. H
    and W are ``size``, or any where it is None. An ``end2end`` file takes ``image_size`` int64 [N, 2]
    beside it, height and width of the original, in whose pixels boxes are.

    ``raw``: uint8 [N, rows, columns], a batch of pictures of equal size as they are; the graph resizes
    them to ``size`` and normalises. Boxes are in their pixels.
    """

    raw: bool
    channels: int
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    standardise: bool = False

    def __post_init__(self) -> None:
        for name, expected, holds in (
            ("raw", "true or false", isinstance(self.raw, bool)),
            ("standardise", "true or false", isinstance(self.standardise, bool)),
            ("channels", "1 or 3", self.channels in (1, 3)),
            ("size", "an integer above 0, or null with raw false", self._size_holds()),
            ("mean", "one number, or one a channel", self._are_numbers(self.mean)),
            (
                "std",
                "as many numbers above 0 as mean",
                self._are_numbers(self.std)
                and len(self.std) == len(self.mean)
                and all(value > 0 for value in self.std),
            ),
        ):
            _require("input", name, getattr(self, name), expected, holds)

    def _size_holds(self) -> bool:
        if self.size is None:
            return self.raw is False
        return isinstance(self.size, int) and not isinstance(self.size, bool) and self.size > 0

    def _are_numbers(self, values: object) -> bool:
        return (
            isinstance(values, tuple)
            and len(values) in {1, self.channels}
            and all(
                isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
                for v in values
            )
        )


@dataclass(frozen=True)
class ExportMetadata:
    """An exported file. TypeError, ValueError, in a sentence, for a value that cannot be.

    ``form``: ``cam`` gives ``logits`` [N, C] and ``cam`` [N, C, H, W], both float32; ``end2end`` gives
    ``logits``, ``boxes`` [N, C, K, 4] float32 (x1, y1, x2, y2), ``scores`` [N, C, K] float32 and
    ``counts`` [N, C] int32, and where asked for ``heatmap`` [N, C, H, W] float32 and ``erased_at``
    [N, C, H, W] int32, as ``mining`` says. ``precision`` is the network's (inputs and outputs stay
    float32); ``pooling`` and ``sharpness`` made the logits of the CAM (``models.Architecture``);
    ``model_sha256`` is the digest of the model's file, empty where it came from no file of ours.
    """

    form: Form
    precision: str
    class_names: tuple[str, ...]
    input: InputContract
    mining: MiningSettings
    outputs: tuple[str, ...]
    pooling: str = "gap"
    sharpness: float = 4.0
    model_sha256: str = ""
    provenance: str = ""
    cxr_fast: str = field(default=__version__)

    def __post_init__(self) -> None:
        names = self.class_names
        texts = isinstance(names, tuple) and all(isinstance(n, str) and n.strip() for n in names)
        sharp = self.sharpness
        positive = isinstance(sharp, int | float) and not isinstance(sharp, bool) and sharp > 0
        for name, expected, holds in (
            ("form", "'cam' or 'end2end'", self.form in get_args(Form)),
            (
                "precision",
                "'float32', 'float16' or 'bfloat16'",
                self.precision in ("float32", "float16", "bfloat16"),
            ),
            (
                "class_names",
                "one or more different names",
                texts and len(names) > 0 and len(set(names)) == len(names),
            ),
            (
                "outputs",
                f"names of {', '.join(OUTPUTS)}",
                isinstance(self.outputs, tuple) and all(o in OUTPUTS for o in self.outputs),
            ),
            ("pooling", "'gap' or 'lse'", self.pooling in ("gap", "lse")),
            ("sharpness", "a number above 0", positive),
            ("model_sha256", "a text", isinstance(self.model_sha256, str)),
            ("provenance", "a text", isinstance(self.provenance, str)),
            ("cxr_fast", "a text", isinstance(self.cxr_fast, str)),
        ):
            _require("an exported file", name, getattr(self, name), expected, holds)
        try:
            checks.require_mining_settings(self.mining)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the mining settings of an exported file: {error}") from error


def _require(owner: str, name: str, value: object, expected: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} of {owner} must be {expected}, but is {value!r:.80}")


def to_json(metadata: ExportMetadata) -> str:
    """As the file holds it; equal metadata give equal text."""
    values = {"format": FORMAT, "version": VERSION, **asdict(metadata)}
    return json.dumps(values, sort_keys=True, allow_nan=False)


def from_properties(properties: Mapping[str, str]) -> ExportMetadata:
    """Read the metadata of a file, given as its map of names and texts.

    ValueError where they hold none of ours, a later version, or values that cannot be.
    """
    if KEY not in properties:
        raise ValueError(
            f"the file must say what it is in its metadata, under {KEY!r}, but has "
            f"{', '.join(sorted(properties)) or 'no metadata'}: cxr-fast export did not write it. "
            "Export the model again, or make one of somebody's classifier with cxr-fast adopt"
        )
    try:
        values: Any = json.loads(properties[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"the metadata under {KEY!r} must be JSON, but are damaged: {error}; export the model again"
        ) from error
    form, version = (
        (values.get("format"), values.get("version")) if isinstance(values, dict) else (None, None)
    )
    if form != FORMAT or not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(
            f"the metadata under {KEY!r} must be of the format {FORMAT!r}, version 1 to {VERSION}, but "
            f"say {form!r}, version {version!r}; export the model again"
        )
    if version > VERSION:
        raise ValueError(
            f"the file is of version {version} of the format {FORMAT!r}, and this cxr_fast reads up to "
            f"{VERSION}; upgrade cxr_fast"
        )
    known = checks.known_fields("an exported file", ExportMetadata, values)
    parts: tuple[tuple[str, type[Any]], ...] = (
        ("input", InputContract),
        ("mining", MiningSettings),
    )
    for name, kind in parts:
        known[name] = kind(**checks.known_fields(f"{name} of an exported file", kind, known[name]))
    return ExportMetadata(**known)
