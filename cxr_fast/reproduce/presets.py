"""At what scale the paper's protocol runs: as published, or small enough for two cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cxr_fast.config import MiningSettings
from cxr_fast.models import Architecture
from cxr_fast.training import MiningStepSettings, TrainingSettings


@dataclass(frozen=True)
class Preset:
    """A scale of the protocol.

    ``input_sizes``: those that stand for the paper's 512 and 1024; ``batch_sizes`` go with them.
    ``mined_size`` is the one of the two that mining goes on with, the better one in Table 1.
    ``stages``: settings by stage; ``baseline`` are those of the paper's baseline (t = 1, KP-Vanilla,
    trained as long as the others). ``mining``: how CAMs become boxes. ``published_bounds``:
    Table 2's AFP is bounded by Wang's as printed, not as reached here. ``imagenet``: weights that the
    backbone begins with, as the paper's does; None draws them.
    """

    architecture: Architecture
    input_sizes: tuple[int, int]
    batch_sizes: tuple[int, int]
    mined_size: int
    stages: Mapping[str, TrainingSettings]
    mining: MiningSettings
    published_bounds: bool = False
    imagenet: Path | None = None

    def settings(self, stage: str, size: int, seed: int) -> TrainingSettings:
        """The settings of a stage at an input size and with a seed."""
        batch = self.batch_sizes[self.input_sizes.index(size)]
        return replace(self.stages[stage], batch_size=batch, seed=seed)


def _stages(common: TrainingSettings, **changes: Mapping[str, object]) -> dict[str, TrainingSettings]:
    made = {
        stage: replace(common, stage=stage, **changes.get(stage.replace("-", "_"), {}))  # type: ignore[arg-type]
        for stage in ("base", "msa-init", "msa", "mining")
    }
    alone = MiningStepSettings(variant="kp-vanilla", steps=1)
    made["baseline"] = replace(made["mining"], mining=alone)
    return made


PAPER = Preset(
    Architecture("resnet50", "none"),
    (512, 1024),
    (64, 32),
    512,
    _stages(TrainingSettings(), mining={"learning_rate": 0.01}),
    MiningSettings(),
    published_bounds=True,
)

# Two cores train all networks of a table in under an hour.
SMALL = Preset(
    Architecture("resnet18", "none", width=0.25, in_channels=1),
    (128, 256),
    (32, 32),
    256,
    _stages(
        TrainingSettings(
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=0.02,
            monitor="auroc",
            precision="float32",
        ),
        base={"epochs": 14},
        msa_init={"epochs": 1, "learning_rate": 1e-3},
        msa={"epochs": 6, "learning_rate": 1e-3, "patience": 3},
        mining={"epochs": 3, "learning_rate": 3e-4},
    ),
    # Maps of 16x16 cells: boxes are cut from them enlarged.
    MiningSettings(upsample=4),
)

# Findings on real X-rays are learned more slowly than on drawn ones (docs/evidence.md).
LONG = replace(
    SMALL,
    stages={
        **SMALL.stages,
        "base": replace(SMALL.stages["base"], epochs=42),
        "msa": replace(SMALL.stages["msa"], epochs=12, patience=None),
    },
)

PRESETS = {"paper": PAPER, "small": SMALL, "long": LONG}
