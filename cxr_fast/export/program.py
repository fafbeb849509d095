"""A model as a torch.export program (.pt2), for programs that have torch but not this model's code.

The operators stay what they are, calls of ``cxr_fast::...``: the kernels that mine here mine there.
Whoever loads the file needs cxr_fast installed and imports it before: ``import cxr_fast.ops``.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from cxr_fast.export.metadata import IMAGE, IMAGE_SIZE, KEY, ExportMetadata, to_json
from cxr_fast.mining import mine_maps
from cxr_fast.models import FoldedClassifier


class _Mining(nn.Module):
    """(image, image_size) -> the outputs by name; ``ExportMetadata`` says what they are."""

    def __init__(self, model: FoldedClassifier, metadata: ExportMetadata) -> None:
        super().__init__()
        self.model = model
        self.metadata = metadata

    def forward(self, image: Tensor, image_size: Tensor | None = None) -> dict[str, Tensor]:
        cam = self.model(image)
        if image_size is None:
            return {"logits": self.model.logits(cam), "cam": cam}
        logits, result = mine_maps(self.model, self.metadata.mining, cam, image_size)
        found = result.found
        outputs = {
            "logits": logits,
            "boxes": found.boxes,
            "scores": found.scores,
            "counts": found.counts,
            "heatmap": result.heatmap,
            "erased_at": result.mined.erased_at.to(torch.int32),
        }
        return {name: outputs[name] for name in self.metadata.outputs}


def program_file(model: FoldedClassifier, metadata: ExportMetadata) -> bytes:
    """A .pt2 file of ``model`` as ``metadata`` says; the metadata is its extra file ``cxr_fast``.

    The input is not raw, and its size is fixed.
    """
    contract = metadata.input
    side = contract.size
    assert side is not None
    # Not 1: a dimension of the example that is 1 is taken to be always 1.
    example: dict[str, Any] = {IMAGE: torch.zeros(2, contract.channels, side, side)}
    batch = torch.export.Dim("batch", min=1)
    shapes: dict[str, Any] = {IMAGE: {0: batch}}
    if metadata.form == "end2end":
        example[IMAGE_SIZE] = torch.full((2, 2), side)
        shapes[IMAGE_SIZE] = {0: batch}
    with torch.no_grad():
        program = torch.export.export(
            _Mining(model, metadata), (), example, dynamic_shapes=shapes, strict=False
        )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={KEY: to_json(metadata)})
    return file.getvalue()
