"""Ways to train that are not in the paper, and off unless said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from labelled import card, squares

from cxr_fast.models import build, load_checkpoint, normalise
from cxr_fast.training import Data, TrainingSettings, train_base, train_from
from cxr_fast.training.loop import train
from cxr_fast.training.objectives import ClassificationObjective

SETTINGS = TrainingSettings(
    epochs=2, batch_size=16, learning_rate=3e-3, optimizer="adamw", seed=1, precision="float32"
)
DATA = Data(squares(48), squares(16, 6))


def pictures(count: int = 4, size: int = 24) -> torch.Tensor:
    smooth = scipy.ndimage.gaussian_filter(
        np.random.default_rng(0).random((count, size, size)), (0, 2, 2)
    )
    return torch.from_numpy(smooth / smooth.max())[:, None].float()


def test_the_weights_that_are_written_are_the_running_average(tmp_path: Path) -> None:
    """Against the recurrence by hand: a <- d a + (1 - d) w after every update, from the first w."""
    settings = replace(SETTINGS, averaging=0.8)
    torch.manual_seed(0)
    model = build(card())
    by_hand: dict[str, torch.Tensor] = {}

    def follow(done: int, total: int, note: str) -> None:
        for name, value in model.state_dict().items():
            now = value.double()
            by_hand[name] = now if done == 1 else 0.8 * by_hand[name] + 0.2 * now

    objective = ClassificationObjective(model, settings.balance)
    made = train(DATA, objective, card(), settings, tmp_path, report=follow)
    written = load_checkpoint(made.last)[0].state_dict()
    for name, value in written.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), by_hand[name], atol=1e-6, rtol=1e-5)
    apart = [
        not torch.allclose(value.double(), model.state_dict()[name].double(), atol=1e-4)
        for name, value in written.items()
        if value.is_floating_point()
    ]
    assert any(apart), "the average was to differ from the last weights"


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("update", [1, 3, 4])
def test_an_average_goes_on_after_a_kill(tmp_path: Path, update: int) -> None:
    settings = replace(SETTINGS, averaging=0.9, gradient_clip=0.5, checkpoint_every=2)
    whole = train_base(DATA, card(), settings, tmp_path / "whole")

    def killing(done: int, total: int, note: str) -> None:
        if done == update:
            raise KilledError

    with pytest.raises(KilledError):
        train_base(DATA, card(), settings, tmp_path / "killed", reporter=lambda what: killing)
    again = train_base(DATA, card(), settings, tmp_path / "killed")
    for first, second in ((whole.last, again.last), (whole.best, again.best)):
        ours, theirs = (load_checkpoint(path)[0].state_dict() for path in (first, second))
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name


def test_a_clipped_gradient_has_the_norm_that_was_asked_for(tmp_path: Path) -> None:
    """One step of SGD with Nesterov's momentum moves the weights by 1.9 times rate times gradient."""
    settings = replace(
        SETTINGS, epochs=1, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, decay="constant",
        warmup=0.0, gradient_clip=1e-3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build(card())
    before = {name: value.clone() for name, value in model.named_parameters()}
    objective = ClassificationObjective(model, settings.balance)
    train(Data(squares(16)), objective, card(), settings, tmp_path)
    moved = torch.cat(
        [(p.detach() - before[n].detach()).flatten() for n, p in model.named_parameters()]
    )
    # The weights are float32: a part of so small a step is lost in them.
    assert float(moved.double().norm()) == pytest.approx(1.9 * 0.01 * 1e-3, rel=0.02)


@pytest.mark.slow  # compiling takes a minute each
@pytest.mark.parametrize("stage", ["base", "mining"])
def test_a_compiled_step_is_the_step(tmp_path: Path, stage: str) -> None:
    """One update: a second would begin with the rounding of the first, which ReLUs amplify."""
    gentle = replace(SETTINGS, epochs=1, optimizer="sgd", learning_rate=0.01)
    data = Data(squares(16, 12), None, squares(2, 7))
    start = train_base(Data(data.train), card(), gentle, tmp_path / "start").last
    made = []
    for compiled in (False, True):
        settings, out = replace(gentle, compile=compiled), tmp_path / f"{compiled}"
        if stage == "base":
            result = train_base(Data(data.train), card(), settings, out)
        else:
            result = train_from(start, data, replace(settings, stage="mining"), out)
        made.append(result)
    plain, quick = (result.histories[0][0]["train_total"] for result in made)
    assert quick == pytest.approx(plain, rel=1e-5)
    weights = [load_checkpoint(result.last)[0].state_dict() for result in made]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-5)


def test_a_standardised_image_says_nothing_of_exposure() -> None:
    described = replace(card(), standardise=True)
    images = pictures(3)
    got = normalise(images, described)
    for image, mine in zip(images.numpy().astype(float), got.numpy(), strict=True):
        np.testing.assert_allclose(mine, (image - image.mean()) / image.std(), atol=1e-5)
    darker = normalise(0.5 * images + 0.1, described)
    torch.testing.assert_close(darker, got, atol=1e-4, rtol=1e-4)
    assert not normalise(torch.full((1, 1, 8, 8), 0.7), described).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"averaging": 1.0}, r"averaging in \[0, 1\)"),
        ({"gradient_clip": -1.0}, "gradient_clip must be at least 0"),
    ],
)
def test_refusals(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **values)
