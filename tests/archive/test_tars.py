"""Images in tars. Oracles: tarfile, the program tar, webdataset, and headers written byte by byte."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import END, contents, header, member, outcome, pax, shard

from cxr_fast.archive.images import file_name, list_images
from cxr_fast.archive.sources import TarList

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def images_in(tar: Path | str) -> dict[str, bytes | str]:
    """What each listed image reads as: its bytes, or the reason that it has none."""
    return contents(list_images(tar))


def written(path: Path, *pieces: bytes) -> Path:
    path.write_bytes(b"".join(pieces))
    return path


# --- the members ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_members_are_those_of_tarfile(tmp_path: Path, format: int) -> None:
    rng = random.Random(0)
    names = ["a.png", "b/c.jpg", "b/" + "d" * 90 + ".png", "folder/" * 20 + "e.png", "no_suffix"]
    if format != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".png", "\u00e9\u2603.png", "l/" * 200 + "y" * 120 + ".dcm"]
    files = {name: rng.randbytes(rng.choice([0, 1, 511, 512, 513, 5000])) for name in names}
    notes = {"a.json": b"{}", "a.cls": b"3", "b/c.txt": b"text", ".hidden.png": b"1", "b/._c.jpg": b"2"}
    path = shard(tmp_path / "s.tar", files | notes, format)
    found = list_images(path)
    assert found.image_ids == [f"s.tar/{name}" for name in names]
    with tarfile.open(path) as tar:
        for index, name in enumerate(names):
            assert found.read(index) == tar.extractfile(name).read() == files[name]
            assert found.size(index) == len(files[name])
    assert found.root == str(tmp_path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="no program tar")
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_members_are_those_of_the_program_tar(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    long = "n" * (60 if format in ("v7", "ustar") else 200) + ".png"
    for name in ("a.png", "deep/b.png", "deep/" + long):
        (folder / name).write_bytes(name.encode() * 100)
    (folder / os.fsdecode(b"latin\xe9\n.png")).write_bytes(b"latin")
    os.link(folder / "a.png", folder / "hard.png")
    (folder / "soft.png").symlink_to("a.png")
    (folder / "soft.txt").symlink_to("a.png")  # a note, link or not
    if format != "v7":
        os.mkfifo(folder / "pipe.png")
    with (folder / "holes.png").open("wb") as file:
        for place in range(0, 5_000_000, 200_000):  # more than one header's map has room for
            file.seek(place)
            file.write(b"x")
    sparse = ["--sparse"] if "gnu" in format or format == "posix" else []
    order = ["--sort=name", "-C", str(folder), "."]  # every name begins with ./
    path = tmp_path / "s.tar"
    subprocess.run(["tar", f"--format={format}", *sparse, "-cf", str(path), *order], check=True)
    links = {"s.tar/hard.png", "s.tar/soft.png"}
    got = images_in(path)
    assert {got.pop(name) for name in links} == {"a link in a tar, not a file"}
    if format != "v7":
        assert got.pop("s.tar/pipe.png") == "a pipe, not a file"
    if sparse:
        assert got.pop("s.tar/holes.png") == "a sparse member of a tar is not supported"
    listed = {f"s.tar/{name}": (folder / name).read_bytes() for name in ("a.png", "deep/b.png")}
    listed |= {
        f"s.tar/deep/{long}": ("deep/" + long).encode() * 100,
        r"s.tar/latin\xe9\x0a.png": b"latin",
    }
    if not sparse:
        listed["s.tar/holes.png"] = (folder / "holes.png").read_bytes()
    assert got == listed


def test_members_are_those_of_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = str(tmp_path / "shards-%06d.tar")
    with webdataset.ShardWriter(shards, maxcount=4, verbose=0) as writer:
        for index in range(10):
            sample = {
                "__key__": f"{index:05d}",
                "png": b"png%d" % index,
                "cls": index,
                "json": {"a": 1},
            }
            writer.write(sample)
    pattern = f"{tmp_path}/shards-{{000000..000002}}.tar"
    dataset = webdataset.WebDataset(pattern, shardshuffle=False)
    expected = {
        f"{os.path.basename(sample['__url__'])}/{sample['__key__']}.png": sample["png"]
        for sample in dataset
    }
    assert len(expected) == 10
    for source in (pattern, f"{tmp_path}/shards-*.tar", str(tmp_path)):
        assert images_in(source) == expected
        assert list_images(source).image_ids == list(expected)


def test_headers_written_byte_by_byte(tmp_path: Path) -> None:
    data = b"d" * 700
    pieces = [
        member(b"prefixed.png", data, prefix=b"some/folder"),
        # GNU's header has times where ustar has the prefix.
        member(b"times.png", data, magic=b"ustar  \0", prefix=b"00000000000\0"),
        member(b"v7.png", data, kind=b"\0", magic=bytes(8)),
        member(b"v7-folder/", kind=b"\0", magic=bytes(8)),
        member(b"folder.png", kind=b"5"),
        member(b"base256.png", data, octets=b"\x80" + (700).to_bytes(11, "big")),
        member(b"blanks.png", data, octets=b"       1274 "),
        member(b"contiguous.png", data, kind=b"7"),
        member(b"unknown.png", data, kind=b"Z"),  # POSIX: to be taken for a file
        header(b"hard.png", 700, b"1"),  # a link's size is that of what it leads to
        member(b"volume", kind=b"V"),
        pax(size=b"700") + header(b"pax-size.png") + data + bytes(324),
        pax(path=b"by/pax.png", comment=b"no = \n harm") + member(b"short.png", data),
        member(b"././@LongLink", b"long/" * 60 + b"name.png\0", b"L") + member(b"cut.png", data),
        member(b"signed\xe9.png", data, checksum=b"%06o\0 " % _signed_sum(b"signed\xe9.png", 700)),
        pax(GNU__sparse__major=b"1", GNU__sparse__name=b"sparse.png") + member(b"tmp/1.png", data),
        member(b"device.png", kind=b"3"),
        END,
    ]
    names = [
        *("some/folder/prefixed.png", "times.png", "v7.png", "base256.png", "blanks.png"),
        *("contiguous.png", "unknown.png", "pax-size.png", "by/pax.png", "long/" * 60 + "name.png"),
        r"signed\xe9.png",
    ]
    path = written(tmp_path / "t.tar", *pieces)
    got = images_in(path)
    reasons = {
        "hard.png": "a link in a tar, not a file",
        "sparse.png": "a sparse member of a tar is not supported",
        "device.png": "a device, not a file",
    }
    assert got == {f"t.tar/{name}": data for name in names} | {
        f"t.tar/{name}": reason for name, reason in reasons.items()
    }
    with tarfile.open(path) as tar:
        read = {info.name for info in tar if info.isreg() or info.type == b"Z"}
    # What tarfile makes of GNU's times is known to be wrong; all else is the same.
    assert {name for name in names if name[:6] not in ("times.", "signed")} <= read


def _signed_sum(name: bytes, size: int) -> int:
    block = bytearray(header(name, size))
    block[148:156] = b" " * 8
    return sum(byte - 256 if byte >= 128 else byte for byte in block)


def test_a_global_header_holds_until_the_next_says_otherwise(tmp_path: Path) -> None:
    everywhere = member(b"g", b"14 size=00003\n", b"g")
    path = written(
        tmp_path / "t.tar",
        everywhere,
        header(b"a.png", 99) + b"abc" + bytes(509),
        pax(size=b"2") + header(b"b.png", 99) + b"de" + bytes(510),
        header(b"c.png", 99) + b"fgh" + bytes(509),
        END,
    )
    assert images_in(path) == {"t.tar/a.png": b"abc", "t.tar/b.png": b"de", "t.tar/c.png": b"fgh"}
    with tarfile.open(path) as tar:
        assert [info.size for info in tar] == [3, 2, 3]


def test_names_that_lead_outside_are_names_only(tmp_path: Path) -> None:
    names = [b"../up.png", b"/etc/abs.png", b"a/../../b.png", b"./dot.png", b"x//y.png", b"...png"]
    names += [b"new\nline.png", b"back\\slash.png", b"bad\xff.png", "\u00e9.png".encode()]
    inside = tmp_path / "inside"
    inside.mkdir()
    path = written(inside / "t.tar", *(member(name, name) for name in names), END)
    got = images_in(path)
    assert got == {
        r"t.tar/\x2e\x2e/up.png": b"../up.png",
        r"t.tar/\x2fetc/abs.png": b"/etc/abs.png",
        r"t.tar/a/\x2e\x2e/\x2e\x2e/b.png": b"a/../../b.png",
        "t.tar/dot.png": b"./dot.png",
        "t.tar/x/y.png": b"x//y.png",
        r"t.tar/new\x0aline.png": b"new\nline.png",
        r"t.tar/back\x5cslash.png": b"back\\slash.png",
        r"t.tar/bad\xff.png": b"bad\xff.png",
        "t.tar/\u00e9.png": "\u00e9.png".encode(),
    }  # and ...png is hidden
    assert os.fsencode(file_name(r"t.tar/a/\x2e\x2e/b.png")) == b"t.tar/a/../b.png"
    assert sorted(tmp_path.rglob("*")) == [inside, path]  # nothing was written


# --- damage ---------------------------------------------------------------------------------------


def test_a_tar_cut_anywhere_gives_what_comes_before(tmp_path: Path) -> None:
    whole = b"".join(member(b"%d.png" % i, bytes([i]) * 700) for i in range(4)) + END
    for cut in range(0, len(whole), 256):
        path = written(tmp_path / "t.tar", whole[:cut])
        complete = max(0, (cut - 512 - 700) // 1536 + 1) if cut >= 1212 else 0
        told = f"truncated tar: no end mark in its {cut} bytes"
        if complete == 0:
            with pytest.raises(ValueError, match="holds no member that could be an image"):
                list_images(path)
            continue
        got = images_in(path)
        for i in range(complete):
            assert got.pop(f"t.tar/{i}.png") == bytes([i]) * 700
        if cut < len(whole) - 512:
            assert got.pop("t.tar") == told
        if got:  # the member that is cut
            assert got == {f"t.tar/{complete}.png": "it ends beyond the end of its tar"}


def test_damage_is_named_and_the_members_before_it_are_mined(tmp_path: Path) -> None:
    good = member(b"a.png", b"a") + member(b"b.png", b"b")
    no_header = "damaged tar: no header at byte 2048, so no member after it is read"
    for damage, reason in [
        (b"garbage!" * 64, no_header),
        (b"\0" * 511 + b"x", no_header),
        (header(b"c.png", checksum=b"000000\0 "), no_header),
        (header(b"c.png", checksum=b"-00001\0 "), no_header),
        (header(b"c.png", octets=b"0_0000000000"), "damaged tar: no size in the header at byte 2048"),
        (header(b"c.png", octets=b"\xff" * 12), "damaged tar: no size in the header at byte 2048"),
        (header(b"L", 2**21, b"L"), "damaged tar: an extended header of 2097152 bytes at byte 2048"),
        (member(b"x", b"99 path=c.png\n", b"x"), "damaged tar: the extended header at byte 2048"),
        (member(b"x", b"path", b"x"), "damaged tar: the extended header at byte 2048"),
        (member(b"x", b"0 a=\n", b"x"), "damaged tar: the extended header at byte 2048"),
        (pax(size=b"-5") + header(b"c.png"), "damaged tar: the extended header before byte 3072"),
        (header(b"s", kind=b"S")[:482] + b"\1" + bytes(29), no_header),
    ]:
        path = written(tmp_path / "t.tar", good, damage, member(b"z.png", b"z"), END)
        assert images_in(path) == {"t.tar/a.png": b"a", "t.tar/b.png": b"b", "t.tar": reason}
    path = written(
        tmp_path / "t.tar", good, header(b"huge.png", octets=b"\x80" + b"\xff" * 11), b"", END
    )
    assert images_in(path)["t.tar/huge.png"] == "it ends beyond the end of its tar"
    path = written(tmp_path / "t.tar", good, END, good, END)
    assert images_in(path)["t.tar"] == "more data after the end mark at byte 2048; it is not read"
    path = written(tmp_path / "t.tar", good, member(b"./a.png", b"A"), member(b"b.png", b"B"), END)
    assert images_in(path) == {
        "t.tar/a.png": b"a",
        "t.tar/b.png": b"b",
        "t.tar": "2 members have the name of an earlier one, which is taken; the first is 'a.png'",
    }


def test_a_broken_tar_among_good_ones(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"1.png": b"1"})
    (tmp_path / "b.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "c.tar").touch()
    (tmp_path / "d.tar").symlink_to("nowhere")
    os.mkfifo(tmp_path / "e.tar")
    (tmp_path / "f.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    shard(tmp_path / "g.tar", {"2.png": b"2"})
    shard(tmp_path / "h.tar", {"2.json": b"{}"})
    assert images_in(tmp_path) == {
        "a.tar/1.png": b"1",
        "b.tar": "damaged tar: no header at byte 0, so no member after it is read",
        "c.tar": "empty file (0 bytes)",
        "d.tar": "no such file",
        "e.tar": "a pipe, not a file",
        "f.tar": "a tar compressed with gzip, which cannot be read in parts",
        "g.tar/2.png": b"2",
    }


def test_a_tar_that_changes_after_it_was_listed(tmp_path: Path) -> None:
    path = shard(tmp_path / "t.tar", {"a.png": b"a" * 2000, "b.png": b"b" * 2000})
    found = list_images(path)
    os.truncate(path, 4000)
    assert found.read(0) == b"a" * 2000
    assert outcome(found, 1) == "the tar became shorter since it was listed"
    path.unlink()
    assert outcome(found, 0) == "no such file"


def test_a_process_out_of_handles_is_not_the_tars_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "t.tar", {"a.png": b"a"})
    found = list_images(path)

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    for action in (lambda: found.read(0), lambda: list_images(path)):
        with pytest.raises(OSError, match="Too many open files"):
            action()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_broken_is_a_row_or_a_sentence(
    tmp_path_factory: object, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    good = [
        *(member(b"a.png", b"a" * 600), pax(path=b"pax.png", size=b"3") + member(b"b.png", b"bbb")),
        member(b"L", b"long.png\0", b"L") + member(b"c.png", b"c" * 1500),
        *(member(b"d.png", kind=b"S"), member(b"e.json", b"{}"), member(b"f.png", b"f")),
    ]
    whole = bytearray(b"".join(good) + END)
    first = len(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers and what extends them, rather than data, which any byte may be.
        block = 512 * data.draw(st.integers(0, len(whole) // 512 - 1))
        place = block + data.draw(st.sampled_from([*range(20), *range(120, 160), 345, 482, 504]))
        whole[place] = data.draw(st.integers(0, 255))
        first = min(first, place)
    if data.draw(st.booleans()):  # with a checksum that is right, so that the damage is looked at
        start = first // 512 * 512
        block = whole[start : start + 512]
        block[148:156] = b" " * 8
        whole[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    path = written(folder / "t.tar", bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        got = images_in(path)
    except ValueError as error:
        refused = str(error)
        assert refused.startswith("no images: ")
        return
    assert all(isinstance(value, bytes) or (value and "0x" not in value) for value in got.values())
    assert all("/../" not in image_id for image_id in got)
    if first >= 1536 and path.stat().st_size >= 1112:
        assert got["t.tar/a.png"] == b"a" * 600


# --- which tars -----------------------------------------------------------------------------------


def test_patterns_braces_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("s-08", "s-09", "s-10", "sub/s-11", "train", "val"):
        shard(tmp_path / f"{name}.tar", {f"{os.path.basename(name)}.png": name.encode()})
    monkeypatch.chdir(tmp_path)

    def ids(source: str) -> list[str]:
        found = list_images(source)
        assert [found.read(i) for i in range(len(found))] == [
            i.split(".tar")[0].encode() for i in found.image_ids
        ]
        return [image_id.split("/")[-1] for image_id in found.image_ids]

    three = ["s-08.png", "s-09.png", "s-10.png"]
    assert ids("s-{08..10}.tar") == ids("s-*.tar") == ids("./s-*.tar") == three
    assert ids("./s-{10..08}.tar") == three[::-1]  # in the order that was asked for
    assert ids(f"{tmp_path}/s-{{8..9}}.tar".replace("s-", "s-0")) == ["s-08.png", "s-09.png"]
    assert ids("{train,val}.tar") == ["train.png", "val.png"]
    assert ids("**/*.tar") == ids(str(tmp_path)) == [
        *("s-08.png", "s-09.png", "s-10.png", "s-11.png", "train.png", "val.png")
    ]  # fmt: skip
    shutil.copy("train.tar", "{a,b}.tar")  # a file of that name comes first
    assert list_images("{a,b}.tar").image_ids == ["{a,b}.tar/train.png"]
    with pytest.raises(FileNotFoundError, match=r"'s-11\.tar' of .* does not exist, and 1 more"):
        list_images("s-{10..12}.tar")
    with pytest.raises(ValueError, match="expected at most 1000000 names"):
        list_images("s-{0..1000000}.tar")
    with pytest.raises(ValueError, match="expected at most 1000000 names"):
        list_images("s-{0..9999}-{0..9999}.tar")
    with pytest.raises(ValueError, match="names a tar more than once"):
        list_images("s-{10,10}.tar")


def test_tars_beside_other_images_are_a_question(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", {"1.png": b"1"})
    (tmp_path / "labels.csv").touch()
    (tmp_path / "index.parquet").touch()
    assert images_in(tmp_path) == {"a.tar/1.png": b"1"}
    (tmp_path / "1.png").write_bytes(b"file")
    with pytest.raises(
        ValueError, match=r"both tars \(1, as 'a\.tar'\) and other files .*\(1, as '1\.png'\)"
    ):
        list_images(tmp_path)
    assert images_in(f"{tmp_path}/*.tar") == {"a.tar/1.png": b"1"}
    assert list_images(f"{tmp_path}/*.png").image_ids == ["1.png"]


def test_compressed_tars_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    for source in (tmp_path / "a.tar.gz", tmp_path, f"{tmp_path}/*.tar.gz"):
        with pytest.raises(ValueError, match="compressed tars, in which no member can be read"):
            list_images(source)
    (tmp_path / "a.tar.gz").rename(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"no member that could be an image .*compressed with gzip"):
        list_images(tmp_path / "a.tar")


def test_a_part_is_small_and_reads_the_same(tmp_path: Path) -> None:
    for t in range(20):
        files = {f"{i:04d}.png": b"%d %d" % (t, i) for i in range(200)}
        path = shard(tmp_path / f"{t:02d}.tar", files)
        if t % 5 == 4:
            os.truncate(path, 200 * 1024 + 100 * (t % 2))  # no end mark
    found = list_images(tmp_path)
    assert len(found) == 20 * 200 + 4
    assert len(pickle.dumps(found)) < 60 * len(found)
    whole = [outcome(found, index) for index in range(len(found))]
    assert whole[1000] == "truncated tar: no end mark in its 204800 bytes"
    assert whole[2001] == "truncated tar: no end mark in its 204900 bytes"
    for first, last in [(0, 10), (990, 1010), (195, 2300), (4000, 4004), (7, 7), (0, len(found))]:
        part = pickle.loads(pickle.dumps(found.part(first, last)))
        assert isinstance(part, TarList)
        assert part.image_ids == found.image_ids[first:last]
        assert [outcome(part, index) for index in range(len(part))] == whole[first:last]
        assert [part.size(i) for i in range(len(part))] == [found.size(i) for i in range(first, last)]
        assert len(part.tars) <= (last - first) // 200 + 2
        inner = part.part(2, 5)
        assert [outcome(inner, index) for index in range(len(inner))] == whole[first:last][2:5]
    assert len(pickle.dumps(found.part(990, 1010))) < 3000
