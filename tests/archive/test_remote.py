"""Images behind URIs and on filesystems of pyarrow and fsspec. Oracle: the same files, here."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from pictures import PNG_SIGNATURE
from places import FILES, contents, grow_images, outcome, shard

from cxr_fast.archive.images import list_images
from cxr_fast.archive.sources import remote

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return grow_images(tmp_path / "images")


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    """The same in fsspec's memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(folder), "/archive", recursive=True)
    yield "memory://archive"
    filesystem.rm("/archive", recursive=True)


# --- what is where --------------------------------------------------------------------------------


def test_a_folder_is_the_same_wherever_it_lies(folder: Path, memory: str) -> None:
    here = list_images(folder)
    assert contents(here) == FILES
    local = pafs.LocalFileSystem()
    for found in (
        list_images(memory),
        list_images(memory + "/"),
        list_images(str(folder), filesystem=local),
        list_images("images", filesystem=pafs.SubTreeFileSystem(str(folder.parent), local)),
        list_images("/", filesystem=pafs.SubTreeFileSystem(str(folder), local)),
        list_images("archive", filesystem=fsspec.filesystem("memory")),
        list_images("images", filesystem=DirFileSystem(str(folder.parent), fsspec.filesystem("file"))),
    ):
        assert found.image_ids == here.image_ids
        assert contents(found) == FILES
        assert [found.size(i) for i in range(len(found))] == [len(FILES[i]) for i in found.image_ids]
    assert list_images(f"file://{folder}") == here
    assert list_images(f"file://{folder}/b/c%20d.png").read(0) == FILES["b/c d.png"]


@pytest.mark.parametrize(
    "pattern", ["*.png", "**/*.png", "b/*", "b/**/*.png", "*/*/*/*", "**", "[ab]*"]
)
def test_patterns(folder: Path, memory: str, pattern: str) -> None:
    here = list_images(f"{folder}/{pattern}")
    found = list_images(f"{memory}/{pattern}")
    assert found.image_ids == here.image_ids
    assert contents(found) == contents(here)


def test_names_with_an_empty_part_are_listed_once(memory: str) -> None:
    fsspec.filesystem("memory").pipe("/archive//a.png", PNG_SIGNATURE + b"another")
    found = contents(list_images(memory))
    assert found.pop("/a.png") == PNG_SIGNATURE + b"another"
    assert found == FILES


def test_one_file_and_nothing(memory: str) -> None:
    found = list_images(f"{memory}/b/c d.png")
    assert contents(found) == {"c d.png": FILES["b/c d.png"]}
    assert found.path(0) == f"{memory}/b/c d.png"
    for missing in ("none.png", "none/*.png"):
        with pytest.raises(FileNotFoundError, match=r"^no images: "):
            list_images(f"{memory}/{missing}")
    with pytest.raises(ValueError, match="names no file that could be an image"):
        list_images(f"{memory}/*.jpg")


def test_manifests(folder: Path, memory: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    cells = ["b/c d.png", "./a.png", "b/../no_suffix", "none.png", "memory://archive/a.png"]
    cells += [f"file://{folder}/a.png"]
    filesystem.pipe("/archive/list.csv", ("path\n" + "\n".join(cells)).encode())
    pq.write_table(pa.table({"uri": cells}), tmp_path / "list.parquet")
    filesystem.put(str(tmp_path / "list.parquet"), "/archive/lists/sub/list.parquet")
    filesystem.pipe("/archive/lists/sub/a.png", b"else")
    expected = {
        "b/c d.png": FILES["b/c d.png"],
        "a.png": FILES["a.png"],
        "no_suffix": FILES["no_suffix"],
        "none.png": "no such file",
        "memory://archive/a.png": FILES["a.png"],
        f"file://{folder}/a.png": FILES["a.png"],
    }
    found = list_images(f"{memory}/list.csv")
    assert contents(found) == expected
    assert [found.size(i) for i in range(6)] == [-1, -1, -1, -1, -1, 10]
    there = list_images(f"{memory}/lists/sub/list.parquet")
    assert there.image_ids == list(expected)
    assert there.read(1) == b"else"  # relative to the manifest's folder
    # A manifest here may name images elsewhere.
    (folder / "list.csv").write_text("path\nmemory://archive/a.png\na.png\n")
    here = list_images(folder / "list.csv")
    assert contents(here) == {"memory://archive/a.png": FILES["a.png"], "a.png": FILES["a.png"]}
    assert contents(pickle.loads(pickle.dumps(here.part(0, 1)))) == {
        "memory://archive/a.png": FILES["a.png"]
    }
    for cell in (b"/etc/passwd", b"../a.png", b"b/../../a.png"):
        filesystem.pipe("/archive/list.csv", b"path\na.png\n" + cell)
        told = (
            r"line 3 of 'memory://archive/list\.csv': expected a path relative to 'memory://archive/'"
        )
        with pytest.raises(ValueError, match=told):
            list_images(f"{memory}/list.csv")


def test_tars(memory: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    for t in range(3):
        shard(tmp_path / f"s-{t}.tar", {f"{i}.png": b"%d" % i * 700 for i in range(50)})
    os.truncate(tmp_path / "s-2.tar", 40_000)
    filesystem.put(str(tmp_path / "*.tar"), "/archive/tars/")
    here = list_images(f"{tmp_path}/s-*.tar")
    for source in ("/tars", "/tars/s-*.tar", "/tars/s-{0..2}.tar"):
        found = list_images(memory + source)
        assert found.image_ids == here.image_ids
        assert contents(found) == contents(here)
        assert [found.size(i) for i in range(len(found))] == [here.size(i) for i in range(len(here))]
    assert list_images(f"{memory}/tars/s-1.tar").image_ids[0] == "s-1.tar/0.png"
    on_arrow = list_images(str(tmp_path) + "/*.tar", filesystem=pafs.LocalFileSystem())
    assert contents(on_arrow) == contents(here)


def test_lists_cross_processes_and_threads(folder: Path, memory: str) -> None:
    subtree = pafs.SubTreeFileSystem(str(folder.parent), pafs.LocalFileSystem())
    for found in (list_images("images", filesystem=subtree), list_images(f"file://{folder}")):
        code = (
            "import pickle, sys; it = pickle.load(sys.stdin.buffer); print(it.read(1)[8:11], len(it))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(found.part(0, 2)),
            capture_output=True,
            check=True,
        )
        assert done.stdout == b"b'ccc' 2\n"
    remote_list = list_images(memory)
    copy = pickle.loads(pickle.dumps(remote_list))
    assert copy == remote_list
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: copy.read(i % 4), range(400))) == [*FILES.values()] * 100


# --- what is refused ------------------------------------------------------------------------------


def test_uris_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nonsense:// is no scheme that pyarrow or fsspec knows"):
        list_images("nonsense://bucket/folder")
    with pytest.raises(ValueError, match="expected no password in a URI") as caught:
        list_images("s3://AKIA:geheim@bucket/folder")
    assert "geheim" not in str(caught.value)
    with pytest.raises(ValueError, match="no place to read from"):
        list_images("gs://bucket/folder?region=here")
    table = tmp_path / "list.csv"
    table.write_text("path\na.png\nnonsense://x/y.png\n")
    with pytest.raises(ValueError, match=r"line 3 of '.*list\.csv': nonsense:// is no scheme"):
        list_images(table)


def test_without_fsspec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from cxr_fast.archive.sources import fsspec_files

    monkeypatch.setattr(fsspec_files, "fsspec", None)
    with pytest.raises(ValueError, match=r"pip install 'cxr_fast\[remote\]'"):
        list_images("sftp://host-never-asked/folder")


def test_s3_needs_no_fsspec() -> None:
    code = (
        "import sys; sys.modules['fsspec'] = None\n"
        "from cxr_fast.archive.sources.remote import store_of\n"
        "store, path = store_of('s3://bucket/a folder/x#1.png?region=eu-west-1')\n"
        "print(path, store.shown(path), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "bucket/a folder/x#1.png s3://bucket/a folder/x#1.png False\n"


def test_a_file_too_large_for_an_image(
    folder: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxr_fast.archive.sources.store.refuse_large.__defaults__", (100,))
    expected = "a file of 3000 bytes, more than 100"
    assert outcome(list_images(f"{memory}/b/c*.png"), 0) == expected
    assert outcome(list_images(f"{memory}/b/c d.png"), 0) == expected
    on_arrow = list_images(str(folder / "b"), filesystem=pafs.LocalFileSystem())
    assert outcome(on_arrow, 0) == expected


# --- a network that fails -------------------------------------------------------------------------


class Flaky(pafs.FileSystemHandler):
    """A filesystem of this machine that first runs through ``failures``, one a request."""

    def __init__(self, failures: list[BaseException]) -> None:
        self.failures, self.requests, self.local = failures, 0, pafs.LocalFileSystem()
        self.lock = threading.Lock()

    def _ask(self) -> None:
        with self.lock:
            self.requests += 1
            if self.failures:
                raise self.failures.pop(0)

    def get_type_name(self) -> str:
        return "flaky"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self._ask()
        return self.local.get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self._ask()
        return self.local.get_file_info(selector)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self._ask()
        return self.local.open_input_file(path)

    def __eq__(self, other: object) -> bool:
        return self is other

    def _refuse(self, *_: object) -> None:
        raise NotImplementedError("read only")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_input_stream = open_output_stream = open_append_stream = _refuse


def resets(count: int) -> list[BaseException]:
    return [ConnectionResetError(104, "Connection reset by peer") for _ in range(count)]


def flaky(failures: list[BaseException]) -> tuple[Flaky, pafs.PyFileSystem]:
    handler = Flaky(failures)
    return handler, pafs.PyFileSystem(handler)


@pytest.mark.parametrize(
    "failure", [ConnectionResetError(104, "reset"), TimeoutError("slow"), OSError("AWS")]
)
def test_what_passes_is_tried_again(folder: Path, failure: OSError) -> None:
    handler, filesystem = flaky([failure] * 4)
    found = list_images(str(folder), filesystem=filesystem)
    handler.failures = [failure] * 4
    assert found.read(1) == FILES["b/c d.png"]
    handler.failures = [failure, FileNotFoundError(2, "gone")]
    assert outcome(found, 1) == "no such file"


def test_what_stays_ends_the_run_and_is_no_broken_image(folder: Path, tmp_path: Path) -> None:
    shard(tmp_path / "s.tar", {"a.png": b"a"})
    for source in (folder, f"{folder}/*.png", folder / "a.png", tmp_path / "s.tar"):
        _, dead = flaky(resets(99))
        with pytest.raises(OSError, match="did not answer in 5 tries"):
            list_images(str(source), filesystem=dead)
        handler, filesystem = flaky([])
        found = list_images(str(source), filesystem=filesystem)
        found = replace(found, store=remote.RemoteStore("", filesystem))  # one with no file open
        handler.failures = resets(99)
        with pytest.raises(
            OSError, match=r"did not answer in 5 tries \(ConnectionResetError.*same command"
        ):
            found.read(0)


def test_faults_of_one_file_are_known_at_once(folder: Path) -> None:
    handler, filesystem = flaky([])
    found = list_images(str(folder), filesystem=filesystem)
    for failure, reason in [
        (FileNotFoundError(2, "none"), "no such file"),
        (PermissionError(13, "no"), "no permission to read it"),
        (OSError("AWS Error ACCESS_DENIED during HeadObject"), "no permission to read it"),
        (IsADirectoryError(21, "is one"), "a folder, not a file"),
    ]:
        handler.failures, handler.requests = [failure], 0
        assert outcome(found, 0) == reason
        assert handler.requests == 1
    handler.failures = [OSError(24, "Too many open files")]
    with pytest.raises(OSError, match=r"^.Errno 24. Too many open files$"):
        found.read(0)
