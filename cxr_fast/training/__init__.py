"""Training: the stage ``base`` on image-level labels, and the step of the stage ``mining``."""

from cxr_fast.training.base import (
    LabelledImages,
    TrainedModel,
    TrainingSettings,
    load_archive,
    predict,
    provenance,
    train_base,
)
from cxr_fast.training.step import MiningLoss, MiningStepSettings, mining_step

__all__ = [
    "LabelledImages",
    "MiningLoss",
    "MiningStepSettings",
    "TrainedModel",
    "TrainingSettings",
    "load_archive",
    "mining_step",
    "predict",
    "provenance",
    "train_base",
]
