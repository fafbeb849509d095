from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cxr_fast import training
from cxr_fast.losses import classification_loss
from cxr_fast.models import Architecture, ModelCard
from cxr_fast.phantom import PhantomSettings, write_archive
from cxr_fast.training import LabelledImages, TrainingSettings, base, train_base

CARD = ModelCard(Architecture("resnet18", "bilinear", 0.125, 1), ("left", "right"), 64)


@pytest.fixture(scope="module")
def squares() -> LabelledImages:
    """A bright square on the left, on the right, on both, or nowhere, over noise."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 90, (160, 64, 64)).astype(np.uint8)
    labels = rng.integers(0, 2, (160, 2))
    for image, (left, right) in zip(images, labels, strict=True):
        y = rng.integers(8, 40)
        if left:
            image[y : y + 14, 6:20] = 220
        if right:
            image[y : y + 14, 42:56] = 220
    patients = np.repeat(np.arange(80), 2)
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels).float(), patients)


SETTINGS = TrainingSettings(
    epochs=4, batch_size=16, learning_rate=3e-3, optimizer="adamw", validation=0.25, seed=1
)


def test_it_learns_and_is_reproducible(squares: LabelledImages) -> None:
    losses: list[float] = []
    trained = train_base(squares, CARD, SETTINGS, lambda e, n, loss, auroc: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert trained.auroc.min() > 0.9
    again = train_base(squares, CARD, SETTINGS)
    for a, b in zip(
        trained.model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_patients_do_not_straddle_the_validation_split(
    squares: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[torch.Tensor]] = {"train": [], "validation": []}
    augment, predict = base._augment, base.predict

    def watched(pixels: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        seen["train"].append(pixels)
        return augment(pixels, generator)

    def judged(model: object, images: torch.Tensor, *rest: object) -> np.ndarray:
        seen["validation"].append(images)
        return predict(model, images, *rest)

    monkeypatch.setattr(base, "_augment", watched)
    monkeypatch.setattr(base, "predict", judged)
    train_base(squares, CARD, TrainingSettings(epochs=1, batch_size=16, validation=0.25))
    patient_of = {bytes(i.numpy()): p for i, p in zip(squares.images, squares.patients, strict=True)}
    trained, held = (
        {patient_of[bytes(i.numpy())] for batch in seen[part] for i in batch} for part in seen
    )
    assert not trained & held
    assert len(held) == 20


def test_loss_is_the_mean_cross_entropy() -> None:
    logits, labels = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    p = torch.sigmoid(logits.double())
    literal = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert float(classification_loss(logits, labels)) == pytest.approx(float(literal), rel=1e-6)
    positives, total = float(labels.sum()), labels.numel()
    weights = torch.where(labels > 0, total / positives, total / (total - positives))
    weighted = -(weights * (labels * p.log() + (1 - labels) * (1 - p).log())).mean()
    assert float(classification_loss(logits, labels, "wang")) == pytest.approx(
        float(weighted), rel=1e-6
    )
    assert torch.isfinite(classification_loss(logits, torch.zeros(5, 3), "wang"))


def test_an_archive_is_read_without_its_boxes(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", PhantomSettings(images=12, size=96))
    (tmp_path / "archive" / "BBox_List_2017.csv").unlink()
    data = training.load_archive(tmp_path / "archive", 48)
    listed = (tmp_path / "archive" / "train_val_list.txt").read_text().split()
    assert data.images.shape == (len(listed), 48, 48)
    assert data.labels.shape == (len(listed), 8)
    assert data.labels.sum() > 0


def test_refusals(tmp_path: Path, squares: LabelledImages) -> None:
    with pytest.raises(FileNotFoundError, match=r"Data_Entry\*"):
        training.load_archive(tmp_path, 64)
    with pytest.raises(ValueError, match="left is in no training image"):
        train_base(squares._replace(labels=torch.zeros(160, 2)), CARD, SETTINGS)
    with pytest.raises(ValueError, match="lower the learning rate"):
        train_base(squares, CARD, TrainingSettings(epochs=2, batch_size=16, learning_rate=1e12))
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        TrainingSettings(epochs=0)
