"""Fig. 2: what is drawn of named images is what the network and the reference see of them."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from judged_runs import HEADER, texts_of
from PIL import Image

from cxr_fast.archive.findings import read_findings
from cxr_fast.archive.overlays import MinedClass, Truth, ramp
from cxr_fast.cli import main
from cxr_fast.figures import canvas
from cxr_fast.figures.mined import mined_rows
from cxr_fast.figures.steps import StepsRow, draw_steps

torch = pytest.importorskip("torch")

from cxr_fast import reference  # noqa: E402
from cxr_fast.archive.images import read_image, to_input  # noqa: E402
from cxr_fast.config import BOXED_FINDINGS, MiningSettings  # noqa: E402
from cxr_fast.models import (  # noqa: E402
    Architecture,
    ModelCard,
    build,
    fold,
    load_checkpoint,
    normalise,
    save_checkpoint,
)

SETTINGS = MiningSettings(steps=3)


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


class Archive:
    """Two images, a file of the same name in two folders, a model, its run, a box table."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(3)
        card = ModelCard(Architecture("resnet18", "bilinear", 0.125, 1), BOXED_FINDINGS, 64)
        self.model, self.other = folder / "model.safetensors", folder / "other.safetensors"
        save_checkpoint(self.model, build(card), replace(card, mining=SETTINGS))
        save_checkpoint(self.other, build(card), replace(card, mining=SETTINGS))
        self.images, self.run, self.table = folder / "images", folder / "run", folder / "boxes.csv"
        rng = np.random.default_rng(2)
        for name, shape in (("a.png", (96, 96)), ("b<&>.png", (80, 120)), ("p/c.png", (64, 64)),
                            ("q/c.png", (64, 64))):  # fmt: skip
            path = self.images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        self.table.write_text(HEADER + "a.png,Mass,10,20,30,40\na.png,Nodule,1,1,5,5\n")
        mined = cli("mine", self.images, "--model", self.model, "--out", self.run, "--precision",
                    "float32")  # fmt: skip
        assert mined.exit_code == 0, mined.output

    def draw(self, *arguments: object, model: object = None, images: Path | None = None) -> Result:
        return cli("figure", "fig2", self.run, "--images", images or self.images, "--model",
                   model or self.model, *arguments)  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive(tmp_path_factory.mktemp("figures"))


def test_rows_are_what_the_reference_makes_of_the_network(archive: Archive) -> None:
    named = [("a.png", "Mass"), ("b<&>.png", "Pneumothorax")]
    rows, notes = mined_rows(
        archive.run, str(archive.images), str(archive.model),
        named, archive.table,
    )  # fmt: skip
    assert notes == []
    classifier, card = load_checkpoint(archive.model)
    for row, (name, finding) in zip(
        rows, (("a.png", "Mass"), ("b<&>.png", "Pneumothorax")), strict=True
    ):
        pixels = read_image(archive.images / name)
        np.testing.assert_array_equal(row.image, pixels)
        image = torch.from_numpy(to_input(pixels, 64))[None, None]
        with torch.inference_mode():
            cam = fold(classifier)(normalise(image, card))
        index = BOXED_FINDINGS.index(finding)
        own = cam[0, index].double().numpy()
        alive, lowered = np.ones(own.shape, bool), []
        mined = reference.mine_attention(cam, 3, 0.5)
        for step in range(1, 4):  # each step literally: the range of what is alive, then the erasure
            low, high = own[alive].min(), own[alive].max()
            lowered.append(np.where(alive, (own - low) / (high - low), np.nan))
            alive &= mined.erased_at[0, index].numpy() != step
        np.testing.assert_allclose(row.mined.steps, lowered, atol=2e-4)
        kept = [
            [r[edge] for edge in ("x1", "y1", "x2", "y2")]
            for r in read_findings(archive.run).to_pylist()
            if r["image_id"] == name and r["class"] == finding
        ]
        np.testing.assert_allclose(row.mined.boxes, kept, atol=1e-3)
    assert rows[0].truth == [Truth("Mass", (10, 20, 40, 60))]
    assert rows[1].truth == []
    assert rows[0].caption.startswith("(a) Mass, probability 0.")


def test_what_lies_on_the_sheet() -> None:
    """Panels with the colours of the map, erased pixels as grey as the image, boxes in its pixels."""
    steps = np.stack([np.tile(np.linspace(0, 1, 4, dtype=np.float32), (4, 1))] * 2)
    steps[1, :, 2:] = np.nan
    mined = MinedClass("Mass", 0.5, steps, steps[0], np.float32([[10, 20, 30, 60]]), np.float32([1]))
    image = np.full((100, 200), 80, np.uint8)
    row = StepsRow("<one> & $two$", image, mined, [Truth("Mass", (5, 6, 7, 9))])
    figure = draw_steps([row])
    panels = [axes for axes in figure.axes if not axes.axison]
    assert len(panels) == 4
    for axes in panels:
        assert axes.get_xlim() == (0, 200)
        assert axes.get_ylim() == (100, 0)
    boxes = [[(p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches] for axes in panels]
    found, true = ((10, 20), 20, 40), ((5, 6), 2, 3)
    assert boxes == [[found, true], [], [], [found]]
    assert panels[0].patches[0].get_linestyle() != panels[0].patches[1].get_linestyle()
    first, second = (axes.images[0].get_array() for axes in panels[1:3])
    assert (second[:, 110:] == 80).all()  # erased before: the image itself
    assert (second[:, :70] == first[:, :70]).all()
    strongest = np.rint(80 * 0.35 + ramp(np.float64(1.0)) * 0.65)
    np.testing.assert_allclose(first[50, 199], strongest, atol=1)
    with pytest.raises(ValueError, match="got none; name an image"):
        draw_steps([])


def test_ramp_grows_lighter_all_along() -> None:
    """In grey print, stronger is lighter."""
    grey = ramp(np.linspace(0, 1, 101)) @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) > 0).all()
    for count in (2, 3, 5, 7):
        lines = np.array(canvas.lightness(count)) @ [0.299, 0.587, 0.114]
        assert (np.diff(lines) > 0).all()


def test_files_are_the_same_again_and_hold_text(archive: Archive, tmp_path: Path) -> None:
    rows = ("--row", "a.png", "Mass", "--row", "b<&>.png", "Nodule", "--truth", archive.table)
    for n in "12":
        result = archive.draw(*rows, "--note", "x < y & $z$", "--out", tmp_path / f"{n}.svg",
                              "--out", tmp_path / f"{n}.pdf", "--out", tmp_path / f"{n}.png",
                              "--columns", "one")  # fmt: skip
        assert result.exit_code == 0, result.output
    for kind in ("svg", "pdf", "png"):
        assert (tmp_path / f"1.{kind}").read_bytes() == (tmp_path / f"2.{kind}").read_bytes()
    texts = texts_of(tmp_path / "1.svg")
    assert {"aggregated", "mined box", "true box", "x < y & $z$"} <= set(texts)
    assert sum(text.startswith("(b) Nodule, probability") for text in texts) == 1
    assert not any("Synthetic" in text for text in texts)
    with Image.open(tmp_path / "1.png") as picture:
        assert picture.width == 3.5 * 300
    # The pictures themselves are in the file: nothing is beside it.
    inside = re.findall(r"data:image/png;base64,([^\"]+)", (tmp_path / "1.svg").read_text())
    assert len(inside) >= 10
    with Image.open(io.BytesIO(base64.b64decode(inside[0]))) as picture:
        assert picture.size == (96, 96)


def test_another_model_is_refused_unless_asked_for(archive: Archive, tmp_path: Path) -> None:
    arguments = ("--row", "a.png", "Mass", "--out", tmp_path / "f.png")
    refused = archive.draw(*arguments, model=archive.other)
    assert refused.exit_code == 1
    assert "is not the model of the run" in refused.output
    assert not (tmp_path / "f.png").exists()
    drawn = archive.draw(*arguments, "--other-model", model=archive.other)
    assert drawn.exit_code == 0, drawn.output
    assert "another model than the run's" in drawn.output
    demo = archive.draw(*arguments, "--other-model", "--out", tmp_path / "f.svg", model="demo")
    assert demo.exit_code == 0, demo.output
    assert any("Synthetic" in text for text in texts_of(tmp_path / "f.svg"))


def test_an_image_that_changed_is_told(archive: Archive, tmp_path: Path) -> None:
    elsewhere = tmp_path / "images"
    elsewhere.mkdir()
    with Image.open(archive.images / "a.png") as picture:
        Image.fromarray(np.asarray(picture)[::-1, ::-1].copy()).save(elsewhere / "a.png")
    result = cli("figure", "fig2", archive.run, "--images", elsewhere, "--model", archive.model,
                 "--row", "a.png", "Mass", "--out", tmp_path / "f.png")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "are not those of the run" in result.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--row", "z.png", "Mass"), "has no image 'z.png'"),
        (("--row", "c.png", "Mass"), "2 images of the name 'c.png'; name an image_id"),
        (("--row", "a.png", "Hernia"), "has no class 'Hernia'; name one of Atelectasis"),
        (("--row", "a.png", "Mass", "--out", "f.gif"), "must end in .pdf, .png, .svg"),
        (("--row", "a.png", "Mass", "--truth", "none.csv"), "none.csv"),
    ],
)
def test_refusals(
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = archive.draw(*arguments, "--out", "f.svg")
    assert result.exit_code == 1, result.output
    assert sentence in result.output
    assert not (tmp_path / "f.svg").exists()


def test_a_model_or_an_image_that_is_not_there(archive: Archive, tmp_path: Path) -> None:
    shared = ("--row", "a.png", "Mass", "--out", tmp_path / "f.svg")
    assert "is not a file; give the one" in archive.draw(*shared, model="nowhere.onnx").output
    elsewhere = tmp_path / "images"
    elsewhere.mkdir()
    (elsewhere / "other.png").write_bytes(b"no picture")
    result = cli(
        "figure", "fig2", archive.run, "--images", elsewhere, "--model", archive.model, *shared
    )
    assert "give what the run was mined from" in result.output
    (elsewhere / "a.png").write_bytes(b"no picture")
    result = cli(
        "figure", "fig2", archive.run, "--images", elsewhere, "--model", archive.model, *shared
    )
    assert "a.png cannot be read" in result.output
    assert result.exit_code == 1
