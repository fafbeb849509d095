"""A run's boxes, shard by shard: what every layout is written from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_fast.archive.findings import (
    RunFolderError,
    findings_parts,
    run_class_names,
    run_settings,
    shard_count,
)
from cxr_fast.archive.run_columns import IntArray, coded
from cxr_fast.archive.schemas import FINDINGS_SCHEMA

# Of pixels, in what is written: far below what a heatmap can tell, and short to read.
DECIMALS = 4


@dataclass(frozen=True)
class BoxFilter:
    """Which boxes are written: those at least this good, of these classes (none named: all), and of
    each image and class the ``top`` best (None: all). ValueError for a value out of range.
    """

    min_score: float = 0.0
    min_probability: float = 0.0
    classes: tuple[str, ...] = ()
    top: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_score", "min_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be from 0 to 1, but is {getattr(self, name)}")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top must be at least 1, but is {self.top}")


class Boxes(NamedTuple):
    """M boxes in the order of their part: image, class, rank.

    ``class_index`` int64 [M] into the model's classes. ``xywh`` float64 [M, 4] in original pixels,
    rounded to ``DECIMALS`` (where x rounds up at an edge, w rounds down: no box leaves its image).
    ``score`` and ``probability`` are the shortest decimals that are the float32 of the run.
    """

    image_ids: pa.ChunkedArray
    class_index: IntArray
    rank: list[int]
    xywh: npt.NDArray[np.float64]
    score: list[float]
    probability: list[float]


class FinishedShards(NamedTuple):
    """The shards of a run that are finished, as they were when somebody looked.

    ``parts``: their findings. ``images``: how many images they are about; ``missing``: shards to come.
    """

    run: Path
    class_names: tuple[str, ...]
    parts: list[Path]
    images: int
    missing: int

    @property
    def unreadable(self) -> int:
        """How many of their images could not be read."""
        errors = [beside(part, "errors") for part in self.parts]
        return sum(pq.read_metadata(part).num_rows for part in errors if part.exists())

    def boxes(self, part: Path, wanted: BoxFilter) -> Boxes:
        """Read the boxes of one part that pass. Raises RunFolderError for a class of no name."""
        table = pq.ParquetFile(part, read_dictionary=["image_id"]).read(FINDINGS_SCHEMA.names)
        class_index = coded(table["class"], {name: i for i, name in enumerate(self.class_names)})
        if len(class_index) and class_index.min() < 0:
            raise RunFolderError(
                f"{part} has boxes of a class that the run's model does not know; expected "
                f"{', '.join(self.class_names)}. Was the run's folder put together from several?"
            )
        # float32 against float32, so that a probability shown as 0.7 is at least 0.7.
        keep = table["score"].to_numpy() >= np.float32(wanted.min_score)
        keep &= table["probability"].to_numpy() >= np.float32(wanted.min_probability)
        if wanted.top is not None:
            keep &= table["rank"].to_numpy() <= wanted.top
        if wanted.classes:
            chosen = [name in wanted.classes for name in self.class_names]
            keep &= np.array(chosen)[class_index]
        table = table.filter(pa.array(keep))
        xywh = np.empty((table.num_rows, 4), dtype=np.float64)
        for i, edge in enumerate(("x1", "y1", "x2", "y2")):
            xywh[:, i] = table[edge].to_numpy()
        xywh[:, 2:] -= xywh[:, :2]
        xywh.round(DECIMALS, out=xywh)
        return Boxes(
            table["image_id"],
            class_index[keep],
            table["rank"].to_pylist(),
            xywh,
            _shortest(table["score"]),
            _shortest(table["probability"]),
        )


def finished_shards(run: str | Path) -> FinishedShards:
    """Look which shards of a run are finished, and which are not.

    Raises RunFolderError if ``run`` holds no run, or one whose settings lack what this needs.
    """
    folder = Path(run)
    parts = findings_parts(folder)
    class_names = run_class_names(folder)
    shard_size = run_settings(folder).get("shard_size")
    if not (folder / "images.parquet").exists():
        raise RunFolderError(f"{folder} holds a run that has not begun; give its command again")
    if not class_names or not isinstance(shard_size, int):
        raise RunFolderError(
            f"{folder / 'run.json'} does not say the model's class names and the size of a shard; "
            "expected a run of `cxr-fast mine`"
        )
    total = pq.read_metadata(folder / "images.parquet").num_rows
    shards = shard_count(total, shard_size)
    numbers = [int(part.stem.removeprefix("part-")) for part in parts]
    if numbers and numbers[-1] >= shards:
        raise RunFolderError(
            f"{parts[-1]} is one too many for the run's {total} images, {shard_size} a shard; was the"
            " run's folder put together from several?"
        )
    images = sum(min(shard_size, total - number * shard_size) for number in numbers)
    return FinishedShards(folder, class_names, parts, images, shards - len(parts))


def image_id_blocks(run: Path) -> Iterator[list[str]]:
    """The ids of a run's images in their order, some ten thousand at a time."""
    for block in pq.ParquetFile(run / "images.parquet").iter_batches(columns=["image_id"]):
        yield block["image_id"].to_pylist()


def beside(part: Path, kind: str) -> Path:
    """The file of another kind (maps, errors) for the shard of a part."""
    return part.parent.parent / kind / part.name


class ImageSize(NamedTuple):
    """In pixels of the original."""

    height: int
    width: int


def image_sizes(maps: Path) -> dict[str, ImageSize]:
    """Size of each image of a shard, in order, from the part of its maps."""
    columns = ["image_id", "image_height", "image_width"]
    table = pq.ParquetFile(maps, read_dictionary=["image_id"]).read(columns).unify_dictionaries()
    if not table.num_rows:
        return {}
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in table["image_id"].chunks])
    first = np.sort(np.unique(codes, return_index=True)[1])
    rows = table.take(first).to_pydict()
    sizes = map(ImageSize, rows["image_height"], rows["image_width"])
    return dict(zip(rows["image_id"], sizes, strict=True))


class ImageNumbers:
    """Numbers from 1 of a run's images, in the order of images.parquet, which is read once as shards
    are asked for in their order: memory does not grow with the archive.
    """

    def __init__(self, run: Path) -> None:
        blocks = (image_id for block in image_id_blocks(run) for image_id in block)
        self._rows = enumerate(blocks, 1)

    def of(self, image_ids: Sequence[str], part: Path) -> dict[str, int]:
        """Numbers of a shard's images. Raises RunFolderError for one that does not come next."""
        numbers = dict.fromkeys(image_ids, 0)
        to_come = len(numbers)
        while to_come:
            number, image_id = next(self._rows, (0, ""))
            if not number:
                lost = next(name for name, found in numbers.items() if not found)
                raise RunFolderError(
                    f"{part} names the image {lost!r}, which images.parquet does not have at its place;"
                    " was the run's folder put together from several?"
                )
            if image_id in numbers:
                numbers[image_id] = number
                to_come -= 1
        return numbers


def _shortest(column: pa.ChunkedArray) -> list[float]:
    return [float(text) for text in column.cast(pa.string()).to_pylist()]
