"""Training on image-level labels: the stages of the paper, and the step of the stage ``mining``."""

from cxr_fast.training.augment import Augmentation
from cxr_fast.training.loop import Data, Trained, open_fabric, predict
from cxr_fast.training.settings import TrainingSettings
from cxr_fast.training.stages import StageResult, train_base, train_from
from cxr_fast.training.step import MiningLoss, MiningStepSettings, mining_step

__all__ = [
    "Augmentation",
    "Data",
    "MiningLoss",
    "MiningStepSettings",
    "StageResult",
    "Trained",
    "TrainingSettings",
    "mining_step",
    "open_fabric",
    "predict",
    "train_base",
    "train_from",
]
