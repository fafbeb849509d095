"""A newcomer's path: the commands of README, "five minutes" and "operators", in a clean clone.

The environment is the one that the first of them, ``make demo``, makes. What stands in capitals is the
reader's; here it is what the commands before have drawn.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown_pages import ROOT, blocks

# What stands in capitals, and tables of the release, made of what "five minutes" has left in the clone.
YOURS = """\
ln -s archive ARCHIVE
ln -s archive/images IMAGES
cp cxr_fast/models/demo.safetensors MODEL
cp archive/BBox_List_2017.csv archive/Data_Entry_2017.csv .
"""
# The whole suite, which `.ci/run` runs in a fresh environment.
LEFT_OUT = "make test"


def script(page: Path) -> str:
    """The page's commands as they stand, and its Python as the reader would paste it."""
    lines = []
    for block in blocks(page):
        if block.language == "sh":
            kept = [line for line in block.text.splitlines() if not line.startswith(LEFT_OUT)]
            lines.append("\n".join(kept))
        elif block.language == "python":
            lines.append(f"python - <<'THE_END'\n{block.text}THE_END")
    return "\n".join(lines) + "\n"


def test_the_script_is_the_page() -> None:
    text = script(ROOT / "README.md")
    assert "make demo" in text
    assert "cxr-fast mine IMAGES --model MODEL --out RUN --overlays 20\n" in text
    assert "ops.attention_mining(" in text
    assert LEFT_OUT not in text


@pytest.mark.slow
def test_a_newcomer(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("a clean clone needs git and a checkout")
    clone = tmp_path / "cxr_fast"
    subprocess.run([git, "clone", "--quiet", ROOT, clone], check=True)
    pages = ("docs/five-minutes.md", "README.md", "docs/operators.md")
    first, *others = (script(clone / page) for page in pages)
    # Nothing of the environment that runs this test is seen in it.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "MAKE", "COV_"))
    }
    done = subprocess.run(
        ["bash", "-exuo", "pipefail"],
        input="\n".join([first, YOURS, *others]),
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    for made in ("demo/run/findings", "run/findings", "boxes.json", "RUN/overlays", "cams.png"):
        assert (clone / made).exists(), made
    assert (clone / "runs/base/best.safetensors").exists()
    assert "before loss" in done.stdout
    assert done.stdout.count("the same components") == 2
    assert "torch.Size([8, 14, 3])" in done.stdout
