"""The programs of docs/examples do what the page says: run as they are, and held to other ways."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
ndimage = pytest.importorskip("scipy.ndimage")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_test_of_each() -> None:
    text = Path(__file__).read_text()
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"cam_viewer", "components", "erasing_loop"}
    assert all(f'example("{name}")' in text for name in names)


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, 2), torch.nn.ReLU())
        self.fc = torch.nn.Linear(6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images).mean((2, 3)))


def test_the_viewer_takes_any_classifier() -> None:
    """The mean of a CAM and the bias are the logit, and one of another weight is another CAM."""
    torch.manual_seed(2)
    model = Classifier()
    images = torch.rand(4, 3, 31, 27)
    logits, cams = example("cam_viewer").class_activation_maps(model, images, "body", "fc")
    assert cams.shape == (4, 5, 15, 13)
    torch.testing.assert_close(cams.mean((2, 3)) + model.fc.bias, model(images))
    torch.testing.assert_close(logits, model(images))
    assert not model.body._forward_hooks


def test_the_viewer_draws_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("cam_viewer")
    path = tmp_path / "cams.png"
    module.main(["--out", str(path)])
    assert "[4, 8, 16, 16]" in capsys.readouterr().out
    with Image.open(path) as sheet:
        assert sheet.size == (9 * module.CELL, 4 * (module.CELL + module.MARGIN))
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    # Only maps have colour: the first column, the images, is grey.
    colour = np.abs(pixels[..., 0] - pixels[..., 2]) > 40
    assert not colour[:, : module.CELL].any()
    assert colour[:, module.CELL :].mean() > 0.005
    # The one scale: what the first image lacks stays fainter than what the second one has.
    rows = colour.reshape(4, -1, colour.shape[1]).mean((1, 2))
    assert rows[1] > rows[0]


def test_the_viewer_takes_files(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((90, 70), np.uint8)).save(tmp_path / "black.png")
    out = tmp_path / "one.png"
    example("cam_viewer").main([str(tmp_path / "black.png"), "--out", str(out)])
    assert out.exists()


def test_erasing_is_a_drop_in() -> None:
    """Logits and all gradients of the loop before and after agree, on maps with several peaks."""
    module = example("erasing_loop")
    torch.manual_seed(3)
    network = module.Network()
    images, _ = module.examples(12, torch.Generator().manual_seed(4))
    outcomes = []
    for logits_of in (module.logits_before, module.logits_after):
        features = network.backbone(images).detach().requires_grad_()
        logits = logits_of(features, network.head)
        assert logits.shape == (12, 4, 3)
        weights = torch.linspace(0.5, 2, logits.numel()).view_as(logits)
        wanted = (features, network.head.weight, network.head.bias)
        outcomes.append((logits, *torch.autograd.grad((logits * weights).sum(), wanted)))
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(outcomes[0][0][..., 0], outcomes[0][0][..., 1]), "a step erased nothing"


def test_both_loops_learn_alike(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("erasing_loop")
    before, _ = module.train(module.logits_before, updates=8)
    after, _ = module.train(module.logits_after, updates=8)
    assert before == pytest.approx(after, abs=1e-4)
    assert after[-1] < after[0]
    module.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["before", "after"]


def test_specks_go_and_the_rest_stays() -> None:
    module = example("components")
    mask = module.blobs(6, 80, seed=5)
    kept = module.without_specks(mask, least=25).numpy()
    for one, left in zip(mask.numpy(), kept, strict=True):
        labels, count = ndimage.label(one, np.ones((3, 3)))
        large = [n for n in range(1, count + 1) if (labels == n).sum() >= 25]
        assert 0 < len(large) < count
        assert np.array_equal(left, np.isin(labels, large))
    empty = torch.zeros(0, 8, 8, dtype=torch.bool)
    assert module.without_specks(empty, least=2).shape == (0, 8, 8)


def test_components_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("components")
    module.main()
    out = capsys.readouterr().out
    assert "scipy" in out
    assert "the same components" in out
    assert "OTHER COMPONENTS" not in out
    ours = np.array([[[1, 1, 0], [0, 0, 2]]])
    assert module.same_components(ours, ours * 7)
    assert not module.same_components(ours, np.minimum(ours, 1))
    assert not module.same_components(np.minimum(ours, 1), ours)
    assert not module.same_components(ours, np.array([[[1, 1, 0], [0, 2, 2]]]))
