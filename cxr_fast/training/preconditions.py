"""What must hold before a training begins; each check raises ValueError, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning_fabric import Fabric

from cxr_fast.training.batches import Labelled
from cxr_fast.training.settings import TrainingSettings


def require_own_folder(out: Path, model_files: Sequence[str], state: str) -> None:
    """The models in a folder to train into are this training's: none of another's is written over."""
    if (out / state).exists():
        return
    foreign = [name for name in model_files if (out / name).exists()]
    if foreign:
        raise ValueError(
            f"{out} holds {' and '.join(foreign)} but no {state} to go on from, and a training into it "
            "would write over them; name another folder, or move them away"
        )


def require_both_labels(data: Labelled, names: tuple[str, ...]) -> None:
    """Every class has images with it and images without."""
    for name, share in zip(names, np.asarray(data.labels).mean(0).tolist(), strict=True):
        if not 0 < share < 1:
            raise ValueError(
                f"{name} is {'in every' if share else 'in no'} training image; a classifier needs "
                "both: leave the finding out, or give more images"
            )


def require_monitored(validation: Labelled | None, settings: TrainingSettings) -> None:
    """What picks the best epoch can be measured on the validation images."""
    if validation is None or settings.monitor != "auroc":
        return
    share = np.asarray(validation.labels).mean(0)
    if not ((share > 0) & (share < 1)).any():
        raise ValueError(
            "the AUROC that picks the best epoch needs a finding that some validation images have and "
            "some lack, but there is none; hold back more patients, or monitor the loss"
        )


def require_precision(settings: TrainingSettings, fabric: Fabric) -> None:
    """The precision that is asked for is that of the fabric."""
    has = fabric.strategy.precision.precision
    if settings.precision != "auto" and (settings.precision == "bfloat16") != (has == "bf16-mixed"):
        raise ValueError(
            f"the settings ask for precision {settings.precision}, but the fabric has {has}; open it "
            "with the same"
        )
