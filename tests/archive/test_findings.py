"""The run folder: what it refuses, what it keeps, and what a kill at any moment leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxr_fast import files as whole_files
from cxr_fast.archive import findings
from cxr_fast.archive.findings import (
    ERRORS_SCHEMA,
    FINDINGS_SCHEMA,
    RunFolderError,
    map_parts,
    open_run,
    read_errors,
    read_findings,
    read_images,
    read_settings,
    write_shard,
)
from cxr_fast.archive.schemas import HEATMAPS_SCHEMA, MAPS_SCHEMA
from cxr_fast.archive.sources import ImageIds

SETTINGS = {"batch_size": 16, "model": "demo", "mining": {"steps": 3, "thresholds": (0.25, 0.75)}}


def rows(shard: int, count: int = 3) -> dict[str, Any]:
    return {
        "image_id": [f"{shard}/{index}.png" for index in range(count)],
        "class": [("Mass", "Nodule", f"only {shard}")[index % 3] for index in range(count)],
        "rank": [1 + index % 3 for index in range(count)],
        **{edge: np.arange(count, dtype=np.float32) + shard for edge in ("x1", "y1", "x2", "y2")},
        "score": [0.5] * count,
        "probability": np.full(count, 0.25, np.float32),
    }


def maps(shard: int, count: int = 2) -> dict[str, Any]:
    return {
        "image_id": [f"{shard}/{index}.png" for index in range(count)],
        "class": ["Mass"] * count,
        "probability": [0.25] * count,
        **{axis: [None if index else 4.5 for index in range(count)] for axis in ("peak_x", "peak_y")},
        **{side: [1024] * count for side in ("image_height", "image_width")},
    }


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_whole_run(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with open_run(out, SETTINGS) as run:
        assert run.finished_shards() == set()
        assert read_findings(out).num_rows == 0
        run.write_shard(1, rows(1), [("1/x.png", "truncated PNG")])
        run.write_shard(0, pa.table(rows(0, 0), schema=FINDINGS_SCHEMA))
        run.write_shard(2, rows(2, 4), [("2/y.png", "no such file"), ("2/z.png", "corrupt JPEG")])
        assert run.finished_shards() == {0, 1, 2}
        assert not (out / "errors.parquet").exists()
        run.finish(3)
    assert files(out) == {
        *("run.json", ".lock", "errors.parquet"),
        *(f"findings/part-0000{shard}.parquet" for shard in range(3)),
        *("errors/part-00001.parquet", "errors/part-00002.parquet"),
    }
    table = read_findings(out)
    assert table.schema == FINDINGS_SCHEMA
    expected = {name: [*rows(1)[name], *rows(2, 4)[name]] for name in FINDINGS_SCHEMA.names}
    assert table.to_pydict() == expected
    classes = [chunk.dictionary.to_pylist() for chunk in table["class"].chunks]
    assert all(names == classes[0] for names in classes)
    merged = pq.read_table(out / "errors.parquet")
    assert merged.schema == ERRORS_SCHEMA
    assert merged.to_pydict() == {
        "image_id": ["1/x.png", "2/y.png", "2/z.png"],
        "reason": ["truncated PNG", "no such file", "corrupt JPEG"],
    }
    # Any reader of Parquet takes the folder as one table.
    assert pq.read_table(out / "findings").num_rows == 7
    assert json.loads((out / "run.json").read_text())["settings"]["mining"]["steps"] == 3


def test_errors_are_written_even_when_there_are_none(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        run.finish(0)
    assert pq.read_table(tmp_path / "errors.parquet").schema == ERRORS_SCHEMA
    assert pq.read_table(tmp_path / "errors.parquet").num_rows == 0


def test_going_on_with_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path, SETTINGS) as run:
        run.write_shard(4, rows(4))
    before = (tmp_path / "findings" / "part-00004.parquet").stat()
    with open_run(tmp_path, {**SETTINGS, "mining": {"thresholds": [0.25, 0.75], "steps": 3}}) as run:
        assert run.finished_shards() == {4}
        with pytest.raises(FileExistsError, match=r"shard 4 .* is finished"):
            run.write_shard(4, rows(5))
        with pytest.raises(ValueError, match="the first that is missing or too many is 0"):
            run.finish(5)
        with pytest.raises(ValueError, match="the first that is missing or too many is 0"):
            run.finish(1)
        for shard in range(4):
            run.write_shard(shard, rows(shard))
        run.finish(5)
    after = (tmp_path / "findings" / "part-00004.parquet").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    with open_run(tmp_path, SETTINGS) as run:  # a finished run may be opened again
        assert run.finished_shards() == set(range(5))
        run.finish(5)


def test_shards_beyond_five_digits_keep_their_order(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        for shard in (100_000, 99_999, 2):
            run.write_shard(shard, rows(shard, 1), [(f"{shard}", "corrupt PNG")])
        assert run.finished_shards() == {2, 99_999, 100_000}
    ids = ["2/0.png", "99999/0.png", "100000/0.png"]
    assert read_findings(tmp_path)["image_id"].to_pylist() == ids
    assert read_errors(tmp_path)["image_id"].to_pylist() == ["2", "99999", "100000"]


def test_every_parquet_file_says_where_it_came_from(tmp_path: Path) -> None:
    settings = {**SETTINGS, "model": {"class_names": ["Mass", "Wäßr\n"], "sha256": "ab"}}
    with open_run(tmp_path / "run", settings) as run:
        run.write_images(["a.png"])
        run.write_shard(0, rows(0), [("x", "y")], maps(0))
        write_shard(tmp_path / "run", 1, rows(1, 0), [], maps(1, 0))
        run.finish(2)
    parquet = sorted((tmp_path / "run").rglob("*.parquet"))
    assert len(parquet) == 7
    copied = tmp_path / "elsewhere"
    copied.mkdir()
    for number, part in enumerate(parquet):
        copy = copied / f"{number}.parquet"
        copy.write_bytes(part.read_bytes())
        assert read_settings(copy) == json.loads(json.dumps(settings))
        # The same text as in run.json, for readers in other languages.
        text = pq.read_metadata(copy).metadata[b"cxr_fast"]
        assert json.loads(text) == json.loads((tmp_path / "run" / "run.json").read_text())
    assert read_findings(tmp_path / "run").schema.equals(FINDINGS_SCHEMA, check_metadata=True)


def test_images_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"{i}/\u00e9{i}.png" for i in range(10)]
    for size in (2**20, 4):
        monkeypatch.setattr(findings, "_ROW_GROUP", size)
        with open_run(tmp_path / str(size), SETTINGS) as run:
            run.write_images(ImageIds(pa.array(ids, pa.large_string())))
            run.write_images(["another.png"])  # once
        assert read_images(tmp_path / str(size)) == ids
    # One piece is what earlier versions wrote.
    metadata = pq.read_schema(tmp_path / "4" / "images.parquet").metadata
    table = pa.table({"image_id": ids}, schema=findings.IMAGES_SCHEMA.with_metadata(metadata))
    pq.write_table(table, tmp_path / "before.parquet", compression="zstd")
    before = (tmp_path / "before.parquet").read_bytes()
    assert (tmp_path / str(2**20) / "images.parquet").read_bytes() == before
    pieces = pq.ParquetFile(tmp_path / "4" / "images.parquet")
    assert pieces.schema_arrow.equals(table.schema, check_metadata=True)
    assert [pieces.metadata.row_group(i).num_rows for i in range(3)] == [4, 4, 2]
    with open_run(tmp_path / "none", SETTINGS) as run:
        run.write_images([])
    assert read_images(tmp_path / "none") == []


def test_the_same_settings_are_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name, order in (("a", 1), ("b", -1)):
        with open_run(tmp_path / name, dict(list(SETTINGS.items())[::order])) as run:
            run.write_shard(0, rows(0), [("x", "y")], maps(0))
        parts = sorted((tmp_path / name).rglob("*.parquet"))
        contents.append([part.read_bytes() for part in parts])
    assert len(contents[0]) == 3
    assert contents[0] == contents[1]


def test_parts_of_a_run_before_settings_were_kept_in_them(tmp_path: Path) -> None:
    with open_run(tmp_path, SETTINGS) as run:
        run.write_shard(0, rows(0))
        bare = pa.table(rows(1), schema=FINDINGS_SCHEMA)
        pq.write_table(bare, tmp_path / "findings" / "part-00001.parquet")
        run.write_shard(2, rows(2))
    assert read_settings(tmp_path / "findings" / "part-00001.parquet") == {}
    assert read_findings(tmp_path).num_rows == 9
    assert pq.read_table(tmp_path / "findings").num_rows == 9
    (tmp_path / "note.parquet").write_text("no such thing")
    with pytest.raises(ValueError, match="Parquet"):
        read_settings(tmp_path / "note.parquet")


# --- refusals -------------------------------------------------------------------------------------


def test_other_settings_are_refused(tmp_path: Path) -> None:
    open_run(tmp_path, SETTINGS).close()
    before = (tmp_path / "run.json").read_bytes()
    other = {"batch_size": 32, "mining": {"steps": 3, "thresholds": [0.5]}, "new": None}
    with pytest.raises(RunFolderError) as caught:
        open_run(tmp_path, other)
    message = str(caught.value)
    assert "batch_size: 16 -> 32; " in message
    assert "mining.thresholds: [0.25, 0.75] -> [0.5]; " in message
    assert 'model: "demo" -> (absent); ' in message
    assert "new: (absent) -> null." in message
    assert "steps" not in message
    assert (tmp_path / "run.json").read_bytes() == before
    open_run(tmp_path, SETTINGS).close()  # the refusal did not keep the lock


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b'{"format": "other"}', b"\xff\xfe"])
def test_a_strange_run_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"run\.json is not of this program"):
        open_run(tmp_path, {})
    assert files(tmp_path) == {"run.json"}
    assert (tmp_path / "run.json").read_bytes() == content


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"is not empty and holds no run .*'thesis\.tex'"):
        open_run(tmp_path, {})
    assert files(tmp_path) == {"thesis.tex"}
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        open_run(tmp_path / "thesis.tex", {})
    with pytest.raises(RunFolderError, match=r"cannot write to .*: Not a directory"):
        open_run(tmp_path / "thesis.tex" / "out", {})


def test_settings_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        open_run(tmp_path / "out", {"threshold": float("nan")})
    with pytest.raises(TypeError, match="JSON"):
        open_run(tmp_path / "out", {"path": Path("x")})
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFolderError, match="cannot write to /proc/self/out: "):
        open_run("/proc/self/out", {})
    # A run that was writable once: the folder of its parts is tried, not only its own.
    open_run(tmp_path, {}).close()
    real = open

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if "findings" in str(path):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *args, **options)

    monkeypatch.setattr(whole_files, "open", refuse, raising=False)
    with pytest.raises(RunFolderError, match=r"cannot write to .*: Read-only file system"):
        open_run(tmp_path, {})
    monkeypatch.undo()
    open_run(tmp_path, {}).close()


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys, time; from cxr_fast.archive.findings import open_run\n"
        "run = open_run(sys.argv[1], {}); print('open', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        try:
            with pytest.raises(RunFolderError, match=f"in use by another run .process {other.pid} "):
                open_run(tmp_path, {})
        finally:
            other.kill()
    with open_run(tmp_path, {}), pytest.raises(RunFolderError, match="in use"):
        open_run(tmp_path, {})  # in one process, too


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="has no locks"), open_run(tmp_path, {}) as run:
        run.write_shard(0, rows(0))


def test_a_closed_run_takes_nothing(tmp_path: Path) -> None:
    run = open_run(tmp_path, {})
    run.close()
    run.close()
    with pytest.raises(ValueError, match="is closed"):
        run.write_shard(0, rows(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": None}, "expected the columns"),
        ({"extra": [1, 2, 3]}, "expected the columns"),
        ({"rank": [1, None, 2]}, "missing values"),
        ({"rank": [1, 2, 1000]}, "1000"),
        ({"x1": ["a", "b", "c"]}, "convert"),
        ({"image_id": ["a", "b", "\udcff"]}, "surrogates"),
    ],
)
@pytest.mark.parametrize("as_table", [False, True])
def test_rows_that_do_not_fit_leave_no_trace(
    tmp_path: Path, change: dict[str, Any], message: str, as_table: bool
) -> None:
    columns = {k: v for k, v in {**rows(0), **change}.items() if v is not None}
    with open_run(tmp_path, {}) as run:
        before = files(tmp_path)
        with pytest.raises(ValueError, match=message if not as_table else None):
            run.write_shard(0, pa.table(columns) if as_table else columns, [("a", "b")])
        with pytest.raises(ValueError, match="shard of 0 or more"):
            run.write_shard(-1, rows(0))
        assert files(tmp_path) == before
        assert run.finished_shards() == set()


def test_maps_with_and_without_heatmaps(tmp_path: Path) -> None:
    heatmaps = {"height": [2, 2], "width": [3, 3], "heatmap": [bytes(range(6)), bytes(6)]}
    heatmaps |= {"cam": [bytes(6), bytes(range(6))], "erased_at": [bytes([0, 0, 1, 1, 2, 0])] * 2}
    with open_run(tmp_path, {}) as run:
        run.write_shard(0, rows(0), maps=maps(0))
        run.write_shard(1, rows(1), maps={**maps(1), **heatmaps})
        for wrong, message in (
            ({**maps(2), "height": [2, 2]}, "expected the columns"),
            ({**maps(2), "probability": [0.5, None]}, "missing values"),
        ):
            with pytest.raises(ValueError, match=message):
                run.write_shard(2, rows(2), maps=wrong)
        assert run.finished_shards() == {0, 1}
    first, second = (pq.read_table(part, partitioning=None) for part in map_parts(tmp_path))
    assert first.schema == MAPS_SCHEMA
    assert first.to_pydict() == maps(0)
    assert second.schema == HEATMAPS_SCHEMA
    assert second.to_pydict() == {**maps(1), **heatmaps}


def test_missing_run(tmp_path: Path) -> None:
    for read in (read_findings, read_errors, map_parts):
        with pytest.raises(RunFolderError, match="holds no mining run"):
            read(tmp_path / "nowhere")


# --- kills ----------------------------------------------------------------------------------------

KILLED_RUN = """
import os, signal, sys
from cxr_fast.archive import findings
out, call, deadly = sys.argv[1], sys.argv[2], int(sys.argv[3])
real, calls = getattr(os, call), 0
def until_killed(*args):
    global calls
    calls += 1
    if calls == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(os, call, until_killed)
from tests_rows import maps, rows
with findings.open_run(out, {"a": 1}) as run:
    for shard in sorted({0, 1, 2} - run.finished_shards()):
        run.write_shard(shard, rows(shard), [(f"{shard}/bad.png", "truncated PNG")], maps(shard))
    run.finish(3)
"""


def run_until(out: Path, call: str, deadly: int) -> int:
    code = KILLED_RUN.replace("tests_rows", "test_findings")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", code, str(out), call, str(deadly)]
    return subprocess.run(command, env=here, check=False, capture_output=True).returncode


def tables(out: Path) -> list[dict[str, list[Any]]]:
    merged = pq.read_table(out / "errors.parquet")
    return [read_findings(out).to_pydict(), read_errors(out).to_pydict(), merged.to_pydict()]


def test_a_kill_between_write_and_rename_loses_nothing(tmp_path: Path) -> None:
    assert run_until(tmp_path / "whole", "replace", 0) == 0
    whole = tables(tmp_path / "whole")
    names = files(tmp_path / "whole")
    assert {name for name in names if name.startswith("maps/")} == {
        f"maps/part-0000{shard}.parquet" for shard in range(3)
    }
    # The renames of a run: run.json, 4 probes, then three a shard, then errors.parquet.
    for deadly in (1, 3, 6, 7, 8, 10, 15):
        out = tmp_path / f"killed {deadly}"
        assert run_until(out, "replace", deadly) == -signal.SIGKILL
        left = {name for name in files(out) if ".tmp-" in name}
        assert left, "the kill came between write and rename"
        committed = {path: path.read_bytes() for path in out.glob("findings/*.parquet")}
        assert len(committed) == {1: 0, 3: 0, 6: 0, 7: 0, 8: 0, 10: 1, 15: 3}[deadly]
        if deadly > 1:
            assert read_findings(out).num_rows == 3 * len(committed)
            assert len(map_parts(out)) == len(committed)
        assert run_until(out, "replace", 0) == 0
        assert files(out) == names
        assert all(path.read_bytes() == content for path, content in committed.items())
        assert tables(out) == whole


def test_a_kill_while_a_file_is_synced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_until(out, "fsync", 14) == -signal.SIGKILL
    assert run_until(out, "fsync", 17) == -signal.SIGKILL  # and again, in the second attempt
    assert run_until(out, "fsync", 0) == 0
    assert read_findings(out)["image_id"].to_pylist() == [
        f"{shard}/{index}.png" for shard in range(3) for index in range(3)
    ]
    assert read_errors(out).num_rows == 3
    assert not [name for name in files(out) if ".tmp-" in name]


def test_errors_of_an_unfinished_shard_do_not_stay(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        run.write_shard(0, rows(0), [("0/bad.png", "no such file")], maps(0))
        run.write_shard(1, rows(1), [("1/bad.png", "cannot be read: Stale file handle")], maps(1))
    (tmp_path / "findings" / "part-00001.parquet").unlink()  # as if killed just before it came
    assert read_errors(tmp_path)["image_id"].to_pylist() == ["0/bad.png"]
    assert [part.name for part in map_parts(tmp_path)] == ["part-00000.parquet"]
    with open_run(tmp_path, {}) as run:
        run.write_shard(1, rows(1))  # this time the image could be read
        run.finish(2)
    assert [part.name for part in map_parts(tmp_path)] == ["part-00000.parquet"]
    assert pq.read_table(tmp_path / "errors.parquet")["image_id"].to_pylist() == ["0/bad.png"]


def test_a_full_disk_leaves_no_half_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_run(tmp_path, {}) as run:
        before = files(tmp_path)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.write_shard(0, rows(0))
        monkeypatch.undo()
        assert files(tmp_path) == before
        run.write_shard(0, rows(0))
        run.finish(1)


def test_everything_is_synced_before_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def name(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}")

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("sync", name(fd))), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append((str(a), str(b))), replace(a, b)))
    with open_run(tmp_path, {}) as run:
        events.clear()
        run.write_shard(0, rows(0), [("a", "b")], maps(0))
    for folder, (first, second, third) in zip(
        ("errors", "maps", "findings"), (events[:3], events[3:6], events[6:]), strict=True
    ):
        assert first == ("sync", second[0])
        assert second[1] == str(tmp_path / folder / "part-00000.parquet")
        assert third == ("sync", str(tmp_path / folder))


def test_shards_may_be_written_by_threads_without_the_lock(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        threads = [
            threading.Thread(target=write_shard, args=(tmp_path, shard, rows(shard)))
            for shard in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run.finish(16)
    assert read_findings(tmp_path).num_rows == 48
