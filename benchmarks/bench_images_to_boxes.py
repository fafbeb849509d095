"""From pictures in memory to the boxes of all classes: ResNet-50 MSA 512x512, every way there is.

Ours is torch in float32, and beside it torch in the precision that ``cxr-fast mine`` takes here. ONNX
Runtime runs it with ``cxr_fast.runtime`` behind the network, and with the mining in the graph. The
peers are what people use today for the maps, torch-cam and pytorch-grad-cam, with scikit-image and
OpenCV behind them for the same mining. Each has one stream on all cores or a stream a core, whichever
is faster for it.

pytorch-grad-cam cuts maps at 0 and enlarges them to the picture's size, so that its boxes are others:
a yardstick. The other results are those of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cxr_fast.benchmarks import inputs
from cxr_fast.benchmarks.boxes import boxes_each, component_finders
from cxr_fast.benchmarks.labelling import Labeller, labellers
from cxr_fast.benchmarks.literal import peak_component
from cxr_fast.benchmarks.place import Place, peer_module
from cxr_fast.benchmarks.racing import Case, Peer, Yardstick
from cxr_fast.config import MiningSettings
from cxr_fast.machine import cores
from cxr_fast.mining import load_miner, resolve_precision
from cxr_fast.models import Architecture, ModelCard, build, load_checkpoint, normalise, save_checkpoint
from cxr_fast.rows import BatchMiner

STREAM_IMAGES = 2  # of one stream in one call


class Boxes(NamedTuple):
    """boxes [N, C, 3, 4] in pixels of the network's input, counts [N, C]."""

    boxes: np.ndarray
    counts: np.ndarray


# Pictures [N, S, S] float32 in [0, 1] -> their boxes.
Way = Callable[[np.ndarray], Any]


def images_to_boxes_cases(place: Place) -> list[str]:
    return ["ResNet-18 MSA"] if place.quick else ["ResNet-50 MSA"]


@pytest.fixture
def checkpoint(place: Place, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    backbone, width, size = ("resnet18", 0.25, 128) if place.quick else ("resnet50", 1.0, 512)
    names = tuple(f"class {k}" for k in range(inputs.CLASSES))
    card = ModelCard(Architecture(backbone, "bilinear", width, 1), names, size)
    path = tmp_path / "random.safetensors"
    save_checkpoint(path, build(card), card)
    return path


def test_images_to_boxes(
    case: str, race: Callable[[Case], None], place: Place, checkpoint: Path
) -> None:
    if place.cuda or peer_module("onnxruntime") is None or peer_module("onnx") is None:
        pytest.skip("races ONNX Runtime on a processor: pip install 'cxr_fast[onnx]', --device cpu")
    count = cores()
    _, card = load_checkpoint(checkpoint)
    random = np.random.default_rng(0).random
    pictures = random((STREAM_IMAGES * count, card.input_size, card.input_size), np.float32)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(count))
        streams = partial(in_streams, pool, count)
        float32 = mining(load_miner(checkpoint, precision="float32", device="cpu"))
        peers = [
            Peer(name, streams(way), same)
            for name, way in onnx_ways(checkpoint, checkpoint.parent, count).items()
        ]
        sticks = [Yardstick("the network alone, eager", one_stream(eager(checkpoint), count))]
        if (auto := resolve_precision("auto", place.device)) != torch.float32:
            name = str(auto).removeprefix("torch.")
            way = mining(load_miner(checkpoint, precision="auto", device="cpu"))
            sticks.append(Yardstick(f"ours in {name}", streams(way)))
        if by_openvino := openvino_way(checkpoint.parent / "cam.onnx"):
            sticks.append(
                Yardstick(f"ONNX Runtime's OpenVINO, {by_openvino[0]}", streams(by_openvino[1]))
            )
        if by_torch_cam := torch_cam_way(checkpoint):
            peers.append(Peer("torch-cam, scikit-image", one_stream(by_torch_cam, count), same))
        if by_grad_cam := grad_cam_way(checkpoint):
            sticks.append(Yardstick("pytorch-grad-cam, scikit-image", one_stream(by_grad_cam, count)))
        size = f"{card.input_size}x{card.input_size}"
        name = f"images to boxes {case} {size} C{inputs.CLASSES} N{len(pictures)}"
        race(
            Case(
                name, (torch.from_numpy(pictures),), streams(float32), peers, sticks, wall=True,
                images=len(pictures),
            )
        )  # fmt: skip


def in_streams(pool: ThreadPoolExecutor, cores: int, way: Way) -> Callable[[Tensor], Boxes]:
    """The pictures dealt out to the cores, a thread each."""

    def run(pictures: Tensor) -> Boxes:
        parts = np.array_split(pictures.numpy(), cores)
        found = list(pool.map(lambda part: _on_one_thread(way, part), parts))
        return Boxes(*(np.concatenate(columns) for columns in zip(*found, strict=True)))

    return run


def _on_one_thread(way: Way, pictures: np.ndarray) -> Any:
    torch.set_num_threads(1)
    return way(pictures)


def one_stream(way: Way, cores: int) -> Callable[[Tensor], Any]:
    """All pictures at once, every core inside torch's operators."""

    def run(pictures: Tensor) -> Any:
        torch.set_num_threads(cores)
        return way(pictures.numpy())

    return run


def mining(miner: BatchMiner) -> Way:
    def run(pictures: np.ndarray) -> Boxes:
        mined = miner.mine_batch(pictures, _sizes(pictures), False)
        return Boxes(mined.boxes, mined.counts)

    return run


def onnx_ways(checkpoint: Path, folder: Path, cores: int) -> dict[str, Way]:
    """Sessions of one thread, which streams share."""
    import onnxruntime

    from cxr_fast.export.command import export_model
    from cxr_fast.onnx_miner import load_onnx_miner

    cam, end2end = folder / "cam.onnx", folder / "end2end.onnx"
    export_model(checkpoint, cam, form="cam")
    export_model(checkpoint, end2end, form="end2end")
    miner = load_onnx_miner(cam, device="cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(end2end, options, providers=["CPUExecutionProvider"])

    def in_the_graph(pictures: np.ndarray) -> Boxes:
        feed = {"image": miner.normalised(pictures), "image_size": _sizes(pictures).astype(np.int64)}
        return Boxes(*session.run(["boxes", "counts"], feed))

    return {
        "ONNX Runtime, then cxr_fast.runtime": mining(miner),
        "ONNX Runtime, mining in the graph": in_the_graph,
    }


def openvino_way(file: Path) -> tuple[str, Way] | None:
    """Where onnxruntime-openvino is installed in onnxruntime's place: the precision, and the way."""
    import onnxruntime

    from cxr_fast.onnx_miner import load_onnx_miner

    if "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers():
        return None
    miner = load_onnx_miner(file, device="openvino")
    return miner.precision, mining(miner)


def eager(checkpoint: Path) -> Way:
    """The classifier alone as torch runs it, logits out."""
    model, normalised = _classifier(checkpoint)

    def run(pictures: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return model(normalised(pictures))

    return run


def torch_cam_way(checkpoint: Path) -> Way | None:
    """The maps by torch-cam: one pass of the network, then a class at a time."""
    methods, label = peer_module("torchcam.methods"), labellers().get("skimage")
    if methods is None or label is None:
        return None
    model, normalised = _classifier(checkpoint)

    def run(pictures: np.ndarray) -> Boxes:
        with methods.CAM(model, "msa", "fc") as extract, torch.inference_mode():
            scores = model(normalised(pictures))
            maps = [extract(k, scores, normalized=False)[0] for k in range(inputs.CLASSES)]
        return _boxes_of(torch.stack(maps, 1).numpy(), label, pictures.shape[1])

    return run


def grad_cam_way(checkpoint: Path) -> Way | None:
    """The maps by pytorch-grad-cam: a pass forward and one back for each class."""
    module, label = peer_module("pytorch_grad_cam"), labellers().get("skimage")
    if module is None or label is None:
        return None
    model, normalised = _classifier(checkpoint)
    target = module.utils.model_targets.ClassifierOutputTarget

    def run(pictures: np.ndarray) -> Boxes:
        batch = normalised(pictures)
        with module.GradCAM(model=model, target_layers=[model.msa]) as extract:
            maps = [extract(batch, [target(k)] * len(batch)) for k in range(inputs.CLASSES)]
        return _boxes_of(np.stack(maps, 1), label, pictures.shape[1])

    return run


def _classifier(checkpoint: Path) -> tuple[Any, Callable[[np.ndarray], Tensor]]:
    """The classifier, channels_last, which is the faster order here, and its input."""
    model, card = load_checkpoint(checkpoint)
    model.eval().to(memory_format=torch.channels_last)

    def normalised(pictures: np.ndarray) -> Tensor:
        batch = normalise(torch.from_numpy(pictures)[:, None], card)
        return batch.contiguous(memory_format=torch.channels_last)

    return model, normalised


def _boxes_of(maps: np.ndarray, label: Labeller, size: int) -> Boxes:
    """maps [N, C, H, W] mined a map at a time. Masks commute with the sum over channels, so that no
    features are erased, which the peers have no way to do.
    """
    settings = MiningSettings()
    n, c, height, width = maps.shape
    heatmaps = np.zeros_like(maps)
    for i, k in np.ndindex(n, c):
        cam = maps[i, k]
        alive, held = np.ones((height, width), bool), np.zeros((height, width), np.float32)
        for _ in range(settings.steps):
            lo, hi = cam[alive].min(), cam[alive].max()
            held = np.where(alive, (cam - lo) / (hi - lo or 1), held)  # Eq. 8: erased pixels stay
            heatmaps[i, k] += held / settings.steps
            alive &= ~peak_component(label, cam, alive)
    flat = heatmaps.reshape(n * c, height, width)
    find: Any = component_finders()["cv2"]
    with np.errstate(invalid="ignore"):  # a map that was cut at 0 may be constant: no box
        boxes, _, counts = boxes_each(find, flat, settings.thresholds, settings.upsample, size)
    return Boxes(boxes.reshape(n, c, -1, 4), counts.reshape(n, c))


def _sizes(pictures: np.ndarray) -> np.ndarray:
    return np.array([pictures.shape[1:]] * len(pictures), np.float64)


def same(ours: Boxes, theirs: Boxes) -> None:
    """Another order of summing moves the last bits, and a cell or a cut with them: 1 map in 50 may."""
    agree = (ours.counts == theirs.counts) & (np.abs(ours.boxes - theirs.boxes) < 0.5).all((2, 3))
    assert agree.mean() >= 0.98, f"boxes of only {agree.sum()} of {agree.size} maps agree"
