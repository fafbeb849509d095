"""Judging a run's findings by ground-truth boxes: Acc and AFP per class (paper, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cxr_fast.archive.chestxray14 import read_boxes
from cxr_fast.archive.findings import read_findings, read_images, run_class_names
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.metrics import LocalizationRow, localization_table


def evaluate_run(
    run: str | Path,
    boxes: str | Path,
    overlap_thresholds: Sequence[float] = (0.1, 0.3),
    findings: Sequence[str] | None = None,
) -> list[LocalizationRow]:
    """Acc and AFP of every class of a run against a box table in the layout of BBox_List_2017.

    Images are matched by file name. Truth in images that the run is not about is left out; images
    of the run without any finding, unreadable ones too, count as missed. AFP is per image that has a
    box of the class. ``findings`` defaults to the classes that the table names, in order of their
    first box.

    Raises RunFolderError if ``run`` holds none, FileNotFoundError without the table, ValueError for
    a table that cannot be read or shares no image with the run.
    """
    mined = read_findings(run)
    known_names = dict.fromkeys((*run_class_names(run), *CHESTXRAY14_FINDINGS))
    truth = read_boxes(boxes, findings=tuple(known_names))
    names = [PurePosixPath(name).name for name in mined["image_id"].to_pylist()]
    order = {PurePosixPath(name).name: i for i, name in enumerate(read_images(run))}
    known = np.array([name in order for name in truth.images], dtype=bool)
    if not known.any():
        raise ValueError(
            f"no image of {boxes} was mined in {run}; give the box table of the same archive"
        )
    truth_findings = [truth.findings[i] for i in np.flatnonzero(known)]
    classes = tuple(findings) if findings else tuple(dict.fromkeys(truth_findings))
    index = {name: i for i, name in enumerate(classes)}
    mined_classes = mined["class"].to_pylist()
    judged = np.array([name in index for name in mined_classes], dtype=bool)
    wanted = np.array([truth.findings[i] in index for i in range(len(known))]) & known
    corners = np.stack([mined[edge].to_numpy() for edge in ("x1", "y1", "x2", "y2")], 1)
    return localization_table(
        np.array([order[name] for name in names], dtype=np.int64)[judged],
        mined["rank"].to_numpy().astype(np.int64)[judged],
        np.array([index.get(name, -1) for name in mined_classes], dtype=np.int64)[judged],
        corners[judged],
        np.array([order.get(name, -1) for name in truth.images], dtype=np.int64)[wanted],
        np.array([index.get(name, -1) for name in truth.findings], dtype=np.int64)[wanted],
        truth.boxes[wanted],
        findings=classes,
        overlap_thresholds=overlap_thresholds,
    )
