"""Listing a source and naming its images. Oracle: glob."""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import PNG_SIGNATURE
from places import shard

from cxr_fast.archive.images import UnreadableImage, file_name, image_id_of, list_images
from cxr_fast.archive.sources import ImageIds, lists


def grow(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_folder(tmp_path: Path) -> None:
    grow(tmp_path, "b/2.png", "b/1.JPG", "a.png", "b.png", "no_suffix", "scan.dcm", "b/c/d/e.tif")
    grow(tmp_path, ".hidden.png", ".git/x.png", "labels.csv", "notes.TXT", "m.json", "b/README.md")
    (tmp_path / "c").mkdir()
    found = list_images(tmp_path)
    ids = ("a.png", "b.png", "b/1.JPG", "b/2.png", "b/c/d/e.tif", "no_suffix", "scan.dcm")
    assert found.image_ids == ids
    assert found.paths == [str(tmp_path / name) for name in ids]
    assert found.path(2) == str(tmp_path / "b" / "1.JPG")
    assert len(found) == 7
    assert list_images(str(tmp_path) + "/") == found


def test_relative_source_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(grow(tmp_path, "in/a.png"))
    for source in ("in", "./in/", "in/*.png", "in/a.png", "../" + tmp_path.name + "/in"):
        assert list_images(source).image_ids == ("a.png",)
        assert list_images(source).paths == [str(tmp_path / "in" / "a.png")]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    grow(tmp_path, "in/z/1.png", "out/2.png", "out/deep/3.png", "4.png")
    source = tmp_path / "in"
    (source / "up").symlink_to("..")  # a loop
    (source / "self").symlink_to(".")
    (source / "a_link_to_z").symlink_to("z")  # sorts before z, yet z keeps its name
    (source / "file.png").symlink_to("../4.png")
    (source / "dead.png").symlink_to("nowhere")
    (source / "circle.png").symlink_to("circle.png")
    os.mkfifo(source / "pipe.png")
    found = list_images(source)
    # What cannot be read is listed too: it must end in the errors table, not in silence.
    assert found.image_ids == (
        *("circle.png", "dead.png", "file.png", "pipe.png"),
        *("up/4.png", "up/out/2.png", "up/out/deep/3.png", "z/1.png"),
    )


def test_a_linked_folder_keeps_its_own_name(tmp_path: Path) -> None:
    names = [f"{letter}/x.png" for letter in "bdfhjlnprt"]
    grow(tmp_path, *names)
    for name in names:
        for letter in "acz":
            (tmp_path / f"{letter}-{name[0]}").symlink_to(name[0])
    assert list(list_images(tmp_path).image_ids) == names


def test_the_number_of_links_does_not_matter(tmp_path: Path) -> None:
    for index in range(12):  # 12! ways through
        grow(tmp_path, f"{index}/x.png")
        for other in range(12):
            (tmp_path / f"{index}" / f"to{other}").symlink_to(f"../{other}")
    assert len(list_images(tmp_path)) == 12
    assert len(list_images(f"{tmp_path}/**/*.png")) == 12


@pytest.mark.parametrize(
    "pattern",
    [
        "*.png", "**/*.png", "**", "**/**/*", "*/*.png", "a/**/*.png", "**/b/*.png", "a/**/c/*.png",
        "?.png", "[ab].png", "**/c/**/*", "*/b/*", "a/b/*", "**/*b*/**", "./*.png", "a//*.png",
    ],
)  # fmt: skip
def test_patterns_agree_with_glob(tmp_path: Path, pattern: str) -> None:
    grow(tmp_path, "a.png", "b.png", "cc.png", "a/a.png", "a/b/x.png", "a/b/c/y.png", "b/b/z.png")
    grow(tmp_path, "a/c/c/w.jpg", "d/a/b/c/v.png", ".h/h.png", "a/.h.png")
    text = f"{tmp_path}/{pattern}"
    expected = {os.path.normpath(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p)}
    found = list_images(text)
    assert set(found.paths) == expected
    assert list(found.image_ids) == sorted(found.image_ids)
    fixed = tmp_path / "a" if pattern.startswith("a/") else tmp_path
    fixed = fixed / "b" if pattern.startswith("a/b/") else fixed
    assert found.root == str(fixed)


def test_a_folder_whose_name_has_wildcards_is_that_folder(tmp_path: Path) -> None:
    grow(tmp_path, "a[b]*/x.png", "ab/y.png")
    assert list_images(tmp_path / "a[b]*").image_ids == ("x.png",)


@pytest.mark.parametrize("header", ["path", "Image Index", " IMAGE ", "PATH"])
def test_csv_with_a_known_column(tmp_path: Path, header: str) -> None:
    grow(tmp_path, "in/z.png", "in/a.png", "else.png")
    table = tmp_path / "in" / "list.csv"
    rows = ["z.png", "./a.png", "missing.png", "../else.png", str(tmp_path / "in/sub/../b.png")]
    lines = [f"label,{header}\n", *(f'"1,2",{row}\n' for row in rows), "\n"]
    if header == "path":  # first in its line, so right behind the byte order mark
        lines = [f"{header},label\n", *(f'{row},"1,2"\n' for row in rows), "\n"]
    table.write_text("\ufeff" + "".join(lines), encoding="utf-8")
    found = list_images(table)
    assert found.image_ids == ("z.png", "a.png", "missing.png", "../else.png", "b.png")
    assert os.path.samefile(found.path(3), tmp_path / "else.png")


def test_csv_by_its_first_column(tmp_path: Path) -> None:
    grow(tmp_path, "a.png", "b.png")
    table = tmp_path / "list.csv"
    table.write_text("file,label\nb.png,1\na.png,0\n")
    assert list_images(table).image_ids == ("b.png", "a.png")
    table.write_text("\ufeffb.png,1\na.png,0\n", encoding="utf-8")  # no header: a file
    assert list_images(table).image_ids == ("b.png", "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\na.png\n./a.png\n", r"names 'a\.png' more than once"),
        ("path\na.png\nsub/../a.png\n", r"names 'a\.png' more than once"),
        ("path\n", "names no file"),
        ("", "names no file"),
        ("label,path\n1,a.png\n2,\n", "line 3 of .* names no image"),
        ("label,path\n1\n", "line 2 of .* names no image"),
        ("path\n" + "x" * 200_000, "is not CSV"),
    ],
)
def test_csv_refusals(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "list.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        list_images(table)


def test_single_file(tmp_path: Path) -> None:
    grow(tmp_path, "sub/one.weird")
    found = list_images(tmp_path / "sub" / "one.weird")
    assert found.image_ids == ("one.weird",)
    assert found.paths == [str(tmp_path / "sub" / "one.weird")]


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.png", "", "a\0b", "sub/nothing.png"])
def test_missing_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^no images: "):
        list_images(source)


def test_empty_source(tmp_path: Path) -> None:
    grow(tmp_path, "notes.txt", ".hidden")
    for source in (tmp_path, f"{tmp_path}/*.png"):
        with pytest.raises(ValueError, match=r"^no images: the "):
            list_images(source)


def test_names_that_are_not_text(tmp_path: Path) -> None:
    names = [
        *(b"plain.png", "\u00e9.png".encode(), b"new\nline.png", b"latin\xe9.png", b"100%.png"),
        *(b"back\\x0aslash.png", b"tab\t\x7f.png", "sep\u2028\u0085.png".encode()),
        *(b"half\xc3.png", b"quote'\".png"),
    ]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    found = list_images(tmp_path)
    assert sorted(os.fsencode(os.path.basename(path)) for path in found.paths) == sorted(names)
    assert all(os.path.isfile(path) for path in found.paths)
    assert all(len(image_id.splitlines()) == 1 for image_id in found.image_ids)
    assert pa.array(found.image_ids, pa.string()).to_pylist() == list(found.image_ids)
    ids = set(found.image_ids)
    assert {"plain.png", "\u00e9.png", "100%.png", r"new\x0aline.png", r"latin\xe9.png"} <= ids
    assert {r"back\x5cx0aslash.png", r"tab\x09\x7f.png", r"sep\xe2\x80\xa8\xc2\x85.png"} <= ids
    lines = b"path\n" + b"\n".join(n for n in names if not {10, 34} & set(n))
    (tmp_path / "list.csv").write_bytes(lines)
    assert set(list_images(tmp_path / "list.csv").image_ids) <= ids


@given(st.binary(min_size=1, max_size=40))
def test_an_id_is_reversible(raw: bytes) -> None:
    name = os.fsdecode(raw)
    image_id = image_id_of(name)
    image_id.encode("utf-8")  # valid text
    assert os.fsencode(file_name(image_id)) == raw
    assert "\n" not in image_id


# --- Parquet manifests ----------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["path", "image", "Image Index", "IMAGE_ID", "uri"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_names_what_the_csv_names(tmp_path: Path, column: str, kind: pa.DataType) -> None:
    cells = [
        *("a.png", "./b.png", "sub/../c.png", "../up.png", f"{tmp_path}/d.png", "e//f.png", "e/g.png"),
        *(" h.png ", "\u00e9.png", "i\\j.png", "k\tl.png", "http://host//x/../y.png", f"file://{tmp_path}/m.png"),
        *("n\u2028.png", "\u00a0o.png", "p/.", ".q/r.png", "...", "s..png"),
    ]  # fmt: skip
    (tmp_path / "list.csv").write_text(f"label,{column}\n" + "".join(f'1,"{cell}"\n' for cell in cells))
    expected = list_images(tmp_path / "list.csv").image_ids
    assert expected[3] == "../up.png"
    assert [expected[i] for i in (11, 12)] == ["http://host//x/../y.png", "m.png"]
    table = pa.table({"label": pa.array([1] * len(cells)), column: pa.array(cells).cast(kind)})
    pq.write_table(table, tmp_path / "list.parquet", row_group_size=4)
    found = list_images(tmp_path / "list.parquet")
    assert found.image_ids == expected
    assert found.path(0) == str(tmp_path / "a.png")
    assert found.root == str(tmp_path)


def test_parquet_in_parts(tmp_path: Path) -> None:
    for part in range(3):
        (tmp_path / "in" / f"split={part}").mkdir(parents=True)
        rows = [f"../images/{part}-{row}.png" for row in range(2)]
        pq.write_table(pa.table({"path": rows}), tmp_path / "in" / f"split={part}" / "part.parquet")
    (tmp_path / "in" / "_SUCCESS.txt").touch()
    expected = [f"../images/{part}-{row}.png" for part in range(3) for row in range(2)]
    for source in (tmp_path / "in", f"{tmp_path}/in/**/*.parquet"):
        found = list_images(source)
        assert found.image_ids == expected
        assert found.path(5) == f"{tmp_path}/in/../images/2-1.png"
    grow(tmp_path, "in/x.png")  # images first: a Parquet beside them is about them
    assert list_images(tmp_path / "in").image_ids == ("x.png",)
    pq.write_table(pa.table({"path": ["x", "../images/1-1.png"]}), tmp_path / "in" / "z.parquet")
    twice = r"more than once \(image 2 of part.parquet and image 2 of z.parquet\)"
    with pytest.raises(ValueError, match=twice):
        list_images(f"{tmp_path}/in/**/*.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"path": ["a.png", "./a.png"]},
            r"names 'a\.png' more than once \(image 1 of .* and image 2 of",
        ),
        ({"path": ["a.png", None]}, r"row 2 of '.*list\.parquet' names no image"),
        ({"path": ["a.png"] * 0 + ["b", "c", "  "]}, r"row 3 of '.*list\.parquet' names no image"),
        ({"path": pa.array([], pa.string())}, "names no file"),
        ({"path": [1, 2]}, "expected text in the column of paths of .*, got int64"),
        ({"file": ["a.png"], "label": [1]}, r"expected a column path, uri, .*, got file, label"),
        ({"path": ["nonsense://a/b.png"]}, r"row 1 of .*: nonsense:// is no scheme"),
    ],
)
def test_parquet_refusals(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=message):
        list_images(tmp_path / "list.parquet")


def test_what_is_no_parquet_or_a_broken_one(tmp_path: Path) -> None:
    table = tmp_path / "list.parquet"
    table.write_bytes(b"path\na.png\n")
    with pytest.raises(ValueError, match=r"list\.parquet' is no Parquet file that can be read"):
        list_images(table)
    pq.write_table(pa.table({"path": [f"{i}.png" for i in range(1000)]}), table, compression="snappy")
    whole = table.read_bytes()
    table.write_bytes(whole[:100] + b"\xff" * 300 + whole[400:])
    with pytest.raises(ValueError, match=r"list\.parquet' is no Parquet file that can be read"):
        list_images(table)


# --- the list itself ------------------------------------------------------------------------------


def test_ids_are_a_sequence_of_text() -> None:
    names = [f"{i}.png" for i in range(200_000)]
    ids = ImageIds(pa.array(names, pa.large_string()))
    assert list(ids) == names
    assert (ids[0], ids[-1], len(ids)) == ("0.png", "199999.png", 200_000)
    assert ids[3:9:2] == names[3:9:2]
    assert ids[::-1][:2] == names[:-3:-1]
    assert ids != names[:-1]
    assert ids != [*names[:-1], "x"]
    assert ids == tuple(names)
    assert ids != "0.png"
    assert "77.png" in ids
    assert ids.index("77.png") == 77
    assert pa.array(ids, pa.string()).to_pylist() == names
    with pytest.raises(IndexError):
        ids[200_000]


def test_a_list_is_cut_and_pickled_without_the_rest(tmp_path: Path) -> None:
    for index in range(3000):
        (tmp_path / f"{index:04d}.png").write_bytes(PNG_SIGNATURE + b"%d" % index)
    found = list_images(tmp_path)
    whole = pickle.dumps(found)
    assert pickle.loads(whole) == found
    assert len(whole) < 20 * len(found) + 2000
    part = found.part(1000, 1010)
    assert len(pickle.dumps(part)) < 2000
    for copy in (part, pickle.loads(pickle.dumps(part))):
        assert copy.image_ids == found.image_ids[1000:1010]
        assert [copy.read(i) for i in range(10)] == [found.read(i) for i in range(1000, 1010)]
        assert copy.size(3) == len(PNG_SIGNATURE) + 4
        assert copy.part(2, 4).image_ids == ["1002.png", "1003.png"]
    assert len(found.part(5, 5)) == len(found.part(9, 5)) == 0
    (tmp_path / "0000.png").unlink()
    assert found.size(0) == -1
    with pytest.raises(UnreadableImage, match="no such file"):
        found.read(0)


def digest_of(pairs: list[tuple[str, int]]) -> str:
    """What runs have recorded since the first version: to go on, one must find it again."""
    return hashlib.sha256("".join(f"{name}\0{size}\0" for name, size in pairs).encode()).hexdigest()


@pytest.mark.parametrize("count", [1, 7, 8, 50])
def test_the_digest_is_of_ids_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(lists, "_CHUNK", 7)
    monkeypatch.setattr(lists, "_ASKED", 3)
    names = sorted(
        [os.fsencode(f"{i:02d}\u00e9\u4e00.png") for i in range(count - 1)] + [b"\\x\xe9\n.png"]
    )
    for size, name in enumerate(names):
        (tmp_path / os.fsdecode(name)).write_bytes(bytes(size * 37))
    found = list_images(tmp_path)
    pairs = [(i, os.path.getsize(p)) for i, p in zip(found.image_ids, found.paths, strict=True)]
    assert len({size for _, size in pairs}) == count
    assert found.digest() == digest_of(pairs)
    assert found.part(1, count - 1).digest() == digest_of(pairs[1 : count - 1])
    os.unlink(found.path(count // 2))
    pairs[count // 2] = (pairs[count // 2][0], -1)
    assert found.digest() == digest_of(pairs)


def test_the_digest_of_members_and_of_a_known_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "_CHUNK", 4)
    shard(tmp_path / "s.tar", {f"{i}.png": bytes(i) for i in range(10)})
    found = list_images(tmp_path / "s.tar")
    pairs = [(f"s.tar/{i}.png", i) for i in range(10)]
    assert found.digest() == digest_of(pairs)
    assert found.part(3, 9).digest() == digest_of(pairs[3:9])
    (tmp_path / "list.csv").write_text("path\na.png\nb/c.png\nmemory://d.png\n")
    # A file of three bytes, none, and a URI, which is not asked.
    (tmp_path / "a.png").write_bytes(b"abc")
    assert list_images(tmp_path / "list.csv").digest() == digest_of(
        [("a.png", 3), ("b/c.png", -1), ("memory://d.png", -1)]
    )


def behind_2_gib(folder: Path, names: list[bytes]) -> ImageIds:
    """Ids as they lie at the end of a list of 100 million: their offsets are beyond 32 bits."""
    with (folder / "text").open("wb") as file:  # sparse
        file.seek(2**31)
        file.write(b"".join(names))
    text = pa.memory_map(str(folder / "text")).read_buffer()
    offsets = 2**31 + np.cumsum([0, *map(len, names)])
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), text]
    return ImageIds(pa.Array.from_buffers(pa.large_string(), len(names), buffers))


def test_ids_behind_2_gib_of_others(tmp_path: Path) -> None:
    ids = behind_2_gib(tmp_path, [b"a.png", b"b/c.png"])
    assert ids == ["a.png", "b/c.png"]
    assert pa.array(ids, pa.string()).to_pylist() == ["a.png", "b/c.png"]
    rows = pa.record_batch({"image_id": ids.array, "size": pa.array([5, 6])})
    found = replace(list_images(grow(tmp_path, "x.png") / "x.png"), rows=rows)
    assert found.digest() == digest_of([("a.png", 5), ("b/c.png", 6)])


def test_reading_keeps_to_the_size_limit(tmp_path: Path) -> None:
    with (tmp_path / "big.png").open("wb") as file:  # sparse: a terabyte on paper
        file.write(PNG_SIGNATURE + bytes(200))
        file.truncate(2**40)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "video.mp4").write_bytes(b"\0\0\0 ftypisom" + bytes(5000))
    found = list_images(tmp_path)
    reasons = []
    for index in range(3):
        with pytest.raises(UnreadableImage) as caught:
            found.read(index)
        reasons.append(caught.value.reason)
    assert reasons[0] == f"a file of {2**40} bytes, more than {2**29 + 2**24}"
    assert reasons[1] == "a pipe, not a file"
    assert reasons[2].startswith("unknown file type; first bytes 00 00 00 20")
