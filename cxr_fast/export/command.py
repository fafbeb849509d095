"""What the command ``export`` does, apart from talking; everything is checked before the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from cxr_fast.export.metadata import ExportMetadata, Form, InputContract
from cxr_fast.export.model import onnx_file
from cxr_fast.export.program import program_file
from cxr_fast.files import require_new, write_whole
from cxr_fast.model_files import model_digest, model_path
from cxr_fast.models import FoldedClassifier, ModelCard, fold, load_checkpoint

Precision = Literal["float32", "float16", "bfloat16"]


def export_model(
    model: str | Path,
    out: str | Path,
    to: Literal["onnx", "pt2"] = "onnx",
    form: Form = "end2end",
    *,
    dtype: Precision = "float32",
    size: int | Literal["dynamic"] | None = None,
    raw_input: bool = False,
    heatmap: bool = False,
    erased_at: bool = False,
    opset: int | None = None,
) -> ExportMetadata:
    """Write ``model`` (a checkpoint, or ``"demo"``) to the new file ``out``, whole or not at all.

    ``size`` is the side of the images in pixels, the model's own by default. What the rest means, and
    what the file then takes and gives, is in ``ExportMetadata``. The same arguments give the same
    bytes of an ONNX file. Raises FileExistsError where there is such a file, what ``load_checkpoint``
    does, and ValueError for what cannot be exported so.
    """
    target = Path(out)
    require_new(target)
    _check_combination(to, form, size, raw_input, heatmap or erased_at, opset)
    classifier, card = load_checkpoint(model_path(model))
    if isinstance(size, int):
        card = replace(card, input_size=size)
    folded = fold(classifier).to(getattr(torch, dtype))
    wanted = {"heatmap": heatmap, "erased_at": erased_at}
    metadata = describe(folded, card, form, size == "dynamic", raw_input, wanted)
    metadata = replace(metadata, model_sha256=model_digest(model))
    onnx = to == "onnx"
    content = onnx_file(folded, metadata, opset) if onnx else program_file(folded, metadata)
    write_whole(target, content)
    return metadata


def describe(
    model: FoldedClassifier,
    card: ModelCard,
    form: Form,
    any_size: bool = False,
    raw_input: bool = False,
    wanted: dict[str, bool] | None = None,
) -> ExportMetadata:
    """The contract of an export of ``model``, but for the digest of its file."""
    if form == "cam":
        outputs: tuple[str, ...] = ("logits", "cam")
    else:
        asked = (name for name, is_asked in (wanted or {}).items() if is_asked)
        outputs = ("logits", "boxes", "scores", "counts", *asked)
    return ExportMetadata(
        form=form,
        precision=str(model.trunk.conv1.weight.dtype).removeprefix("torch."),
        class_names=card.class_names,
        input=InputContract(
            raw=raw_input,
            # Grey images need no copies of themselves, except to be normalised by three means.
            channels=1 if card.standardise else len(card.mean),
            size=None if any_size else card.input_size,
            mean=(0.0,) if card.standardise else card.mean,
            std=(1.0,) if card.standardise else card.std,
            standardise=card.standardise,
        ),
        mining=card.mining,
        outputs=outputs,
        pooling=card.architecture.pooling,
        sharpness=card.architecture.sharpness,
        provenance=card.provenance,
    )


def _check_combination(
    to: str,
    form: str,
    size: int | str | None,
    raw_input: bool,
    maps_are_asked: bool,
    opset: int | None,
) -> None:
    if raw_input and size == "dynamic":
        raise ValueError(
            "--raw-input takes pictures of any size and resizes them to one; give that one with "
            "--size, or leave --size out for the model's own"
        )
    if maps_are_asked and form == "cam":
        raise ValueError(
            "--heatmap and --erased-at are made by mining; give them with --form end2end, or mine the "
            "output cam with cxr_fast.runtime"
        )
    if to == "pt2" and opset is not None:
        raise ValueError("--opset is of ONNX files; leave it out with --to pt2")
    if to == "pt2" and size == "dynamic":
        raise ValueError(
            "--size dynamic is for ONNX files: torch.export proves relations between the sizes of "
            "maps that hold for some images only; write a .pt2 for each size with --size N"
        )
    if to == "pt2" and raw_input:
        raise ValueError(
            "--raw-input is for ONNX files; programs that load a .pt2 have cxr_fast, whose "
            "archive.images.to_input and models.normalise prepare images"
        )
