"""Judging a run's boxes, heatmaps and probabilities; ``evaluate_run`` does it all."""

from __future__ import annotations

from cxr_fast.evaluate.bounds import afp_bounds
from cxr_fast.evaluate.documents import document, records, write_evaluation
from cxr_fast.evaluate.run import evaluate_run, evaluate_walks
from cxr_fast.evaluate.settings import AurocScores, Evaluation, EvaluationOptions
from cxr_fast.evaluate.walks import JudgedWalks, judge_walks

__all__ = [
    "AurocScores",
    "Evaluation",
    "EvaluationOptions",
    "JudgedWalks",
    "afp_bounds",
    "document",
    "evaluate_run",
    "evaluate_walks",
    "judge_walks",
    "records",
    "write_evaluation",
]
