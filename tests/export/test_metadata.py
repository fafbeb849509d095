"""The contract of an exported file: written, read back, refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from cxr_fast.config import MiningSettings
from cxr_fast.export import ExportMetadata, InputContract
from cxr_fast.export.metadata import KEY, from_properties, to_json

INPUT = InputContract(raw=False, channels=3, size=512, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
WHOLE = ExportMetadata(
    form="end2end",
    precision="float16",
    class_names=("Mass", "Pleural_Thickening"),
    input=INPUT,
    mining=MiningSettings(steps=2, thresholds=(0.4, 180 / 255), select="peak"),
    outputs=("logits", "boxes", "scores", "counts", "heatmap"),
    pooling="lse",
    sharpness=5.5,
    model_sha256="ab" * 32,
    provenance="a test",
)


def test_what_is_written_is_read_back() -> None:
    for metadata in (
        WHOLE,
        replace(WHOLE, form="cam", outputs=("logits", "cam"), input=replace(INPUT, size=None)),
        replace(WHOLE, input=InputContract(True, 1, 224, (0.0,), (1.0,), standardise=True)),
    ):
        assert from_properties({KEY: to_json(metadata), "other": "text"}) == metadata


def test_keys_of_later_versions_are_passed_over() -> None:
    values = json.loads(to_json(WHOLE))
    values["later"] = values["input"]["later"] = values["mining"]["later"] = 1
    assert from_properties({KEY: json.dumps(values)}) == WHOLE


def changed(path: str, value: Any) -> dict[str, str]:
    values = json.loads(to_json(WHOLE))
    *folders, name = path.split(".")
    inside = values
    for folder in folders:
        inside = inside[folder]
    if value is None:
        del inside[name]
    else:
        inside[name] = value
    return {KEY: json.dumps(values)}


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({}, "has no metadata"),
        ({"author": "x", "b": ""}, "has author, b: cxr-fast export did not write it"),
        ({KEY: "{"}, "must be JSON"),
        ({KEY: "[" * 100_000}, "must be JSON"),
        ({KEY: "[]"}, "version 1 to 1, but say None"),
        (changed("format", "cxr_fast.classifier"), "say 'cxr_fast.classifier'"),
        (changed("version", 2), "upgrade cxr_fast"),
        (changed("version", 0), "version 1 to 1"),
        (changed("form", None), "must have the entry 'form'"),
        (changed("form", "boxes"), "form of an exported file must be 'cam' or 'end2end'"),
        (changed("precision", "int8"), "precision of an exported file must be"),
        (changed("class_names", []), "one or more different names"),
        (changed("class_names", ["a", "a"]), "one or more different names"),
        (changed("class_names", "Mass"), "one or more different names"),
        (changed("outputs", ["labels"]), "outputs of an exported file must be"),
        (changed("pooling", "max"), "'gap' or 'lse'"),
        (changed("sharpness", "4"), "a number above 0"),
        (changed("input", 512), "input of an exported file must be a JSON object"),
        (changed("input.channels", 2), "channels of input must be 1 or 3"),
        (changed("input.size", 0), "size of input must be"),
        (changed("input.mean", [0.1, 0.2]), "mean of input must be"),
        (changed("input.std", [0.1]), "std of input must be as many"),
        (changed("input.std", [0.1, 0.0, 0.1]), "std of input must be"),
        (changed("input.mean", None), "must have the entry 'mean'"),
        (changed("mining", "default"), "mining of an exported file must be a JSON object"),
        (changed("mining.steps", 0), "steps must be from 1 to 255"),
        (changed("mining.select", "all"), "select must be"),
        (changed("mining.thresholds", [2]), "thresholds must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_in_a_sentence(properties: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        from_properties(properties)


def test_reading_it_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, cxr_fast.export.metadata; "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
