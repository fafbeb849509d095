"""Whole models as ONNX files, run by onnxruntime, against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import card_of, exported, network, outputs, session
from test_mining_graph import BUILT_BY_TENSORRT, operators

from cxr_fast.archive.images import read_image, to_input
from cxr_fast.config import MiningSettings
from cxr_fast.export.graph import FLOAT, LAST_OPSET, Graph
from cxr_fast.export.metadata import from_properties
from cxr_fast.export.network import Maps, logits_of
from cxr_fast.mining import Mined, Miner
from cxr_fast.model_files import DEMO_MODEL
from cxr_fast.models import (
    Architecture,
    FoldedClassifier,
    ModelCard,
    fold,
    load_checkpoint,
    normalise,
)

REGIONS = MiningSettings(select="regions", upsample=2)
ARCHITECTURES = [
    Architecture("resnet18", "bilinear", 0.25, 1),
    Architecture("resnet18", "deconv", 0.25, 3),
    Architecture("resnet50", "bilinear", 0.125, 3),
    Architecture("resnet34", "none", 0.25, 1, neck=16, last_stride=1),
    Architecture("resnet18", "bilinear", 0.25, 1, bilateral=True, pooling="lse", depth=3),
]


def pictures(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Pixels [N, S, S] in [0, 1], smooth and rough."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(count, size, size, generator=generator)
    coarse = torch.rand(count, 1, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[:, 0]
    return (0.7 * smooth.clamp(0, 1) + 0.3 * rough).float()


def mine(
    model: FoldedClassifier, card: ModelCard, pixels: torch.Tensor, sizes: np.ndarray
) -> tuple[Mined, torch.Tensor, torch.Tensor]:
    """What torch makes of it: mined, cam, logits."""
    miner = Miner(model, card, card.mining, torch.device("cpu"), torch.float32)
    cam = model(miner.prepare(pixels))
    return miner.mine(pixels, torch.from_numpy(sizes)), cam, model.logits(cam)


def close(got: np.ndarray, wanted: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Within ``tolerance``, or that fraction of the largest value where it is above 1."""
    scale = max(1.0, float(wanted.abs().max()))
    np.testing.assert_allclose(got, wanted.numpy(), atol=tolerance * scale, rtol=0)


def agrees(got: dict[str, np.ndarray], mined: Mined, boxes_within: float = 0.5) -> None:
    """Erased cells equal, boxes within half a pixel, the rest within rounding."""
    found = mined.result.found
    np.testing.assert_array_equal(got["erased_at"], mined.result.mined.erased_at.numpy())
    np.testing.assert_array_equal(got["counts"], found.counts.numpy())
    np.testing.assert_allclose(got["boxes"], found.boxes.numpy(), atol=boxes_within, rtol=0)
    np.testing.assert_allclose(got["scores"], found.scores.numpy(), atol=1e-4, rtol=0)
    np.testing.assert_allclose(got["heatmap"], mined.result.heatmap.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "any_size"), [(64, False), (72, False), (97, True), (64, True)])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"{a.backbone} {a.msa}")
def test_both_forms_agree_with_torch(architecture: Architecture, size: int, any_size: bool) -> None:
    three = architecture.in_channels == 3 and size == 72
    card = card_of(
        architecture,
        size,
        mean=(0.4, 0.5, 0.6) if three else (0.5,),
        std=(0.2, 0.25, 0.3) if three else (0.25,),
        mining=REGIONS if architecture.bilateral else MiningSettings(),
    )
    model = network(card)
    pixels, sizes = pictures(3, size), np.array([[100, 200], [size, size], [1001, 1000]])
    mined, cam, logits = mine(model, card, pixels, sizes)
    image = normalise(pixels[:, None], card).numpy()
    maps = outputs(exported(model, card, "cam", any_size=any_size), image=image)
    assert list(maps) == ["logits", "cam"]
    close(maps["logits"], logits)
    close(maps["cam"], cam)
    whole = outputs(exported(model, card, any_size=any_size), image=image, image_size=sizes)
    assert list(whole) == ["logits", "boxes", "scores", "counts", "heatmap", "erased_at"]
    close(whole["logits"], logits)
    agrees(whole, mined)


def test_one_file_takes_any_batch_and_size() -> None:
    card = card_of(ARCHITECTURES[0])
    model = network(card)
    run = session(exported(model, card, any_size=True))
    for count, size in ((1, 64), (3, 81), (8, 47), (2, 33)):
        pixels, sizes = pictures(count, size), np.full((count, 2), 512)
        mined, _, logits = mine(model, card, pixels, sizes)
        got = outputs(run, image=normalise(pixels[:, None], card).numpy(), image_size=sizes)
        close(got["logits"], logits)
        agrees(got, mined)


def raw(count: int, rows: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(rows)
    rough = generator.integers(0, 256, (count, rows, columns))
    ramp = np.linspace(0, 255, columns)[None, None]
    return (0.4 * rough + 0.6 * ramp).astype(np.uint8)


@pytest.mark.parametrize("shape", [(64, 64), (100, 80), (31, 200), (5, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("standardise", [False, True])
def test_raw_pictures_are_prepared_in_the_graph(shape: tuple[int, int], standardise: bool) -> None:
    card = card_of(ARCHITECTURES[1], standardise=standardise, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
    model = network(card)
    pixels = raw(2, *shape)
    prepared = torch.from_numpy(np.stack([to_input(p, 64) for p in pixels]))
    mined, cam, _ = mine(model, card, prepared, np.array([shape] * 2))
    maps = outputs(exported(model, card, "cam", raw_input=True), image=pixels)
    # Without contrast, what is standardised is the rounding of a mean, a thousandfold.
    close(maps["cam"], cam, 1e-2 if standardise and min(shape) == 1 else 1e-4)
    whole = session(exported(model, card, raw_input=True))
    assert [value.name for value in whole.get_inputs()] == ["image"]  # sizes are the pictures' own
    if min(shape) > 1:  # a picture of one value has maps of noise
        agrees(outputs(whole, image=pixels), mined)


@pytest.mark.parametrize("opset", range(17, LAST_OPSET + 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_type_and_opset(dtype: torch.dtype, opset: int) -> None:
    card = card_of(ARCHITECTURES[0])
    model = network(card, dtype=dtype)
    if dtype == torch.bfloat16 and opset < 22:
        with pytest.raises(ValueError, match="no bfloat16 convolution before"):
            exported(model, card, opset=opset)
        return
    pixels, sizes = pictures(2, 64), np.full((2, 2), 64)
    for form in ("cam", "end2end"):
        content = exported(model, card, form, opset=opset)
        proto = onnx.load_from_string(content)
        assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]
        assert operators(proto.graph) <= {("", name) for name in BUILT_BY_TENSORRT}
        weights = {t.data_type for t in proto.graph.initializer if list(t.dims)[2:] == [3, 3]}
        named = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}[dtype]
        assert weights == {onnx.TensorProto.DataType.Value(named)}
        kinds = {o.name: o.type.tensor_type.elem_type for o in proto.graph.output}
        assert kinds["logits"] == onnx.TensorProto.FLOAT
        if dtype == torch.bfloat16:  # onnxruntime has no such convolution on a CPU
            continue
        feeds: dict[str, Any] = {"image": normalise(pixels[:, None], card).numpy()}
        if form == "end2end":
            feeds["image_size"] = sizes
        got = outputs(content, **feeds)
        exact = network(card)
        logits = exact.logits(exact(normalise(pixels[:, None], card)))
        close(got["logits"], logits, 1e-4 if dtype == torch.float32 else 5e-3)


def test_the_cam_form_is_convolutions_and_a_resize() -> None:
    card = card_of(ARCHITECTURES[2])
    graph = onnx.load_from_string(exported(network(card), card, "cam")).graph
    assert operators(graph) == {
        ("", name)
        for name in (
            "Conv", "Relu", "MaxPool", "Add", "Resize", "ReduceMean", "Identity",
            "Shape", "Slice", "Concat",  # the size to resize to
        )
    }  # fmt: skip


def test_a_file_says_what_it_is() -> None:
    card = card_of(ARCHITECTURES[4], 72, mining=REGIONS)
    content = exported(network(card), card)
    properties = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    metadata = from_properties(properties)
    assert properties == session(content).get_modelmeta().custom_metadata_map
    assert metadata.class_names == card.class_names
    assert metadata.mining == REGIONS
    assert (metadata.form, metadata.precision, metadata.pooling) == ("end2end", "float32", "lse")
    assert (metadata.input.raw, metadata.input.size, metadata.input.channels) == (False, 72, 1)
    assert content == exported(network(card), card)


@pytest.fixture(scope="module")
def demo() -> Miner:
    classifier, card = load_checkpoint(DEMO_MODEL)
    return Miner(fold(classifier), card, card.mining, torch.device("cpu"), torch.float32)


def test_the_bundled_model(demo: Miner) -> None:
    size = demo.card.input_size
    pixels, sizes = pictures(2, size), np.full((2, 2), 1024)
    mined, cam, logits = mine(demo.model, demo.card, pixels, sizes)
    image = normalise(pixels[:, None], demo.card).numpy()
    got = outputs(exported(demo.model, demo.card), image=image, image_size=sizes)
    close(got["logits"], logits)
    agrees(got, mined)
    close(outputs(exported(demo.model, demo.card, "cam"), image=image)["cam"], cam)


def test_real_images(demo: Miner, shared_data: Path) -> None:
    """64 NIH X-rays: what differs is a cell at the very cut, as the maps differ in their last bits."""
    files = sorted((shared_data / "nih").rglob("*.png"))[:64]
    assert len(files) == 64
    pictures_of = [read_image(path) for path in files]
    sizes = np.array([picture.shape for picture in pictures_of])
    pixels = torch.from_numpy(np.stack([to_input(p, demo.card.input_size) for p in pictures_of]))
    mined, cam, logits = mine(demo.model, demo.card, pixels, sizes)
    image = normalise(pixels[:, None], demo.card).numpy()
    got = outputs(exported(demo.model, demo.card), image=image, image_size=sizes)
    close(got["logits"], logits)
    close(outputs(exported(demo.model, demo.card, "cam"), image=image)["cam"], cam)
    erased = mined.result.mined.erased_at.numpy()
    same = (got["erased_at"] == erased).all((2, 3))
    assert same.mean() >= 0.999
    for n, c in np.argwhere(~same):
        assert_a_tie(cam[n, c].numpy(), mined, n, c, got["erased_at"][n, c])
    differences = np.abs(got["boxes"] - mined.result.found.boxes.numpy())[same]
    assert (differences.max((1, 2)) <= 0.5).mean() >= 0.999


def assert_a_tie(cam: np.ndarray, mined: Mined, n: int, c: int, erased: np.ndarray) -> None:
    """The first step that differs has a cell within 1e-4 of the cut, or two such peaks."""
    expected = mined.result.mined.erased_at[n, c].numpy()
    differing = np.concatenate([expected[expected != erased], erased[expected != erased]])
    step = int(differing[differing > 0].min())
    lo, hi = mined.result.mined.extent[n, c, step - 1].numpy()
    alive = (expected == 0) | (expected >= step)
    cut = lo + 0.5 * (hi - lo)
    near_cut = np.abs(cam[alive] - cut).min() <= 1e-4 * (hi - lo)
    top = np.sort(cam[alive])[-2:]
    assert near_cut or top[1] - top[0] <= 1e-4 * (hi - lo)


def test_logits_of_large_maps_do_not_overflow() -> None:
    card = card_of(ARCHITECTURES[4])
    model = network(card)
    cam = np.random.default_rng(0).normal(60, 30, (2, 3, 4, 5)).astype(np.float32)
    g = Graph(18)
    value = g.input("cam", FLOAT, ["batch", 3, 4, 5])
    g.output("logits", logits_of(g, model, Maps(value, (4, 5))), FLOAT, ["batch", 3])
    wanted = model.logits(torch.from_numpy(cam))  # exp(4 * 60) is beyond float32
    close(outputs(g.serialise({}, "0"), cam=cam)["logits"], wanted)
