"""``cxr-fast reproduce rules``: what the paper leaves open from CAMs to boxes, one thing at a time.

Every rule differs from ``BASE`` in one respect. Patients fall into two halves, so that what looks best
on the first can be looked up on the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_fast.archive.dataset import split_by_patient
from cxr_fast.config import BOXED_FINDINGS, MiningSettings
from cxr_fast.figures.text import difference_text, table_line
from cxr_fast.files import write_whole
from cxr_fast.reproduce.cells import Cell, Judge
from cxr_fast.reproduce.judging import Detections, Truth, localise, restricted
from cxr_fast.reproduce.presets import Preset
from cxr_fast.reproduce.summary import difference, localised
from cxr_fast.reproduce.tables import WANG, aggregated, mined

IOU = (0.1, 0.3, 0.5)
BASE = MiningSettings(steps=1, thresholds=(0.6, 0.75, 0.9), upsample=4)


def rules() -> dict[str, dict[str, MiningSettings]]:
    """What is compared with ``BASE``: what a rule varies, how, and the rule."""
    lists: dict[str, tuple[float, ...]] = {"60/255, 180/255": WANG}
    lists |= {
        ", ".join(f"{cut:g}" for cut in cuts): cuts
        for cuts in ((0.5,), (0.7,), (0.3, 0.5, 0.7), (0.4, 0.6, 0.8), (0.5, 0.7, 0.9), (0.7, 0.8, 0.9))
    }
    made = {
        "thresholds": {name: replace(BASE, thresholds=cuts) for name, cuts in lists.items()},
        "select": {"peak": replace(BASE, select="peak")},
        "upsample": {f"{r}": replace(BASE, upsample=r) for r in (1, 2, 8)},
        "connectivity": {"4": replace(BASE, connectivity=4)},
        "max_overlap": {f"{share:g}": replace(BASE, max_overlap=share) for share in (0.3, 0.7)},
        "steps": {},
    }
    for steps in (2, 3):
        for cut in (0.5, 0.75):
            mining = replace(BASE, steps=steps, cam_threshold=cut)
            made["steps"][f"{steps}, cut {cut:g}, normalized"] = mining
            made["steps"][f"{steps}, cut {cut:g}, regions"] = replace(mining, select="regions")
    return made


def reproduce_rules(
    judge: Judge,
    preset: Preset,
    patients: NDArray[np.int64],
    seeds: Sequence[int],
    out: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Judge every rule on the networks of Table 3, and write ``out/rules.json`` and ``out/rules.md``.

    The networks are those with aggregation before mining, and mined jointly with KP.
    """
    halves = split_by_patient(patients, 0.5, seed=3)
    made: dict[str, Any] = {"seeds": list(seeds), "iou_thresholds": list(IOU), "networks": {}}
    made["images"] = [len(half) for half in halves]
    networks = {
        "before mining": [aggregated(preset, preset.mined_size, s, "bilinear") for s in seeds],
        "mined": [mined(preset, s, "kp", 3) for s in seeds],
    }
    for name, trainings in networks.items():
        say(f"rules: {name}")
        cams = [judge.cams(Cell(training, BASE)) for training in trainings]
        labels = np.asarray(judge.judged(preset.mined_size).labels)

        def found(rule: MiningSettings, cams: Any = cams, labels: Any = labels) -> list[Detections]:
            return [localise(c, labels, judge.truth.sizes, rule)[1] for c in cams]

        base = found(BASE)
        rows = [{"what": "base", "rule": "base", **_judged(base, base, judge.truth, halves, patients)}]
        for what, variants in rules().items():
            for variant, rule in variants.items():
                judged = _judged(found(rule), base, judge.truth, halves, patients)
                rows.append({"what": what, "rule": variant, **judged})
        made["networks"][name] = rows
    write_whole(out / "rules.json", (json.dumps(made, indent=1) + "\n").encode())
    write_whole(out / "rules.md", markdown(made).encode())
    return made


def _judged(
    runs: Sequence[Detections],
    base: Sequence[Detections],
    truth: Truth,
    halves: Sequence[NDArray[np.int64]],
    patients: NDArray[np.int64],
) -> dict[str, Any]:
    """Mean Acc and AFP [K] over findings and seeds; by half, the difference of Acc to ``base`` [K]."""
    tables = [localised(run, truth, BOXED_FINDINGS, IOU) for run in runs]
    told: dict[str, Any] = {}
    for measure in ("acc", "afp"):
        values = [[getattr(row.result, measure) for row in table] for table in tables]
        told[measure] = np.nanmean(np.reshape(values, (len(runs), -1, len(IOU))), (0, 1)).tolist()
    told["minus base"] = [
        [
            list(
                difference(
                    [_within(runs, rows), _within(base, rows)],
                    restricted(truth, rows),
                    list(range(len(BOXED_FINDINGS))),
                    threshold,
                    patients[rows],
                )
            )
            for threshold in IOU
        ]
        for rows in halves
    ]
    return told


def _within(runs: Sequence[Detections], rows: NDArray[np.int64]) -> list[Detections]:
    """The boxes on the images ``rows``, numbered by their place in it."""
    kept = []
    for run in runs:
        place = np.full(max(run.images.max(initial=-1), rows.max()) + 1, -1)
        place[rows] = np.arange(len(rows))
        own = place[run.images] >= 0
        kept.append(
            Detections(place[run.images[own]], run.ranks[own], run.classes[own], run.boxes[own])
        )
    return kept


def markdown(made: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    iou = made["iou_thresholds"]
    heads = ["what", "rule", *(f"Acc / AFP at T(IoU) {t:g}" for t in iou)]
    heads += [f"{half} half, minus base at {t:g}" for t in iou[:2] for half in ("first", "second")]
    cuts = ", ".join(f"{cut:g}" for cut in BASE.thresholds)
    lines = [
        f"Base: one step, components at the thresholds {cuts} of the map enlarged {BASE.upsample} "
        f"times (connectivity {BASE.connectivity}, max_overlap {BASE.max_overlap:g}). Means over the "
        f"findings and {len(made['seeds'])} seed(s); differences over all boxes of "
        f"{made['images'][0]} and {made['images'][1]} images of different patients, with their 95% "
        "intervals; bold: it excludes zero.",
        "",
    ]
    for name, rows in made["networks"].items():
        lines += [f"Network {name}", "", table_line(heads), table_line(["---"] * len(heads))]
        for row in rows:
            pairs = zip(row["acc"], row["afp"], strict=True)
            cells = [row["what"], row["rule"], *(f"{acc:.2f} / {afp:.2f}" for acc, afp in pairs)]
            for k in range(2):
                for half in range(2):
                    cells.append(difference_text(*row["minus base"][half][k]))
            lines.append(table_line(cells))
        lines.append("")
    return "\n".join(lines)
