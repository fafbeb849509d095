"""``cxr_fast.evaluate.evaluate_run`` over a run as large as ChestX-ray14, 14 classes, 3 boxes a map.

Nothing else computes the same; the yardstick is reading the run's tables. Every image has boxes, every
second one ground truth, as many boxes as ChestX-ray14 has labels.

    python -m cxr_fast.benchmarks.bench_evaluation     seconds and memory of one evaluation
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_fast.archive.findings import map_parts, open_run, read_findings
from cxr_fast.benchmarks.place import Place
from cxr_fast.benchmarks.racing import Case, Yardstick
from cxr_fast.config import CHESTXRAY14_FINDINGS
from cxr_fast.evaluate import Evaluation, EvaluationOptions, evaluate_run

IMAGES, SHARD = 112_120, 1024
# As many positive labels as ChestX-ray14 has, for each of its images.
LABELS_AN_IMAGE = 81_176 / 112_120
OPTIONS = {
    "images of the class": EvaluationOptions(),
    "all images": EvaluationOptions(afp_images="all"),
    "images of the class, AFP bounds": EvaluationOptions(afp_bounds="paper"),
}


def write_run(folder: Path, images: int) -> tuple[Path, Path, Path]:
    """A run over so many images, and its tables of boxes and labels."""
    rng = np.random.default_rng(0)
    names = np.array([f"{i // 4:08d}_{i % 4:03d}.png" for i in range(images)])
    count_c = len(CHESTXRAY14_FINDINGS)
    # Half the images have findings; as in the archive most have one or two.
    positive = rng.random((images, count_c)) < LABELS_AN_IMAGE / count_c * 2
    positive[1::2] = False
    true = rng.uniform(50, 500, (images, count_c, 4))
    true[..., 2:] += true[..., :2]
    classes = pa.array(CHESTXRAY14_FINDINGS)
    settings = {"model": {"class_names": list(CHESTXRAY14_FINDINGS)}, "classes": "all"}
    with open_run(folder / "run", settings) as run:
        run.write_images(names.tolist())
        for shard in range(-(-images // SHARD)):
            part = slice(shard * SHARD, min((shard + 1) * SHARD, images))
            of_maps = np.repeat(np.arange(part.stop - part.start), count_c)
            of_class = np.tile(np.arange(count_c, dtype=np.int32), part.stop - part.start)
            probability = rng.random(len(of_maps), dtype=np.float32)
            mapped = {
                "image_id": pa.array(names[part][of_maps]),
                "class": pa.DictionaryArray.from_arrays(of_class, classes),
                "probability": probability,
                **{axis: rng.uniform(0, 1024, len(of_maps)) for axis in ("peak_x", "peak_y")},
                **{side: np.full(len(of_maps), 1024) for side in ("image_height", "image_width")},
            }
            rows = np.repeat(np.arange(len(of_maps)), 3)
            corners = true[part].reshape(-1, 4)[rows] + rng.normal(0, 60, (len(rows), 4))
            corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
            found = {
                "image_id": pa.array(names[part][of_maps[rows]]),
                "class": pa.DictionaryArray.from_arrays(of_class[rows], classes),
                "rank": np.tile(np.arange(1, 4), len(of_maps)),
                **{edge: corners[:, i] for i, edge in enumerate(("x1", "y1", "x2", "y2"))},
                "score": probability[rows],
                "probability": probability[rows],
            }
            run.write_shard(shard, {k: _column(k, v) for k, v in found.items()}, maps=mapped)
    boxes, labels = folder / "BBox_List_2017.csv", folder / "Data_Entry_2017.csv"
    with boxes.open("w") as file:
        file.write("Image Index,Finding Label,Bbox [x,y,w,h]\n")
        for i, c in np.argwhere(positive):
            x1, y1, x2, y2 = true[i, c]
            file.write(f"{names[i]},{CHESTXRAY14_FINDINGS[c]},{x1:.4f},{y1:.4f},")
            file.write(f"{min(x2, 1024) - x1:.4f},{min(y2, 1024) - y1:.4f}\n")
    with labels.open("w") as file:
        file.write("Image Index,Finding Labels,Patient ID\n")
        for i, row in enumerate(positive):
            named = "|".join(CHESTXRAY14_FINDINGS[c] for c in np.flatnonzero(row)) or "No Finding"
            file.write(f"{names[i]},{named},{i // 4}\n")
    return folder / "run", boxes, labels


def _column(name: str, values: object) -> object:
    return pa.array(values).cast(pa.int8()) if name == "rank" else values


def read_run(run: Path) -> int:
    """Every table that an evaluation reads."""
    rows = read_findings(run).num_rows
    return rows + sum(pq.read_table(part, partitioning=None).num_rows for part in map_parts(run))


def evaluation_cases(place: Place) -> list[str]:
    return list(OPTIONS)[:1] if place.quick else list(OPTIONS)


@pytest.fixture(scope="module")
def tables(place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_run(tmp_path_factory.mktemp("evaluation"), 400 if place.quick else IMAGES)


def test_evaluation(
    case: str, race: Callable[[Case], None], place: Place, tables: tuple[Path, Path, Path]
) -> None:
    def judge() -> Evaluation:
        return evaluate_run(*tables, OPTIONS[case])

    images = 400 if place.quick else IMAGES
    sticks = [Yardstick("reading the run's tables", lambda: read_run(tables[0]))]
    name = f"evaluation {images} images x 14 classes x 3 boxes, AFP on {case}"
    race(Case(name, (), judge, yardsticks=sticks, wall=True, images=images))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = write_run(Path(folder), IMAGES)
        for name, options in OPTIONS.items():
            started = time.perf_counter()
            evaluation = evaluate_run(*tables, options)
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            truths = sum(row.result.truths for row in evaluation.localization) // len(
                options.overlap_thresholds
            )
            print(f"{name:32s} {truths} true boxes  {seconds:6.2f} s  peak so far {peak:.0f} MiB")


if __name__ == "__main__":
    main()
