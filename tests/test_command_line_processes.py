"""The command line as a shell meets it: processes, signals to all of them, full disks, a real bash."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from linked_images import linked_images

from cxr_fast.cli import main
from cxr_fast.phantom import PhantomSettings, write_archive

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
from others import ResNet, settled  # noqa: E402

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "cxr_fast.cli"]
BIN = Path(sys.executable).parent
TINY = [
    "--backbone", "resnet18", "--width", "0.125", "--in-channels", "1", "--input-size", "64",
    "--batch-size", "8", "--threads", "1", "--precision", "float32",
]  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def called(*arguments: object, **rest: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        **{"stderr": subprocess.PIPE, "text": True, "timeout": 120, "check": False, **rest},
    )


def left_of(session: int) -> list[str]:
    """Command lines of what still runs of a session; what has ended and is not waited for has none."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            told = stat.read_text().rpartition(")")[2].split()
            line = (stat.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(told[3]) == session and line:
            left.append(line.replace(b"\0", b" ").decode())
    return left


def stopped(
    number: signal.Signals, begun: Callable[[], bool], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that a terminal's Ctrl-C reaches: all its processes."""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while not begun():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert not left_of(process.pid)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "archive"
    assert run("phantom", folder, "--images", 24, "--size", 64, "--threads", 1).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def mined(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert run("mine", archive / "images", "--model", "demo", "--out", out).exit_code == 0
    return out


def test_a_stopped_training_says_how_it_goes_on_and_does(tmp_path: Path) -> None:
    archive, out = tmp_path / "archive", tmp_path / "base"
    write_archive(archive, PhantomSettings(images=96, size=64, seed=4))
    call = ["train", archive, "--out", out, *TINY, "--epochs", 6]
    code, told, err = stopped(signal.SIGINT, (out / "metrics.csv").exists, *call, "--quiet")
    assert code == 130
    assert told == ""
    assert err == "stopped by Ctrl-C; the same command goes on from the last state on the disk\n"
    done = called(*call, "--json", stdout=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"epoch", "loss", "auroc", "best", "last"} == set(document)
    assert document["epoch"] == 6
    assert Path(document["best"]).is_file()
    with open(out / "metrics.csv", newline="") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


def test_of_several_processes_one_prints_the_json(tmp_path: Path) -> None:
    archive, out = tmp_path / "archive", tmp_path / "base"
    write_archive(archive, PhantomSettings(images=48, size=64, seed=4))
    spread = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cxr_fast.cli"]
    call = ["train", archive, "--out", out, *TINY, "--epochs", 1, "--json"]
    done = subprocess.run(
        [sys.executable, *spread, *map(str, call)], text=True, capture_output=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] == 1


def test_json_of_a_stopped_run_is_whole(archive: Path, tmp_path: Path) -> None:
    images, out = linked_images(archive, tmp_path / "images", 2000), tmp_path / "run"
    code, told, _ = stopped(
        signal.SIGINT,
        lambda: bool(list(out.glob("findings/*.parquet"))),
        "mine", images, "--model", "demo", "--out", out, "--shard-size", 16, "--threads", 1, "--json",
    )  # fmt: skip
    assert code == 130
    report = json.loads(told)
    assert report["stopped"] is True
    assert 0 < report["images"] < report["total"] == 2000


def test_json_of_models(tmp_path: Path) -> None:
    torch.manual_seed(5)
    weights = tmp_path / "theirs.pth"
    torch.save(settled(ResNet((2, 2, 2, 2), False)).state_dict(), weights)
    for call in (
        ["export", "demo", "--form", "cam", "--out", tmp_path / "cam.onnx"],
        ["adopt", weights, "--from", "torchvision", "--classes", "A,B,C,D", "--size", 64,
         "--out", tmp_path / "adopted.safetensors"],
    ):  # fmt: skip
        done = called(*call, "--json", stdout=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["class_names"]


def test_a_full_disk_behind_stdout_is_a_sentence(archive: Path, mined: Path) -> None:
    boxes = archive / "BBox_List_2017.csv"
    for call in (
        ["completion", "bash"],
        ["evaluate", mined, "--truth", boxes],
        ["evaluate", mined, "--truth", boxes, "--json"],
    ):
        with open("/dev/full", "w") as full:
            done = called(*call, stdout=full)
        assert done.returncode == 1, call
        assert "Error: the disk is full" in done.stderr, (call, done.stderr)
        assert "Traceback" not in done.stderr, call
        assert "Exception ignored" not in done.stderr, call


def test_a_reader_that_leaves_in_the_middle_is_no_error(archive: Path, mined: Path) -> None:
    boxes = archive / "BBox_List_2017.csv"
    for call in (["evaluate", mined, "--truth", boxes], ["completion", "bash"]):
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as closed:
            done = called(*call, stdout=closed)
        assert done.stderr == "", call


@pytest.mark.parametrize(
    "call",
    [
        "mine {folder} --model {folder} --out {out}",
        "mine {file} --model demo --out {file}",
        "report {file}",
        "convert {file} --to coco --out {out}",
        "convert {run} --to coco --out {folder}",
        "evaluate {run} --truth {folder}",
        "evaluate {run} --truth {boxes} --labels {folder}",
        "evaluate {run} --truth {boxes} --out {folder}/",
        "evaluate {file} --truth {boxes}",
        "train {file} --out {out}",
        "train {archive} --out {file}",
        "train {archive} --out {out} --config {folder}",
        "train {archive} --out {out} --stage msa --start {folder}",
        "adopt {folder} --out {out}.onnx --classes A,B",
        "card {folder}",
        "card {file}",
        "card demo --note x --out {folder}",
        "export {folder} --out {out}.onnx",
        "export demo --out {folder}",
        "reproduce table1 --data {file} --out {out}",
        "reproduce table1 --data {archive} --out {file}",
        "phantom {file} --images 1 --size 64",
        "bench compare {folder} {file}",
        "figure curves {file} --truth {boxes} --out {out}.png",
    ],
)
def test_a_folder_for_a_file_and_a_file_for_a_folder(
    call: str, archive: Path, mined: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("not what was asked for")
    folder.mkdir()
    names = {
        "file": file, "folder": folder, "out": tmp_path / "out", "run": mined, "archive": archive,
        "boxes": archive / "BBox_List_2017.csv",
    }  # fmt: skip
    done = run(*(word.format(**names) for word in call.split()))
    assert done.exit_code in (1, 2), done.output
    said = done.stderr
    assert "Error: " in said
    assert not re.search(r"Traceback|Errno|fault of cxr-fast|<built-in|<class", said), said
    assert file.read_text() == "not what was asked for"
    assert not list(folder.iterdir())


def in_bash(lines: str, cwd: Path) -> str:
    environment = os.environ | {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])}
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", lines],
        env=environment, cwd=cwd, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not (shutil.which("bash") and (BIN / "cxr-fast").exists()), reason="no bash here")
def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    asked = {
        "ph": ["phantom"],
        "mine --classes l": ["labels"],
        "mine x --heat": ["--heatmaps"],
        "completion f": ["fish"],
        "figure cu": ["curves"],
    }
    lines = ['eval "$(cxr-fast completion bash)"', "complete -p cxr-fast"]
    for typed in asked:
        lines += [
            f"COMP_WORDS=(cxr-fast {typed})",
            "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))",
            "COMPREPLY=()",
            "_cxr_fast_completion cxr-fast",
            'echo "${COMPREPLY[@]}"',
        ]
    told = in_bash("\n".join(lines), tmp_path).splitlines()
    assert re.search(r"-F _cxr_fast_completion cxr-fast", told[0])
    assert [line.split() for line in told[1:]] == list(asked.values())


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    script = tmp_path / "script"
    script.write_text(run("completion", shell).stdout)
    assert subprocess.run([shell, "-n", script], check=False).returncode == 0


def test_the_page_names_every_variable_that_is_read() -> None:
    sources = [*ROOT.glob("cxr_fast/**/*.py"), *ROOT.glob("csrc/**/*.[ch]pp")]
    reads = r"(?:environ(?:\.get)?[\[(]|getenv\()\"(CXR_FAST_\w+)\""
    read = {name for source in sources for name in re.findall(reads, source.read_text())}
    assert len(read) >= 3
    page = (ROOT / "docs" / "command-line.md").read_text()
    assert read == set(re.findall(r"`(CXR_FAST_\w+)", page))
