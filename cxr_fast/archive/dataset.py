"""An archive to learn from: image-level labels, the files of the images, and the official lists.

An archive is a folder in the layout of ChestX-ray14, or of a part of it: one ``Data_Entry*.csv``,
``train_val_list.txt`` and ``test_list.txt``, and images in folders whose names begin with
``images`` (``images_001/images/x.png`` as released, or ``images/x.png``). Tables may be gzipped.

Boxes are the judge's: nothing here opens, lists or names a table of boxes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cxr_fast.archive.chestxray14 import Labels, read_labels, read_split_lines
from cxr_fast.archive.resized import resize_images
from cxr_fast.archive.shards import Progress
from cxr_fast.archive.sources import walk_files
from cxr_fast.archive.tables import fail
from cxr_fast.config import BOXED_FINDINGS, CHESTXRAY14_FINDINGS

_LABELS = "Data_Entry*.csv"
_LISTS = {"train_val": "train_val_list.txt", "test": "test_list.txt"}
_ENDINGS = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Archive:
    """What a folder holds; see ``open_archive``.

    ``labels``: all rows of the label table, with the columns that were asked for. ``files``: the
    file of each image that is there. ``splits``: the images of ``train_val`` and ``test``, each
    where its list is there, in the list's order, every one with a row and a file. ``notes``: a
    sentence for each kind of thing that does not belong, or was left out.
    """

    folder: Path
    labels: Labels
    files: Mapping[str, Path]
    splits: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def split(self, name: str) -> tuple[str, ...]:
        """The images of a split; FileNotFoundError that names its list if the archive lacks it."""
        if name not in self.splits:
            expected = _LISTS.get(name, f"list, but one of {', '.join(_LISTS.values())}")
            raise FileNotFoundError(
                f"{self.folder} has no {expected}, which says what is in the split '{name}'; add it as "
                "the release has it"
            )
        return self.splits[name]

    def patients(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """The patients [N] int64 of N images; KeyError for one without a row in the label table."""
        rows = {image: row for row, image in enumerate(self.labels.images)}
        return self.labels.patients[[rows[name] for name in names]]


class ImageStack(Protocol):
    """Images uint8 [N, S, S] that an array of integers or a slice picks from."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, S, S: images, rows and columns of pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> npt.NDArray[np.uint8]: ...


class LabelledImages(NamedTuple):
    """``images`` uint8 [N, S, S], ``labels`` float32 [N, C], ``patients`` int64 [N], N ``names``."""

    images: ImageStack
    labels: npt.NDArray[np.float32]
    patients: npt.NDArray[np.int64]
    names: tuple[str, ...]


def open_archive(
    folder: str | os.PathLike[str],
    findings: Sequence[str] = BOXED_FINDINGS,
    *,
    missing: Literal["refuse", "skip"] = "refuse",
) -> Archive:
    """Read the tables of an archive and find its images; no image is opened.

    ``findings`` names the columns of the labels, in order: of the fourteen of ChestX-ray14, which
    the table may all name, and of the archive's own. With ``missing="skip"`` the images of a split
    that are not in the folder are left out, and a note says how many; else they are refused.

    Raises FileNotFoundError for a folder without a label table. Raises ValueError, with file and
    line, for a broken table (see ``read_labels``), a split's image without a row or a file, an
    image in both splits, a patient in both splits, and two files of one name.
    """
    if missing not in ("refuse", "skip"):
        raise ValueError(f"missing must be 'refuse' or 'skip', but is {missing!r}")
    if not findings or len(set(findings)) < len(findings):
        raise ValueError(f"findings must be distinct, and at least one, but are {list(findings)}")
    root = Path(folder)
    table = _one_of(root, _LABELS)
    if table is None:
        raise FileNotFoundError(
            f"{root} must hold a {_LABELS} (or .gz) as ChestX-ray14 does, but has none; give the "
            "folder that holds the tables and the images folder"
        )
    # All names that may be there are known to the reader; the columns are picked afterwards.
    known = tuple(dict.fromkeys((*CHESTXRAY14_FINDINGS, *findings)))
    labels = read_labels(table, findings=known)
    columns = [known.index(name) for name in findings]
    labels = Labels(
        labels.images,
        tuple(findings),
        np.ascontiguousarray(labels.matrix[:, columns]),
        labels.patients,
        labels.path,
        labels.lines,
    )
    files = _find_images(root)
    lists = {}
    for name, file in _LISTS.items():
        path = _one_of(root, file)
        if path is not None:
            lists[name] = (path, read_split_lines(path))

    rows = {image: row for row, image in enumerate(labels.images)}
    notes: list[str] = []
    splits = {
        name: _check_split(path, lines, labels, rows, files, root, missing, notes)
        for name, (path, lines) in lists.items()
    }
    _refuse_overlap(list(lists.values()), labels, rows)
    listed = {image for _, lines in lists.values() for image in lines}
    _note_others(labels, files, listed, bool(lists), notes)
    return Archive(root, labels, files, splits, tuple(notes))


def split_by_patient(
    patients: npt.NDArray[np.int64], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide N images into those to train on and those of held-back patients: indices [M] and [N - M].

    ``patients`` [N] int64 has the patient of each image; the indices ascend.

    ``round(share * patients)`` patients are held back, whole. Who they are follows from ``seed`` and
    the patient's number by a hash, so it is the same on every machine, whatever the order of images.

    Raises ValueError for a share outside [0, 1), and where one side would be empty; a share of 0
    holds nobody back.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of patients held back must be in [0, 1), but is {share}")
    known = np.unique(patients)
    count = round(share * len(known))
    if share and not 0 < count < len(known):
        raise ValueError(
            f"a share of {share} of {len(known)} patients leaves "
            f"{'none to train on' if count else 'none to hold back'}; change the share, or give more "
            "patients"
        )
    held = sorted(known.tolist(), key=lambda patient: _draw(seed, patient))[:count]
    is_held = np.isin(patients, np.asarray(held, np.int64))
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def load_images(
    archive: Archive,
    names: Sequence[str],
    input_size: int,
    *,
    cache: str | os.PathLike[str] | None = None,
    threads: int = 2,
    progress: Progress | None = None,
) -> LabelledImages:
    """Give images by name, resized to squares of ``input_size`` pixels, with what the table says.

    ``cache`` and the errors are those of ``resize_images``; ValueError, too, for a name that has no
    row in the label table, or no file.
    """
    rows = {image: row for row, image in enumerate(archive.labels.images)}
    for name in names:
        if name not in rows or name not in archive.files:
            lacking = f"row in {archive.labels.path}" if name not in rows else "file"
            raise ValueError(f"{name} has no {lacking}; ask for images of the archive's splits")
    images = resize_images(
        [archive.files[name] for name in names],
        input_size,
        cache=cache,
        threads=threads,
        progress=progress,
    )
    picked = np.asarray([rows[name] for name in names], np.int64)
    return LabelledImages(
        images,
        archive.labels.matrix[picked].astype(np.float32),
        archive.labels.patients[picked],
        tuple(names),
    )


def _draw(seed: int, patient: int) -> bytes:
    return hashlib.sha256(f"{seed} {patient}".encode()).digest()


def _one_of(folder: Path, pattern: str) -> Path | None:
    """Find the one file of a name, plain or gzipped; None if there is none."""
    found = sorted([*folder.glob(pattern), *folder.glob(pattern + ".gz")])
    if len(found) > 1:
        raise ValueError(
            f"{folder} must hold one {pattern} (or .gz), but has "
            f"{', '.join(path.name for path in found)}; move away all but one"
        )
    return found[0] if found else None


def _find_images(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for top in sorted(path for path in folder.glob("images*") if path.is_dir()):
        for name in sorted(walk_files(os.fspath(top))):
            path = top / name
            if path.suffix.lower() not in _ENDINGS:
                continue
            if path.name in files:
                raise ValueError(
                    f"expected one file of each name, got {files[path.name]} and {path}; remove one"
                )
            files[path.name] = path
    return files


def _check_split(
    path: Path,
    lines: dict[str, int],
    labels: Labels,
    rows: dict[str, int],
    files: Mapping[str, Path],
    folder: Path,
    missing: str,
    notes: list[str],
) -> tuple[str, ...]:
    """Refuse or leave out images of a list without a row, or without a file; give the others."""
    strangers = [image for image in lines if image not in rows]
    if strangers:
        fail(
            path,
            lines[strangers[0]],
            f"expected images of {labels.path}, but {strangers[0]} has no row there, and "
            f"{len(strangers)} of {len(lines)} have none; do the two files belong to one archive?",
        )
    absent = [image for image in lines if image not in files]
    if absent:
        first = absent[0]
        where = f"{labels.path}, line {labels.lines[rows[first]]}"
        if missing == "refuse":
            fail(
                path,
                lines[first],
                f"expected each image below {folder / 'images*'}, but {first} ({where}) is not, and "
                f"{len(absent)} of {len(lines)} are not; complete the archive, or pass missing='skip'",
            )
        notes.append(
            f"{len(absent)} of {len(lines)} images of {path} are not in the folder and are left out; "
            f"the first is {first} (line {lines[first]}; {where})."
        )
    return tuple(image for image in lines if image in files)


def _refuse_overlap(
    lists: list[tuple[Path, dict[str, int]]], labels: Labels, rows: dict[str, int]
) -> None:
    """Refuse an image, or a patient, in two lists."""
    images: dict[str, Path] = {}
    patients: dict[int, tuple[Path, int, str]] = {}
    for path, lines in lists:
        for image, line in lines.items():
            if image in images and images[image] != path:
                other = dict(lists)[images[image]][image]
                fail(
                    path,
                    line,
                    f"expected an image in one split, but {image} is on line {other} of "
                    f"{images[image]} too; remove one of them",
                )
            images[image] = path
            row = rows[image]
            patient = int(labels.patients[row])
            first = patients.setdefault(patient, (path, line, image))
            if first[0] != path:
                fail(
                    path,
                    line,
                    f"expected a patient in one split, but {image} is of patient {patient} "
                    f"({labels.path}, line {labels.lines[row]}), as is {first[2]} on line {first[1]} "
                    f"of {first[0]}; put all images of the patient into one list",
                )


def _note_others(
    labels: Labels, files: Mapping[str, Path], listed: set[str], has_lists: bool, notes: list[str]
) -> None:
    """Report what belongs to no split."""
    rows = set(labels.images)
    absent = [
        index for index, image in enumerate(labels.images) if image not in files and image not in listed
    ]
    if absent:
        notes.append(
            f"{len(absent)} rows of {labels.path} have no image in the folder, and are in no split; "
            f"the first is {labels.images[absent[0]]} (line {labels.lines[absent[0]]})."
        )
    strangers = [path for image, path in files.items() if image not in rows]
    if strangers:
        notes.append(
            f"{len(strangers)} images have no row in {labels.path}; the first is {strangers[0]}."
        )
    unlisted = [path for image, path in files.items() if image in rows and image not in listed]
    if unlisted and has_lists:
        notes.append(f"{len(unlisted)} images are in no split; the first is {unlisted[0]}.")
