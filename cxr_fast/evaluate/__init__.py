"""Judging a run's boxes, heatmaps and probabilities; ``evaluate_run`` does it all."""

from __future__ import annotations

from cxr_fast.evaluate.bounds import afp_bounds
from cxr_fast.evaluate.documents import document, records, write_evaluation
from cxr_fast.evaluate.run import evaluate_run
from cxr_fast.evaluate.settings import AurocScores, Evaluation, EvaluationOptions

__all__ = [
    "AurocScores",
    "Evaluation",
    "EvaluationOptions",
    "afp_bounds",
    "document",
    "evaluate_run",
    "records",
    "write_evaluation",
]
