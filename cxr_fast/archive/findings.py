"""The folder that a mining run writes: boxes, maps and errors as Parquet, safe against a kill.

    DIR/run.json                      the run's settings
    DIR/images.parquet                the images it is about
    DIR/findings/part-00000.parquet   one row a box; one part a shard of images
    DIR/maps/part-00000.parquet       one row a heatmap: probability, peak, perhaps the heatmap itself
    DIR/errors/part-00000.parquet     the shard's unreadable images; absent where there are none
    DIR/notes/part-00000.parquet      what a reader must know of some images; absent likewise
    DIR/tags/part-00000.parquet       the DICOM values that were asked for; absent likewise
    DIR/errors.parquet                all of them; written when the run ends, even when empty
    DIR/.lock                         held, not merely present, while a run is at work

A shard counts as finished when its findings part has its name. Every file is written under a
temporary name in its own folder, synced, and renamed; the findings part goes last, so a finished
shard is complete. A part that has its name is never written again. Every Parquet file carries the
run's settings in its metadata, so that a copy of it still says where it came from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_fast.archive.schemas import (
    ERRORS_SCHEMA,
    FINDINGS_SCHEMA,
    IMAGES_SCHEMA,
    findings_table,
    maps_table,
)
from cxr_fast.files import differences, replacing, sync_folder, take_lock

_FORMAT = "cxr_fast mining run, version 1"
_METADATA_KEY = b"cxr_fast"
_ROW_GROUP = 2**20  # rows, of images.parquet
_PART = re.compile(r"part-(\d{5,})\.parquet")
_TEMPORARY = re.compile(r"\..+\.tmp-[0-9a-f]{8}")


class RunFolderError(RuntimeError):
    """A folder that a run may not write to; the message says why and what to do."""


class RunFolder:
    """One run's folder, held by this process until it is closed. Made by ``open_run``."""

    def __init__(self, path: Path, settings: dict[str, Any], lock: int) -> None:
        self.path = path
        self.settings = settings
        self._lock = lock

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the folder. A second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def finished_shards(self) -> set[int]:
        """Return the shards whose rows are in the folder for good, from this run or an earlier."""
        return set(_parts(self.path / "findings"))

    def write_images(self, image_ids: Sequence[str]) -> None:
        """Record which images the run is about, in order, once."""
        target = self.path / "images.parquet"
        if target.exists():
            return
        schema = IMAGES_SCHEMA.with_metadata(_metadata(self.settings))
        with replacing(target) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            # A column of strings ends at 2 GiB, some 70 million ids.
            for first in range(0, max(len(image_ids), 1), _ROW_GROUP):
                ids = pa.array(image_ids[first : first + _ROW_GROUP], pa.string())
                writer.write_table(pa.table([ids], schema=schema))

    def write_shard(
        self,
        shard: int,
        findings: pa.Table | Mapping[str, Any],
        errors: Iterable[tuple[str, str]] = (),
        maps: pa.Table | Mapping[str, Any] | None = None,
        beside: Mapping[str, pa.Table] | None = None,
    ) -> None:
        """Commit one shard as the function ``write_shard`` does; ValueError once the run is closed."""
        if self._lock < 0:
            raise ValueError(f"the run in {self.path} is closed")
        write_shard(self.path, shard, findings, errors, maps, beside)

    def count_errors(self) -> int:
        """Return how many images of the finished shards were unreadable.

        Raises RunFolderError where the folder has become no run.
        """
        parts = _finished_parts(self.path, "errors")
        return sum(pq.read_metadata(part).num_rows for part in parts)

    def finish(self, shards: int) -> int:
        """Write errors.parquet, all shards' errors in their order; return how many there are.

        Raises ValueError unless exactly the shards 0 .. shards - 1 are finished.
        """
        finished = self.finished_shards()
        if finished != set(range(shards)):
            odd = sorted(finished ^ set(range(shards)))
            raise ValueError(
                f"the run in {self.path} has {len(finished)} finished shards, expected 0 to"
                f" {shards - 1}; the first that is missing or too many is {odd[0]}"
            )
        errors = read_errors(self.path)
        _write_table(self.path / "errors.parquet", errors, self.settings)
        return int(errors.num_rows)


def open_run(out: str | Path, settings: Mapping[str, Any]) -> RunFolder:
    """Take a folder for a run, make it when missing, or go on with an unfinished run in it.

    ``settings`` is everything that decides the run's rows, as JSON values (tuples count as lists).
    Temporary files of a killed run, and errors and maps of a shard that it did not finish, are removed.

    Raises RunFolderError, before anything is written, if the folder cannot be written to, holds
    files but no run, holds a run with other settings (the message lists them, old -> new), or is
    in use by a live process; and TypeError or ValueError if the settings are not JSON.
    """
    path = Path(out)
    wanted: dict[str, Any] = json.loads(json.dumps(dict(settings), allow_nan=False))
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Looked at twice: before the lock file is made, so that a folder that is not ours stays as
        # it is, and under the lock, so that no other process changes it in between.
        _refuse_other(path, wanted)
        lock = take_lock(path)
    except RuntimeError as error:
        raise RunFolderError(str(error)) from error
    except FileExistsError as error:
        raise RunFolderError(f"{path} is a file, not a folder") from error
    except OSError as error:
        raise RunFolderError(f"cannot write to {path}: {error.strerror}") from error
    try:
        if not _refuse_other(path, wanted):
            text = json.dumps(_document(wanted), indent=2, sort_keys=True, ensure_ascii=False)
            with replacing(path / "run.json") as file:
                file.write(text.encode("utf-8") + b"\n")
        _prepare(path)
    except OSError as error:
        os.close(lock)
        raise RunFolderError(f"cannot write to {path}: {error.strerror}") from error
    except BaseException:
        os.close(lock)
        raise
    return RunFolder(path, wanted, lock)


def write_shard(
    path: str | Path,
    shard: int,
    findings: pa.Table | Mapping[str, Any],
    errors: Iterable[tuple[str, str]] = (),
    maps: pa.Table | Mapping[str, Any] | None = None,
    beside: Mapping[str, pa.Table] | None = None,
) -> None:
    """Commit one shard of the run in ``path``: after the return it survives a power cut.

    ``findings`` is a table, or columns, of ``FINDINGS_SCHEMA``, ``maps`` one of ``MAPS_SCHEMA`` or
    ``HEATMAPS_SCHEMA``; ``errors`` are pairs of image_id and reason. ``beside`` has the
    tables ``notes`` and ``tags``, where they have rows. It takes no lock, so that worker processes can
    write for the one that holds it; different shards may be written at the same time.

    Raises FileExistsError if the shard is finished already, ValueError for a shard below 0 or
    rows that do not fit the schema, RunFolderError if ``path`` holds a broken run, OSError if the
    disk does not take the rows.
    """
    folder = Path(path)
    if shard < 0:
        raise ValueError(f"expected a shard of 0 or more, got {shard}")
    name = f"part-{shard:05d}.parquet"
    if (folder / "findings" / name).exists():
        raise FileExistsError(f"shard {shard} of {folder} is finished; it is not written again")
    table = findings_table(findings)
    mapped = None if maps is None else maps_table(maps)
    settings = _settings_in(folder)
    pairs = list(errors)
    if pairs:
        columns = {"image_id": [pair[0] for pair in pairs], "reason": [pair[1] for pair in pairs]}
        _write_table(folder / "errors" / name, pa.table(columns, schema=ERRORS_SCHEMA), settings)
    if mapped is not None:
        _write_table(folder / "maps" / name, mapped, settings)
    for kind, rows in (beside or {}).items():
        if rows.num_rows:
            (folder / kind).mkdir(exist_ok=True)
            _write_table(folder / kind / name, rows, settings)
    _write_table(folder / "findings" / name, table, settings)


def read_findings(path: str | Path) -> pa.Table:
    """Read all finished shards of a run, in their order, as one table of ``FINDINGS_SCHEMA``.

    Raises RunFolderError if ``path`` holds no run.
    """
    return _read_parts(Path(path), "findings", FINDINGS_SCHEMA).unify_dictionaries()


def findings_parts(path: str | Path) -> list[Path]:
    """Return the files with the findings of a run's finished shards, in order.

    Raises RunFolderError if ``path`` holds no run.
    """
    return _finished_parts(Path(path), "findings")


def map_parts(path: str | Path) -> list[Path]:
    """Return the files with the maps of a run's finished shards, in order; none in older runs.

    Raises RunFolderError if ``path`` holds no run.
    """
    return _finished_parts(Path(path), "maps")


def read_images(path: str | Path) -> list[str]:
    """Return the ids of all images that a run is about. Raises RunFolderError if there is none."""
    folder = Path(path)
    if _settings_in(folder) is None or not (folder / "images.parquet").exists():
        raise RunFolderError(f"{folder} holds no mining run (there is no images.parquet in it)")
    ids: list[str] = pq.read_table(folder / "images.parquet")["image_id"].to_pylist()
    return ids


def missing_shards(path: str | Path) -> int:
    """Return how many shards of a run are not finished. Raises RunFolderError if there is no run.

    0 for a run whose settings do not say how large a shard is.
    """
    size = run_settings(path).get("shard_size")
    if not size:
        return 0
    images = pq.read_metadata(Path(path) / "images.parquet").num_rows
    return max(0, shard_count(images, size) - len(findings_parts(path)))


def shard_count(images: int, shard_size: int) -> int:
    """Return how many shards so many images are cut into."""
    return -(-images // shard_size)


def run_class_names(path: str | Path) -> tuple[str, ...]:
    """Return the names of the classes that a run's model knows."""
    return tuple(run_settings(path).get("model", {}).get("class_names", ()))


def run_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings of the run in a folder; nothing where there is none.

    Raises RunFolderError for a run of another version, or whose run.json is broken.
    """
    return _settings_in(Path(path)) or {}


def read_settings(part: str | Path) -> dict[str, Any]:
    """Return the settings of the run that a Parquet file belongs to, as the file itself tells them.

    Works on any Parquet file of a run, wherever it was copied to: model hash, class names, mining
    settings, precision, versions. Nothing for a file that tells none, as those of the first version.

    Raises OSError or ValueError if ``part`` is no Parquet file.
    """
    text = (pq.read_schema(part).metadata or {}).get(_METADATA_KEY)
    settings: dict[str, Any] = json.loads(text)["settings"] if text else {}
    return settings


def read_errors(path: str | Path) -> pa.Table:
    """Read the errors of all finished shards of a run, in their order: ``ERRORS_SCHEMA``.

    Raises RunFolderError if ``path`` holds no run.
    """
    return _read_parts(Path(path), "errors", ERRORS_SCHEMA)


def _refuse_other(path: Path, wanted: dict[str, Any]) -> bool:
    """Tell whether the folder holds a run with these settings; raise if it holds another."""
    found = _settings_in(path)
    if found is None:
        # What a run leaves that was killed before its settings were in place is no obstacle.
        strange = [n for n in os.listdir(path) if n != ".lock" and not _TEMPORARY.fullmatch(n)]
        if strange:
            raise RunFolderError(
                f"{path} is not empty and holds no run (it has {min(strange)!r}); choose a folder"
                " that is new or empty"
            )
        return False
    differing = differences(found, wanted)
    if differing:
        raise RunFolderError(
            f"{path} holds a run with other settings: {'; '.join(differing)}. Choose another"
            " folder, or the old settings to go on with that run"
        )
    return True


def _document(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json holds, and the metadata of each Parquet file."""
    return {"format": _FORMAT, "settings": settings}


def _settings_in(path: Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder, or None where there is no run."""
    try:
        document = json.loads((path / "run.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        document = None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise RunFolderError(f"{path / 'run.json'} is not of this program; choose another folder")
    settings: dict[str, Any] = document["settings"]
    return settings


def _metadata(settings: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The settings, as each Parquet file carries them."""
    # Sorted and without whitespace to choose: the same settings are the same bytes.
    return {_METADATA_KEY: json.dumps(_document(settings), sort_keys=True).encode("ascii")}


def _prepare(path: Path) -> None:
    """Make the folders of a run, and clear what a killed run left half done."""
    for folder in (path, *(path / kind for kind in ("findings", "maps", "errors"))):
        folder.mkdir(exist_ok=True)
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name):
                (folder / name).unlink()
        # Tried now: hours of work must not end at the first part that cannot be written.
        with replacing(folder / ".probe"):
            pass
        (folder / ".probe").unlink()
    finished = _parts(path / "findings")
    for kind in ("maps", "errors", "notes", "tags"):
        for shard, part in _parts(path / kind).items():
            if shard not in finished:
                part.unlink()
    sync_folder(path)
    sync_folder(path.absolute().parent)


def _parts(folder: Path) -> dict[int, Path]:
    """List the parts in a folder by shard, in order."""
    try:
        matches = [_PART.fullmatch(name) for name in os.listdir(folder)]
    except FileNotFoundError:
        return {}
    return {int(m.group(1)): folder / m.group() for m in sorted(filter(None, matches), key=_shard)}


def _shard(match: re.Match[str]) -> int:
    return int(match.group(1))


def _read_parts(path: Path, kind: str, schema: pa.Schema) -> pa.Table:
    # As a file, not as a data set of one: six times as quick, and no folder's name is a partition.
    parts = _finished_parts(path, kind)
    tables = (pq.ParquetFile(part).read(use_threads=False).cast(schema) for part in parts)
    return pa.concat_tables([schema.empty_table(), *tables])


def _finished_parts(path: Path, kind: str) -> list[Path]:
    if _settings_in(path) is None:
        raise RunFolderError(f"{path} holds no mining run (there is no run.json in it)")
    finished = _parts(path / "findings")
    return [part for shard, part in _parts(path / kind).items() if shard in finished]


def _write_table(path: Path, table: pa.Table, settings: Mapping[str, Any] | None) -> None:
    if settings is not None:
        table = table.replace_schema_metadata(_metadata(settings))
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")
