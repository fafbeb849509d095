"""A run's folder made by hand, for the tests of its report: what is in it is known without mining."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from cxr_fast.archive.findings import open_run
from cxr_fast.archive.schemas import NOTES_SCHEMA

CLASSES = ("A", "B & <b>", "C")
SETTINGS = {
    "shard_size": 20,
    "mining": {"steps": 2, "thresholds": [0.5]},
    "model": {"sha256": "0" * 64, "class_names": list(CLASSES)},
    "precision": "float32",
}
MAP_COLUMNS = (
    "image_id class probability peak_x peak_y image_height image_width height width heatmap cam "
    "erased_at"
)
HEIGHT, WIDTH, CELLS = 200, 320, (3, 4)
FORMULA = "=1+1.png"  # what a spreadsheet would run
HOSTILE = "</script><img src=x onerror=alert(1)>.png"
# Of an image twice, of one in markup, of one that cannot be read.
NOTES = [
    (0, "p0/000.png", "unread"),
    (0, "p0/003.png", "first of 2 frames"),
    (0, "p0/003.png", "no window"),
    (2, HOSTILE, "<b>first</b>"),
]


def read(report: Path, name: str) -> Any:
    """The value that a data file gives the page, with its columns as arrays."""
    text = (report / "data" / f"{name}.js").read_text("ascii")
    given, value = json.loads(text.removeprefix("cxrReport.receive(...").removesuffix(");\n"))
    assert given == name
    return decoded(value)


def decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [decoded(one) for one in value]
    if isinstance(value, dict):
        if set(value) == {"type", "data"}:
            return np.frombuffer(base64.b64decode(value["data"]), f"<{np.dtype(value['type']).str[1:]}")
        return {key: decoded(one) for key, one in value.items()}
    return value


def write_run(folder: Path, rng: np.random.Generator) -> Path:
    """Three shards of 20 images, findings of three classes, maps, errors; the last shard is short."""
    ids = [f"p{i // 7}/{i:03d}.png" for i in range(48)] + [FORMULA, HOSTILE]
    with open_run(folder, SETTINGS) as opened:
        opened.write_images(ids)
        for shard in range(3):
            names = ids[20 * shard : 20 * shard + 20]
            boxes, maps = [], []
            for name in names[1:] if shard == 0 else names:  # the first one cannot be read
                for c in CLASSES:
                    probability = np.float32(rng.random())
                    for rank in range(1, rng.integers(0, 4) + 1):
                        x1, x2 = np.sort(rng.choice(WIDTH * 4, 2, replace=False)) / 4
                        y1, y2 = np.sort(rng.choice(HEIGHT * 4, 2, replace=False)) / 4
                        score = 1.0 if rng.random() < 0.1 else rng.random()
                        boxes.append((name, c, rank, x1, y1, x2, y2, score, probability))
                    layers = [rng.integers(0, 256, CELLS).astype(np.uint8).tobytes() for _ in range(2)]
                    erased = rng.integers(0, 3, CELLS).astype(np.uint8).tobytes()
                    maps.append(
                        (name, c, probability, 1.0, 1.0, HEIGHT, WIDTH, *CELLS, *layers, erased)
                    )
            opened.write_shard(
                shard,
                columns(boxes, "image_id class rank x1 y1 x2 y2 score probability"),
                [(names[0], "empty file")] if shard == 0 else [],
                columns(maps, MAP_COLUMNS),
                noted(shard),
            )  # fmt: skip
        opened.finish(3)
    return folder


def noted(shard: int) -> dict[str, pa.Table]:
    rows = [{"image_id": name, "note": note} for number, name, note in NOTES if number == shard]
    return {"notes": pa.Table.from_pylist(rows, NOTES_SCHEMA)} if rows else {}


def columns(rows: list[Any], names: str) -> dict[str, list[Any]]:
    return dict(zip(names.split(), map(list, zip(*rows, strict=True)), strict=True))


def frame(run: Path) -> pd.DataFrame:
    table = ds.dataset(run / "findings", partitioning=None).to_table().to_pandas()
    return table.assign(**{"class": table["class"].astype(str)})
