"""Classifiers for mining: ResNets with or without multi-scale aggregation, folded, and on disk."""

from cxr_fast.models.card import Architecture, ModelCard
from cxr_fast.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from cxr_fast.models.fold import FoldedClassifier, fold
from cxr_fast.models.inputs import normalise
from cxr_fast.models.msa import Classifier, build

__all__ = [
    "Architecture",
    "CheckpointError",
    "Classifier",
    "FoldedClassifier",
    "ModelCard",
    "build",
    "fold",
    "load_checkpoint",
    "normalise",
    "save_checkpoint",
]
