"""The command line as people and scripts expect it: exit codes, help, JSON, silence, stops."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from linked_images import linked_images

from cxr_fast.cli import main
from cxr_fast.cli.endings import EXIT_CODES, sentence_of

pytest.importorskip("torch")

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
COMMAND = [sys.executable, "-m", "cxr_fast.cli"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def started(*arguments: object, **rest: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **rest,
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "archive"
    assert run("phantom", folder, "--images", 6, "--size", 128, "--threads", 1).exit_code == 0
    return folder


def all_commands(
    group: click.Group = main, words: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, command in group.commands.items():
        found.append(((*words, name), command))
        if isinstance(command, click.Group):
            found += all_commands(command, (*words, name))
    return found


def test_every_command_has_examples_that_parse() -> None:
    for words, command in all_commands():
        if words[0] == "figure" or words == ("bench", "compare"):
            continue  # theirs stand in the help of each figure
        assert command.examples, words
        told = run(*words, "--help").output
        for example in command.examples:
            assert example in told
            if example.startswith("cxr-fast ") and ">" not in example:
                name, *rest = shlex.split(example)[1:]
                parser = main.commands[name]
                context = click.Context(parser, **main.context_settings)
                parser.make_parser(context).parse_args(rest)


def test_commands_stand_under_headings_and_their_help_is_whole() -> None:
    told = run("--help").output
    assert "..." not in told.replace("CMD...", "").replace("[ARGS]...", "")
    listed = re.findall(r"^  ([a-z]+) {2,}\S", told, re.MULTILINE)
    assert sorted(listed) == sorted(main.commands)
    for words, _ in all_commands():
        help_of = run(*words, "--help").output
        for flag in ("--quiet", "--debug", "--help"):
            assert flag in help_of or words == ("bench", "compare"), (words, flag)


def test_the_table_of_exit_codes_is_the_page_s() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE))
    assert {int(code): text for code, text in rows.items()} == EXIT_CODES


def test_exit_codes(archive: Path, tmp_path: Path) -> None:
    images = archive / "images"
    assert run("env").exit_code == 0
    assert run("mine", tmp_path / "none", "--model", "demo", "--out", tmp_path / "run").exit_code == 1
    for wrong in (["mien"], ["mine", images], ["env", "--loud"], ["phantom", "x", "--seed", 2**40]):
        assert run(*wrong).exit_code == 2
    assert "Did you mean" in run("mien").output
    many = run("mine", images, "--model", "demo", "--out", tmp_path / "run", "--threads", 100000)
    assert "'--threads': 100000 is not in the range" in many.output
    huge = run("mine", images, "--model", "demo", "--out", tmp_path / "run", "--batch-size", 10**6)
    assert huge.exit_code == 1
    assert re.search(
        r"not enough memory: [\d.]+ GiB were asked for at once; lower --batch-size", huge.output
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.csv"), "a.csv: there is no such file"),
        (OSError(28, "No space left on device"), "the disk is full; make room"),
        (PermissionError(13, "Permission denied", "out"), "out: permission denied; choose another"),
        (IsADirectoryError(21, "Is a directory", "out"), "out: it is a folder, but a file is needed"),
        (OSError(28, "the disk is full: run needs more room"), "the disk is full: run needs more room"),
        (ValueError("steps must be 1"), "steps must be 1"),
        (ModuleNotFoundError("no", name="yaml"), "pip install 'cxr_fast[train]'"),
        (ModuleNotFoundError("no", name="matplotlib"), "pip install 'cxr_fast[figures]'"),
        (KeyError("x"), "something unexpected happened (KeyError"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("can't start new thread"), "lower --threads"),
    ],
)
def test_errors_are_sentences(error: Exception, said: str) -> None:
    assert said in sentence_of(error)
    assert "Errno" not in sentence_of(error)


def test_json_is_all_that_stdout_has(archive: Path, tmp_path: Path) -> None:
    images, out = archive / "images", tmp_path / "run"
    boxes = archive / "BBox_List_2017.csv"
    calls = [
        ["mine", images, "--model", "demo", "--out", out, "--json"],
        ["report", out, "--json"],
        ["convert", out, "--to", "coco", "--out", tmp_path / "boxes.json", "--json"],
        ["evaluate", out, "--truth", boxes, "--json"],
        ["phantom", tmp_path / "two", "--images", 2, "--size", 64, "--threads", 1, "--json"],
        ["export", "demo", "--form", "cam", "--out", tmp_path / "cam.onnx", "--json"],
        ["env", "--json"],
        ["card", "demo"],
    ]
    for call in calls:
        done = run(*call)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout), call
    assert json.loads(run("env", "--json").stdout)["cores"] == len(os.sched_getaffinity(0))


def test_quiet_leaves_the_result(archive: Path, tmp_path: Path) -> None:
    call = ["mine", archive / "images", "--model", "demo", "--out", tmp_path / "run"]
    done = run(*call, "--quiet")
    assert done.stderr == ""
    assert "6 images mined" in done.stdout
    assert "8 classes" in run(*call).stderr  # the note that --quiet left out
    missing = run("convert", tmp_path / "none", "--to", "coco", "--out", tmp_path / "x.json", "-q")
    assert "holds no mining run" in missing.stderr


def test_debug_shows_where_it_came_from(tmp_path: Path) -> None:
    call = ["convert", tmp_path, "--to", "coco", "--out", tmp_path / "x.json"]
    for flags in (["--debug", *call], [*call, "--debug"]):
        done = run(*flags)
        assert type(done.exception).__name__ == "RunFolderError"
    assert "Traceback" not in run(*call).output


def test_no_colours_and_no_bars_without_a_terminal(archive: Path, tmp_path: Path) -> None:
    with started("evaluate", tmp_path, "--truth", archive / "BBox_List_2017.csv") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "\x1b" not in out + err


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_errors_are_red_where_colours_are_wanted(environment: dict[str, str], tmp_path: Path) -> None:
    call = ["convert", str(tmp_path), "--to", "coco", "--out", str(tmp_path / "x.json")]
    unset = {"NO_COLOR": None, "TERM": "xterm"}
    done = CliRunner(env=unset | environment).invoke(main, call, color=True)
    assert ("\x1b[31m" in done.stderr) == (not environment)
    assert "Error:" in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    with started("--help") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    with open("/dev/full", "w") as nowhere:
        told = subprocess.run(
            [*COMMAND, "--help"], stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False
        )
    assert told.returncode == 1
    assert "the disk is full" in told.stderr
    assert "Traceback" not in told.stderr
    with open("/dev/full", "w") as nowhere:
        full = subprocess.run(
            [*COMMAND, "env"], stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False
        )
    assert full.returncode == 1
    assert "the disk is full" in full.stderr


def test_ctrl_c_ends_a_run_behind_its_shard_and_it_goes_on(archive: Path, tmp_path: Path) -> None:
    """SIGTERM likewise: tests/archive/test_restart.py."""
    images, out = linked_images(archive, tmp_path / "images", 600), tmp_path / "run"
    call = ["mine", images, "--model", "demo", "--out", out, "--shard-size", 16, "--threads", 1]
    with started(*call) as process:
        while len(list(out.glob("findings/*.parquet"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Ctrl-C: stopping behind the shard in hand" in err
    assert "stopped by Ctrl-C behind a whole shard; the same command goes on" in err
    assert "Traceback" not in err
    finished = len(list(out.glob("findings/*.parquet")))
    assert 2 <= finished < 38
    assert run(*call).exit_code == 0
    assert len(list(out.glob("findings/*.parquet"))) == 38


def test_a_second_ctrl_c_ends_at_once(archive: Path, tmp_path: Path) -> None:
    images, out = linked_images(archive, tmp_path / "images", 3000), tmp_path / "run"
    with started("mine", images, "--model", "demo", "--out", out, "--threads", 1) as process:
        while not (out / "run.json").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("stopping behind" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "ended at once by Ctrl-C" in err


def test_ctrl_c_says_how_other_commands_go_on(tmp_path: Path) -> None:
    call = ["phantom", tmp_path / "archive", "--images", 5000, "--threads", 2]
    with started(*call, start_new_session=True) as process:
        while not list(tmp_path.glob("archive/images/*.png")):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, workers included
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == "stopped by Ctrl-C; the same command goes on where it stopped"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert "_CXR_FAST_COMPLETE" in done.output


def test_words_are_completed(tmp_path: Path) -> None:
    def completed(*words: str) -> list[str]:
        environment = os.environ | {
            "_CXR_FAST_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["cxr-fast", *words]),
            "COMP_CWORD": str(len(words)),
        }
        script = "from cxr_fast.cli import main; main(prog_name='cxr-fast')"
        out = subprocess.run([sys.executable, "-c", script], env=environment, text=True,
                             capture_output=True, check=False, cwd=tmp_path).stdout  # fmt: skip
        return [line.partition(",")[2] for line in out.splitlines()]

    assert completed("mi") == ["mine"]
    assert "--min-probability" in completed("mine", "--min-p")
    assert completed("mine", "--classes", "l") == ["labels"]
    assert completed("mine", "--model", "de") == ["demo"]


def test_help_is_quick_since_it_loads_little() -> None:
    script = (
        "import sys; from cxr_fast.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pyarrow', 'PIL', 'onnx', 'scipy', 'matplotlib'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True)
    assert done.stderr.strip() == "set()"
