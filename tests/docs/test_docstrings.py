"""Every public docstring says what docstring_rules.py asks of it, and the rules cannot be met by a
stub.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
from docstring_rules import DOCS, Public, documented, faults, raised

from cxr_fast import ops

PUBLIC = documented()


@pytest.mark.parametrize("one", PUBLIC, ids=[one.name for one in PUBLIC])
def test_a_docstring(one: Public) -> None:
    assert not faults(one), f"{one.name} {'; '.join(faults(one))}"


def test_the_api_pages_name_what_other_pages_and_tests_call_public() -> None:
    names = {one.name for one in PUBLIC}
    assert len(PUBLIC) > 200
    for module in ("ops", "runtime", "reference"):
        for name in ("cam", "mine_attention", "masked_gap", "aggregate_heatmap", "heatmap_boxes",
                     "label_components", "mine_cam", "attention_mining"):  # fmt: skip
            assert f"cxr_fast.{module}.{name}" in names
    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    text = "\n".join(page.read_text() for page in pages)
    imported = re.findall(r"^from (cxr_fast[\w.]*) import (.+)$", text, re.MULTILINE)
    assert len(imported) > 5
    own = {name.rpartition(".")[0] for name in names} | {"cxr_fast"}
    for module, members in imported:
        for member in members.split(", "):
            full = f"{module}.{member}"
            assert full in names or full in own, f"{full} is imported by a page, but on no API page"


def test_docstrings_are_not_copies() -> None:
    """Of functions; a method may stand in several networks that take each other's place."""
    functions = {one.thing: one.words for one in PUBLIC if one.name.count(".") == 2}
    texts = Counter(functions.values())
    assert [text for text, count in texts.items() if count > 1] == []


def _refuse(value: float) -> None:
    if value < 0:
        raise ValueError("negative")


def blend(maps: NDArray[np.float32], image_size: tuple[int, int], share: float) -> NDArray[np.float32]:
    """Replaced in each case."""
    _refuse(share)
    if not image_size:
        raise TypeError("no size")
    return maps


WHOLE = """Blend maps [N, H, W] of an image.

Args:
    maps: [N, H, W] float32.
    image_size: height and width in pixels.
    share: of the new.

Returns:
    [N, H, W] float32.

Raises:
    TypeError, ValueError: bad input.

Source: Somebody et al. 2018, Eq. 3.
"""


def judged(text: str) -> list[str]:
    blend.__doc__ = text
    return faults(Public("cxr_fast.ops.blend", blend))


def test_a_whole_docstring_passes() -> None:
    assert judged(WHOLE) == []
    assert raised(blend) == {TypeError, ValueError}


@pytest.mark.parametrize(
    ("without", "fault"),
    [
        ("maps: [N, H, W] float32.", "no shape of maps"),
        ("    [N, H, W] float32.\n\nRaises", "no shape of what it returns"),
        ("in pixels", "no unit of image_size"),
        ("TypeError, ", "raises TypeError"),
        ("ValueError", "raises ValueError"),
        ("Source: Somebody et al. 2018, Eq. 3.", "names no equation"),
    ],
)
def test_each_part_is_missed(without: str, fault: str) -> None:
    kept = "Raises" if without.endswith("Raises") else ""
    text = WHOLE.replace("Blend maps [N, H, W]", "Blend").replace(without, kept)
    assert [one for one in judged(text) if fault in one]


@pytest.mark.parametrize(
    "stub",
    [
        "",
        "TODO: document this function properly.",
        "Takes maps and gives maps in [0, 1]. Raises an error. Source: none.",
        "maps, image_size, share. Shapes: see the code. Raises errors.",
        "As ``blend``, with the same shapes and errors as ``blend``.",
    ],
)
def test_a_stub_does_not_pass(stub: str) -> None:
    assert len(judged(stub)) >= (1 if not stub else 3)


def test_a_reference_answers_only_for_what_is_there() -> None:
    """``cxr_fast.ops.cam`` has neither maps nor image_size, but says what it raises and where from."""
    found = judged("Arguments, errors and source as ``cxr_fast.ops.cam``, in other words.")
    assert found == ["gives no shape of maps", "gives no unit of image_size"]
    assert not faults(Public("cxr_fast.ops.cam", ops.cam))


def test_own_raises_are_seen_through_helpers_and_checks() -> None:
    kinds: dict[str, Any] = {one.name: one.thing for one in PUBLIC}
    assert raised(kinds["cxr_fast.ops.cam"]) == {TypeError, ValueError}
    assert raised(kinds["cxr_fast.losses.knowledge_preservation"]) == {ValueError}
