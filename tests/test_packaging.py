"""What is said of the package outside of it: versions, citation, what a wheel has in it."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

import cxr_fast

ROOT = Path(__file__).parents[1]
yaml = pytest.importorskip("yaml")


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert importlib.metadata.version("cxr_fast") == cxr_fast.__version__


def test_what_else_names_the_version_agrees() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == cxr_fast.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == cxr_fast.__version__


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    # What version 1.2.0 of the format demands.
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["title"] == project["name"]
    assert citation["license"] == project["license"]
    (paper,) = citation["references"]
    assert paper["title"] in re.sub(r"\s+", " ", (ROOT / "README.md").read_text().replace("*", ""))
    assert [author["family-names"] for author in paper["authors"]][::5] == ["Cai", "Yang"]


def test_every_extra_is_of_packages_that_are_named_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, wanted in project["optional-dependencies"].items():
        bare = [re.split(r"[<>=;\[ ]", one)[0] for one in wanted if not one.startswith("cxr_fast")]
        assert len(bare) == len(set(bare)), name


def test_the_source_archive_has_what_a_build_and_a_lawyer_need(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core")
    build = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (made,) = tmp_path.iterdir()
    assert made.name == f"cxr_fast-{cxr_fast.__version__}.tar.gz"
    with tarfile.open(made) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        told = archive.extractfile(f"cxr_fast-{cxr_fast.__version__}/PKG-INFO")
        assert told is not None
        information = told.read().decode()
    wanted = {"LICENSE", "CITATION.cff", "CHANGELOG.md", "CMakeLists.txt", "cxr_fast/py.typed"}
    assert wanted <= names, wanted - names
    assert f"Version: {cxr_fast.__version__}\n" in information
    assert "License-File: LICENSE\n" in information
    assert not [name for name in names if name.startswith(("benchmarks/results/", ".ci", ".venv"))]
