"""Names and settings that every part of cxr_fast shares. Imports nothing of ours, and nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Of an image that is standardised by itself. Without contrast, a quarter of a grey level: nothing of it
# is blown up to noise.
LEAST_DEVIATION = 1e-3

# The eight findings with boxes in ChestX-ray14, in the order of the paper's tables.
BOXED_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)

# All fourteen findings of ChestX-ray14, in the order of the published split and predictions.
CHESTXRAY14_FINDINGS = (
    *BOXED_FINDINGS,
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)

Mode = Literal["normalized", "raw"]
Select = Literal["components", "peak", "regions"]


@dataclass(frozen=True)
class MiningSettings:
    """How a CAM becomes boxes: the arguments of ``ops.attention_mining``, in one value.

    ``cam_threshold`` cuts each step's foreground (Sec. 3.2 of the paper, 0.5); ``thresholds`` cut
    the aggregated heatmap into boxes, as ``select`` says (``ops.heatmap_boxes``). With
    ``select="regions"``, which is not in the paper, there is a box a step: around what it erased of the
    CAM, enlarged ``upsample`` times; ``thresholds``, ``max_boxes`` and ``max_overlap`` are not used.
    """

    steps: int = 3
    cam_threshold: float = 0.5
    connectivity: int = 8
    mode: Mode = "normalized"
    # Chosen on planted findings; the figures are in docs/evidence.md.
    thresholds: tuple[float, ...] = (0.6, 0.75, 0.9)
    select: Select = "components"
    max_boxes: int = 3
    max_overlap: float = 0.5
    upsample: int = 1
