"""What other projects import: names, arguments and defaults are promises."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import pytest

from cxr_fast import runtime
from cxr_fast.config import MiningSettings

pytest.importorskip("torch")
ops = pytest.importorskip("cxr_fast.ops")
reference = pytest.importorskip("cxr_fast.reference")

RESULTS = {
    "MinedAttention": ("erased_at", "extent"),
    "HeatmapBoxes": ("boxes", "scores", "counts"),
    "MiningResult": ("logits", "cam", "mined", "heatmap", "found"),
}
REQUIRED = inspect.Parameter.empty
CHOSEN = MiningSettings()
BOXES: dict[str, Any] = {
    "image_size": (1024, 1024),
    "thresholds": CHOSEN.thresholds,
    "select": CHOSEN.select,
    "max_boxes": 3,
    "max_overlap": 0.5,
    "upsample": CHOSEN.upsample,
}
MINING: dict[str, Any] = {"steps": 3, "threshold": 0.5, "connectivity": 8}
FUNCTIONS: dict[str, dict[str, Any]] = {
    "cam": {"features": REQUIRED, "weight": REQUIRED},
    "mine_attention": {"cam": REQUIRED, **MINING, "erased_at": None, "first_step": 1},
    "masked_gap": {"cam": REQUIRED, "erased_at": REQUIRED, "steps": 3},
    "aggregate_heatmap": {"cam": REQUIRED, "mined": REQUIRED, "mode": "normalized"},
    "heatmap_boxes": {"heatmap": REQUIRED, **BOXES, "connectivity": 8},
    "label_components": {"mask": REQUIRED, "connectivity": 8},
    "mine_cam": {"cam": REQUIRED, "bias": None, **MINING, "mode": CHOSEN.mode, **BOXES},
    "attention_mining": {
        "features": REQUIRED,
        "weight": REQUIRED,
        "bias": None,
        **MINING,
        "mode": CHOSEN.mode,
        **BOXES,
    },
}
SHAPE = re.compile(r"\[(N|T|C|\.\.\.)(, \w+)+\]")


def functions_of(module: ModuleType) -> set[str]:
    """Public functions that the module defines or exports."""
    exported = getattr(module, "__all__", dir(module))
    return {
        name
        for name in exported
        if inspect.isfunction(getattr(module, name))
        and not name.startswith("_")
        and getattr(module, name).__module__.startswith("cxr_fast.")
    }


def test_names_of_ops() -> None:
    assert set(ops.__all__) == {"CPU_KERNELS", "CUDA_KERNELS", *RESULTS, *FUNCTIONS}
    assert len(ops.__all__) == len(set(ops.__all__))
    assert isinstance(ops.CPU_KERNELS, str)
    assert isinstance(ops.CUDA_KERNELS, dict)


def test_every_module_has_the_same_functions() -> None:
    assert functions_of(ops) == set(FUNCTIONS)
    assert functions_of(runtime) == {*FUNCTIONS, "instruction_set", "mine_regions"}
    assert functions_of(reference) == {*FUNCTIONS, "upsample_bilinear"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures(name: str) -> None:
    expected = FUNCTIONS[name]
    for module, more in ((ops, {}), (runtime, {"threads": 0})):
        parameters = inspect.signature(getattr(module, name)).parameters
        assert list(parameters) == [*expected, *more], module.__name__
        assert {key: p.default for key, p in parameters.items()} == {**expected, **more}
        kinds = {p.kind for p in parameters.values()}
        assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_named_tuples(name: str) -> None:
    for module in (ops, runtime):
        result = getattr(module, name)
        assert issubclass(result, tuple)
        assert result._fields == RESULTS[name]
        assert result.__doc__
        assert not result.__doc__.startswith(f"{name}("), "typing's own docstring"


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("module", [ops, runtime], ids=["ops", "runtime"])
def test_docstrings_give_shapes(module: ModuleType, name: str) -> None:
    text = inspect.getdoc(getattr(module, name)) or ""
    assert SHAPE.search(text), f"{module.__name__}.{name} says no shape"


def test_docstrings_of_ops_give_results_errors_and_sources() -> None:
    for name in FUNCTIONS:
        text = inspect.getdoc(getattr(ops, name)) or ""
        if name == "mine_cam":
            assert "attention_mining" in text
            continue
        for part in ("Args:", "Returns:", "Raises:"):
            assert part in text, f"{name} has no {part}"
        for argument in FUNCTIONS[name]:
            assert f"{argument}:" in text, f"{name} says nothing of {argument}"
