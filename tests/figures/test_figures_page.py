"""docs/figures.md: every command runs as it stands there, on fewer images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from judged_runs import texts_of

from cxr_fast.cli import main

pytest.importorskip("torch")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "figures.md").read_text()


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    (cxr-fast (?:.*\\\n)*.*)$", PAGE, re.M)
    assert len(commands) == 9
    for command in commands:
        few = command.replace("--images 120", "--images 12 --size 256").replace("\\\n", " ")
        result = CliRunner().invoke(main, shlex.split(few)[1:])
        assert result.exit_code == 0, (few, result.output)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code, {})
    written = {path.name for path in (tmp_path / "demo").iterdir() if path.is_file()}
    named = {Path(name).name for name in re.findall(r"--out (demo/\S+\.\w+)", PAGE)}
    assert written == named
    assert any("Synthetic" in text for text in texts_of(tmp_path / "demo" / "table.svg"))


def test_the_pictures_are_there_and_say_synthetic() -> None:
    for name in re.findall(r"\]\((figures/\S+)\)", PAGE):
        assert (DOCS / name).stat().st_size < 500_000
        if name.endswith(".svg"):
            assert any("Synthetic" in text for text in texts_of(DOCS / name))
