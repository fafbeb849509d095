"""Classifiers for mining: ResNets with or without multi-scale aggregation, folded, packed, on disk."""

from cxr_fast.models.card import Architecture, ModelCard
from cxr_fast.models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from cxr_fast.models.fold import FoldedClassifier, fold
from cxr_fast.models.inputs import normalise
from cxr_fast.models.msa import Classifier, build
from cxr_fast.models.packed import PackedClassifier, can_pack, pack

__all__ = [
    "Architecture",
    "CheckpointError",
    "Classifier",
    "FoldedClassifier",
    "ModelCard",
    "PackedClassifier",
    "build",
    "can_pack",
    "fold",
    "load_checkpoint",
    "normalise",
    "pack",
    "save_checkpoint",
]
