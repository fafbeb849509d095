"""Images on a web server, and on S3 where moto can play it. Oracle: the same files, here."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from places import FILES, contents, grow_images, outcome, shard

from cxr_fast.archive.images import list_images
from cxr_fast.archive.sources.remote import store_of

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return grow_images(tmp_path / "images")


# --- a web server ---------------------------------------------------------------------------------


class Web(BaseHTTPRequestHandler):
    """Serves a folder, ranges too, after ``failures`` answers with other statuses."""

    root: Path
    ranges = True
    failures: list[int]
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        path = self.root / self.path.partition("?")[0].lstrip("/").replace("%20", " ")
        status = self.failures.pop(0) if self.failures else 200 if path.is_file() else 404
        if status == 0:  # hang up
            self.close_connection = True
            self.connection.close()
            return
        body = path.read_bytes() if status == 200 else b"sorry"
        asked = self.headers.get("Range")
        if status == 200 and asked and self.ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            status, body = 206, body[int(first) : int(last) + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes" if self.ranges else "none")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(folder: Path) -> Iterator[tuple[str, type[Web]]]:
    handler = type("Handler", (Web,), {"root": folder, "failures": [], "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_named_files_of_a_web_server(web: tuple[str, type[Web]], folder: Path) -> None:
    url, handler = web
    assert contents(list_images(f"{url}/b/c%20d.png")) == {"c%20d.png": FILES["b/c d.png"]}
    assert contents(list_images(f"{url}/a.png?token=1")) == {"a.png?token=1": FILES["a.png"]}
    (folder / "list.csv").write_text("path\na.png\nb/c d.png\nnone.png\nb/x/../../no_suffix\n")
    found = list_images(f"{url}/list.csv?token=1")
    expected = {"a.png": FILES["a.png"], "b/c d.png": FILES["b/c d.png"], "none.png": "no such file"}
    assert contents(found) == expected | {"no_suffix": FILES["no_suffix"]}
    for name, files in (("s-0.tar", {"1.png": b"1" * 5000}), ("s-1.tar", {"2.png": b"2"})):
        shard(folder / name, files)
    for source in (f"{url}/s-0.tar", f"{url}/s-0.tar?token=1"):
        handler.requests.clear()
        found = list_images(source)
        assert contents(found) == {"s-0.tar/1.png": b"1" * 5000}
    assert contents(list_images(f"{url}/s-{{0..1}}.tar"))["s-1.tar/2.png"] == b"2"
    for source in (f"{url}/b/", f"{url}/*.png"):
        with pytest.raises(ValueError, match="a web server knows no folders"):
            list_images(source)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_images(f"{url}/none.png")
    handler.ranges = False
    found = list_images(f"{url}/a.png")
    assert found.read(0) == FILES["a.png"]
    with pytest.raises(OSError, match="does not answer requests for a part"):
        list_images(f"{url}/s-0.tar")


@pytest.mark.parametrize("failure", [0, 500, 503, 429, 408])
def test_a_web_server_that_fails(web: tuple[str, type[Web]], failure: int) -> None:
    url, handler = web
    handler.failures += [failure] * 3
    found = list_images(f"{url}/a.png")
    handler.failures += [failure] * 3
    assert found.read(0) == FILES["a.png"]
    handler.failures += [failure] * 99
    for action in (lambda: found.read(0), lambda: list_images(f"{url}/a.png")):
        with pytest.raises(OSError, match="did not answer in 5 tries"):
            action()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "no such file"),
        (410, "no such file"),
        (401, "no permission to read it"),
        (403, "no permission to read it"),
    ],
)
def test_a_web_server_that_refuses(web: tuple[str, type[Web]], status: int, reason: str) -> None:
    url, handler = web
    found = list_images(f"{url}/a.png")
    handler.failures += [status] * 2  # its length is asked for in two ways
    assert outcome(found, 0) == reason


def test_a_server_that_is_not_there(web: tuple[str, type[Web]]) -> None:
    url, _ = web
    found = list_images(f"{url}/a.png")
    dead = url.rsplit(":", 1)[0] + ":9"
    with pytest.raises(OSError, match="did not answer in 5 tries"):
        list_images(f"{dead}/a.png")
    store, path = store_of(f"{dead}/a.png")
    with pytest.raises(OSError, match="did not answer in 5 tries"):
        store.read(path)
    assert found.read(0) == FILES["a.png"]


# --- s3, where moto can play it -------------------------------------------------------------------


@pytest.fixture
def bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    server_of = pytest.importorskip("moto.server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = server_of.ThreadedMotoServer(port=0)
    server.start()
    port = server.get_host_and_port()[1]
    options = f"?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"
    s3 = pafs.S3FileSystem(
        region="us-east-1",
        scheme="http",
        endpoint_override=f"127.0.0.1:{port}",
        allow_bucket_creation=True,
    )
    s3.create_dir("archive")
    pafs.copy_files(
        str(folder),
        "archive/images",
        source_filesystem=pafs.LocalFileSystem(),
        destination_filesystem=s3,
    )
    yield lambda path: f"s3://archive/{path}{options}"
    server.stop()


def test_s3(bucket: Callable[[str], str], folder: Path) -> None:
    found = list_images(bucket("images"))
    assert contents(found) == FILES
    assert [found.size(i) for i in range(4)] == [len(FILES[i]) for i in found.image_ids]
    assert contents(pickle.loads(pickle.dumps(found))) == FILES
    assert list_images(bucket("images/b/**/*.png")).image_ids == ["c d.png", "deep/er/\u00e9%20.png"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_images(bucket("none"))


def test_tars_and_manifests_on_s3(bucket: Callable[[str], str], tmp_path: Path) -> None:
    shard(tmp_path / "s.tar", {f"{i}.png": b"%d" % i * 700 for i in range(300)})
    options = bucket("x").partition("?")[2]
    rows = [f"s3://archive/images/a.png?{options}", "images/b/c d.png", "images/none.png"]
    (tmp_path / "list.csv").write_text("\n".join(["uri", *rows]))
    s3, _ = pafs.FileSystem.from_uri(bucket(""))
    for name in ("s.tar", "list.csv"):
        pafs.copy_files(str(tmp_path / name), f"archive/{name}", destination_filesystem=s3)
    assert contents(list_images(bucket("s.tar"))) == contents(list_images(tmp_path / "s.tar"))
    expected = [FILES["a.png"], FILES["b/c d.png"], "no such file"]
    assert contents(list_images(bucket("list.csv"))) == dict(zip(rows, expected, strict=True))
