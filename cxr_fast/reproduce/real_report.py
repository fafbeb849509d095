"""The report of ``cxr-fast reproduce siim``: every network and family of rules, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxr_fast.figures.text import difference_text, table_line
from cxr_fast.files import write_whole
from cxr_fast.reproduce import siim
from cxr_fast.reproduce.cells import Judged
from cxr_fast.reproduce.judging import Truth
from cxr_fast.reproduce.real import FINDING, IOU, MINED, NETWORKS, TRAINING, Study, judge, yardsticks
from cxr_fast.reproduce.summary import difference, intervals, localised, scattered_floor
from cxr_fast.training import open_fabric
from cxr_fast.training.stages import Reporter

_PLAIN = "t = 1"


def open_study(
    folder: Path,
    kermany: Path,
    out: Path,
    runs: Path,
    threads: int,
    reporter: Callable[[str], Reporter] | None = None,
) -> Study:
    """Read both data sets; see ``siim`` for their layout and errors."""
    from PIL import Image

    archive = siim.read_siim(folder)
    sizes = np.zeros((len(archive.names), 2))
    for row, name in enumerate(archive.names):
        with Image.open(folder / "images" / name) as image:
            sizes[row] = image.height, image.width
    truth = siim.read_siim_boxes(folder, archive, sizes)
    parts = siim.divide(archive)
    fabric = open_fabric(TRAINING.precision)
    return Study(
        archive, siim.read_kermany(kermany), parts, truth, out, runs, threads, fabric, reporter
    )


def reproduce_siim(
    study: Study, names: Sequence[str], seeds: Sequence[int], say: Callable[[str], None]
) -> dict[str, Any]:
    """Train and judge the networks, and write ``out/siim.json`` and ``out/siim.md``."""
    cells: dict[str, list[dict[str, Judged]]] = {}
    for seed in seeds:
        for name in names:
            say(f"siim, seed {seed}: {name}")
            cells.setdefault(name, []).append(judge(study, name, seed))
    made = summarise(study, cells, seeds)
    write_whole(study.out / "siim.json", (json.dumps(made, indent=1) + "\n").encode())
    write_whole(study.out / "siim.md", markdown(made).encode())
    return made


def network_names(asked: Sequence[str]) -> tuple[str, ...]:
    """The networks that are asked for, all where none is. ValueError for a name that is none."""
    known = (*NETWORKS, *MINED)
    for name in asked:
        if name not in known:
            raise ValueError(f"--network must be one of {'; '.join(known)}, but is {name!r}")
    return tuple(asked) or known


def summarise(
    study: Study, cells: Mapping[str, Sequence[Mapping[str, Judged]]], seeds: Sequence[int]
) -> dict[str, Any]:
    """All figures as JSON values."""
    shown, truth = study.half(study.parts.report)
    patients = np.unique(study.archive.patients[shown], return_inverse=True)[1]
    rows = []
    for name, runs in cells.items():
        for family in runs[0]:
            own = [run[family] for run in runs]
            row: dict[str, Any] = {"network": name, "rule": family}
            row |= _measured(own, truth, patients)
            sides = [[run[rule].detections for run in runs] for rule in (family, _PLAIN)]
            row["minus"] = [list(difference(sides, truth, [0], t, patients)) for t in IOU]
            rows.append(row)
    return {
        "seeds": list(seeds),
        "images": len(shown),
        "boxes": len(truth.boxes),
        "iou_thresholds": list(IOU),
        "yardsticks": yardsticks(study),
        "rows": rows,
    }


def _measured(runs: Sequence[Judged], truth: Truth, patients: np.ndarray) -> dict[str, Any]:
    """Acc and AFP [S][K], the interval of Acc [K][2] averaged over seeds, maps' measures [S].

    ``floor`` [K]: Acc of the same boxes, each at a random place of its image; the mean over seeds.
    """
    tables = [[row.result for row in localised(run.detections, truth, FINDING, IOU)] for run in runs]
    measured: dict[str, Any] = {
        name: [[getattr(result, name) for result in table] for table in tables]
        for name in ("acc", "afp")
    }
    measured["interval"] = intervals(runs, truth, FINDING, IOU, [None] * len(runs), patients)["acc"][0]
    found = [run.detections for run in runs]
    measured["floor"] = scattered_floor(found, truth, FINDING, IOU, [None] * len(runs))[0]
    for name in ("auroc", "pointing", "pixel_auc"):
        measured[name] = [float(getattr(run, name)[0]) for run in runs]
    return measured


def markdown(made: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    iou, seeds = made["iou_thresholds"], len(made["seeds"])
    random = made["yardsticks"]["three random boxes of true sizes"]
    heads = ["network", "rule", "AUROC", "pointing", "pixel AUC"]
    heads += [f"Acc / AFP at T(IoU) {t:g}" for t in iou]
    heads += [f"x three random boxes at {iou[1]:g}", f"x its own boxes at random places at {iou[1]:g}"]
    heads += [f"minus t = 1 at {iou[1]:g}"]
    plural = "s" if seeds > 1 else ""
    lines = [
        f"{made['images']} images with {made['boxes']} boxes of patients that neither training nor "
        f"tuning saw; mean of {seeds} seed{plural}; in brackets the 95% interval over patients; bold: "
        "it excludes zero. Each seed's rule is the best of its family on the tuning half. Pointing "
        "game and pixel AUC are of the map that boxes are cut from, which regions enlarge.",
        "",
        table_line(heads),
        table_line(["---"] * len(heads)),
    ]
    for name, acc in made["yardsticks"].items():
        lines.append(
            table_line(
                ["", name, "", "", "", *(f"{a:.2f}" for a in acc), f"{acc[1] / random[1]:.1f}", "", ""]
            )
        )
    for row in made["rows"]:
        acc, afp = np.mean(row["acc"], 0), np.mean(row["afp"], 0)
        cells = [f"{np.mean(row[key]):.2f}" for key in ("auroc", "pointing", "pixel_auc")]
        for k in range(len(iou)):
            low, high = row["interval"][k]
            cells.append(f"{acc[k]:.2f} ({low:.2f}..{high:.2f}) / {afp[k]:.2f}")
        chance = row["floor"][1]
        cells += [f"{acc[1] / random[1]:.1f}", f"{acc[1] / chance:.1f}" if chance else ""]
        cells.append(difference_text(*row["minus"][1]))
        lines.append(table_line([row["network"], row["rule"], *cells]))
    return "\n".join(lines) + "\n"
