"""Which steps, mode and box rule find planted findings best? Chooses the defaults of a model.

    python benchmarks/box_rule.py ARCHIVE MODEL [--json FILE]

ARCHIVE is laid out as ChestX-ray14 with true boxes (``cxr-fast phantom``). The network runs once; every
rule then works on the same CAMs, for the classes that each image's labels name, as the paper does.
Beside the rules stands the floor: three random boxes of the class's own sizes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cxr_fast import ops
from cxr_fast.archive.chestxray14 import read_boxes
from cxr_fast.archive.images import read_image, to_input
from cxr_fast.metrics import localization_table
from cxr_fast.mining import load_miner

IOU = (0.1, 0.3, 0.5)
WANG = (60 / 255, 180 / 255)
THRESHOLDS = {
    "60,180/255": WANG,
    "0.5": (0.5,),
    "0.65": (0.65,),
    "0.5,0.7": (0.5, 0.7),
    "0.4,0.6,0.8": (0.4, 0.6, 0.8),
    "0.6,0.75,0.9": (0.6, 0.75, 0.9),
}


def rules() -> list[dict[str, object]]:
    made = []
    attention = [(1, 0.5, "normalized"), (2, 0.5, "normalized"), (3, 0.5, "normalized")]
    attention += [(2, 0.75, "normalized"), (3, 0.75, "normalized")]
    for (steps, cut, mode), select, name, upsample in itertools.product(
        attention, ("components", "peak"), THRESHOLDS, (1, 4)
    ):
        made.append(
            {
                "steps": steps,
                "threshold": cut,
                "mode": mode,
                "select": select,
                "thresholds": THRESHOLDS[name],
                "upsample": upsample,
                "name": name,
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("model")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    miner = load_miner(arguments.model, precision=arguments.precision)
    truth = read_boxes(next(arguments.archive.glob("BBox_List*")))
    names = sorted(set(truth.images))
    classes = miner.card.class_names
    image_of = {name: i for i, name in enumerate(names)}
    truth_image = np.array([image_of[name] for name in truth.images])
    truth_class = np.array([classes.index(name) for name in truth.findings])
    wanted = np.zeros((len(names), len(classes)), bool)
    wanted[truth_image, truth_class] = True

    cams, sizes = [], []
    with torch.inference_mode():
        for name in names:
            pixels = read_image(arguments.archive / "images" / name)
            sizes.append(pixels.shape)
            image = torch.from_numpy(to_input(pixels, miner.card.input_size))[None]
            cams.append(miner.model(miner.prepare(image)))
    cam, size = torch.cat(cams), torch.tensor(sizes, dtype=torch.float64)

    def judge(
        image: np.ndarray, rank: np.ndarray, cls: np.ndarray, box: np.ndarray
    ) -> dict[str, object]:
        rows = localization_table(
            image, rank, cls, box, truth_image, truth_class, truth.boxes,
            findings=classes, overlap_thresholds=IOU,
        )  # fmt: skip
        acc = np.array([row.result.acc for row in rows]).reshape(len(classes), len(IOU))
        afp = np.array([row.result.afp for row in rows]).reshape(len(classes), len(IOU))
        return {"acc": acc.mean(0).tolist(), "afp": afp.mean(0).tolist(), "by_class": acc.tolist(),
                "boxes": len(image) / wanted.sum()}  # fmt: skip

    results = []
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(truth.boxes), 3 * int(wanted.sum()))
    image, cls = (np.repeat(v, 3) for v in np.nonzero(wanted))
    extent = (truth.boxes[:, 2:] - truth.boxes[:, :2])[picks]
    # A random box of the class's own sizes, anywhere in the picture.
    for c in range(len(classes)):
        own = np.flatnonzero(truth_class == c)
        mine = np.flatnonzero(cls == c)
        chosen = own[rng.integers(0, len(own), len(mine))]
        extent[mine] = (truth.boxes[:, 2:] - truth.boxes[:, :2])[chosen]
    whole = np.array(sizes)[image][:, ::-1]
    corner = rng.random((len(image), 2)) * (whole - extent)
    floor = judge(image, np.tile([1, 2, 3], len(image) // 3), cls, np.hstack([corner, corner + extent]))
    results.append({"rule": "three random boxes of true sizes", **floor})

    for rule in rules():
        settings = {key: value for key, value in rule.items() if key != "name"}
        found = ops.mine_cam(cam, image_size=size, **settings).found
        counts = found.counts.numpy() * wanted
        n, c, k = np.nonzero(np.arange(3) < counts[..., None])
        judged = judge(n, k + 1, c, found.boxes.numpy()[n, c, k])
        text = f"T={rule['steps']} cut {rule['threshold']} {rule['select']} {rule['name']}"
        text += f" x{rule['upsample']}"
        results.append({"rule": text, **judged})
    results[1:] = sorted(results[1:], key=lambda r: -(r["acc"][0] + r["acc"][1]))

    table = Table(title=f"{len(names)} images, {len(truth.boxes)} boxes; means over the classes")
    for heading in ("rule", "boxes", *(f"Acc {t}" for t in IOU), *(f"AFP {t}" for t in IOU)):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for r in results[:26]:
        table.add_row(r["rule"], f"{r['boxes']:.1f}", *(f"{v:.2f}" for v in (*r["acc"], *r["afp"])))
    Console(width=150).print(table)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"classes": classes, "iou": IOU, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
