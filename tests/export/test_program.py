"""Models as torch.export programs: saved, loaded, run, against the miner."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import ALL_MAPS, card_of, network
from test_onnx_models import REGIONS, mine, pictures

from cxr_fast.config import MiningSettings
from cxr_fast.export.command import describe, export_model
from cxr_fast.export.metadata import KEY, from_properties
from cxr_fast.export.program import program_file
from cxr_fast.models import Architecture, normalise, save_checkpoint
from cxr_fast.models.msa import build

CASES = [
    (Architecture("resnet18", "bilinear", 0.25, 1), MiningSettings()),
    (Architecture("resnet18", "deconv", 0.25, 3), MiningSettings(select="peak", upsample=2)),
    (Architecture("resnet18", "none", 0.25, 1, bilateral=True, pooling="lse", depth=3), REGIONS),
]


@pytest.mark.parametrize(("architecture", "mining"), CASES, ids=["bilinear", "deconv", "bilateral"])
def test_a_program_gives_what_the_miner_gives(
    architecture: Architecture, mining: MiningSettings
) -> None:
    card = card_of(architecture, 72, mining=mining)
    model = network(card)
    files = {
        form: program_file(model, describe(model, card, form, wanted=ALL_MAPS))
        for form in ("cam", "end2end")
    }
    extra = {KEY: ""}
    programs = {
        form: torch.export.load(io.BytesIO(content), extra_files=extra).module()
        for form, content in files.items()
    }
    assert from_properties(extra).mining == mining
    for count in (1, 3):
        pixels, sizes = pictures(count, 72), np.full((count, 2), 500)
        mined, cam, logits = mine(model, card, pixels, sizes)
        image = normalise(pixels[:, None], card)
        maps = programs["cam"](image=image)
        assert list(maps) == ["logits", "cam"]
        torch.testing.assert_close(maps["cam"], cam)
        whole = programs["end2end"](image=image, image_size=torch.from_numpy(sizes))
        assert list(whole) == ["logits", "boxes", "scores", "counts", "heatmap", "erased_at"]
        torch.testing.assert_close(whole["logits"], logits)
        assert torch.equal(whole["boxes"], mined.result.found.boxes)
        assert torch.equal(whole["erased_at"], mined.result.mined.erased_at.int())


def test_another_process_loads_it(tmp_path: Path) -> None:
    card = card_of(CASES[0][0])
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model", build(card), card)
    export_model(tmp_path / "model", tmp_path / "model.pt2", "pt2")
    code = (
        "import sys, json, torch, cxr_fast.ops\n"
        "program = torch.export.load(sys.argv[1]).module()\n"
        "image = torch.ones(1, 1, 64, 64)\n"
        "out = program(image=image, image_size=torch.tensor([[64, 64]]))\n"
        "print(json.dumps({name: list(value.shape) for name, value in out.items()}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.pt2")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {
        "logits": [1, 3],
        "boxes": [1, 3, 3, 4],
        "scores": [1, 3, 3],
        "counts": [1, 3],
    }
