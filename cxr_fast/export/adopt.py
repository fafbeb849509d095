"""Somebody's ONNX classifier as a file of ours, of the form ``cam``, for ``cxr-fast mine``.

Its nodes stay as they are, up to the logits; beside its last layer stands a 1x1 convolution with that
layer's weights on the feature map, which gives the class activation maps. Before the file is written,
ONNX Runtime runs it: the mean of the maps plus the bias has to be the logits. Needs no torch.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np

from cxr_fast import __version__
from cxr_fast.config import MiningSettings
from cxr_fast.export.graph import FLOAT, FLOAT16, Graph, ModelFile
from cxr_fast.export.head import Head, NoHeadError, find_head
from cxr_fast.export.metadata import IMAGE, KEY, ExportMetadata, InputContract, to_json
from cxr_fast.files import require_new, write_whole
from cxr_fast.onnx_miner import load_onnx_miner

# How far the mean of the maps may be from the logits, of the largest: rounding, and nothing else.
_TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}


def adopt_onnx(
    file: str | Path,
    out: str | Path,
    class_names: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    features: str | None = None,
    head: str | None = None,
    channels: int | None = None,
    size: int | None = None,
    mining: MiningSettings | None = None,
) -> ExportMetadata:
    """Write the classifier ``file`` (ONNX, any opset) to the new file ``out``, for mining.

    ``mean`` and ``std`` as in ``InputContract``; ``features`` and ``head`` name nodes or values where
    they are not found by themselves (``find_head``); ``channels`` and ``size`` are needed where the
    file leaves them open. Logits are those of the file, before a final sigmoid. Raises FileExistsError
    where ``out`` is, FileNotFoundError where ``file`` is not, and ValueError for a file whose logits
    are not one linear layer on the mean of a feature map, or that contradicts what is given.
    """
    path, target = Path(file), Path(out)
    require_new(target)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be an ONNX file, but there is no such file")
    model = ModelFile(path)
    try:
        found = find_head(model, features, head)
    except NoHeadError as error:
        raise ValueError(
            f"{path} must compute its logits by one linear layer on the mean (global average pooling) "
            f"of a feature map, but {error}. If it has such a layer all the same, name it with --head, "
            "and the feature map with --features; if not, there are no class activation maps to mine: "
            "train the network with such a layer"
        ) from error
    if len(found.weight) != len(class_names):
        raise ValueError(
            f"{path} gives {len(found.weight)} logits, so that --classes must be {len(found.weight)} "
            f"names, but they are {len(class_names)}: {', '.join(class_names):.200}"
        )
    channels, size = _input_of(model, path, channels, size)
    metadata = ExportMetadata(
        form="cam",
        precision=model.precision,
        class_names=class_names,
        input=InputContract(False, channels, size, mean, std),
        mining=mining or MiningSettings(),
        outputs=("logits", "cam"),
        provenance=f"Adopted from {path.name} (SHA-256 {_digest(path)}).",
    )
    content = _written(model, found, metadata)
    _prove(content, found, metadata, path)
    write_whole(target, content)
    return metadata


def _input_of(model: ModelFile, path: Path, channels: int | None, size: int | None) -> tuple[int, int]:
    """Channels and side of the images, of the file or as given."""
    if len(model.inputs) != 1:
        names = ", ".join(repr(i.name) for i in model.inputs) or "none"
        raise ValueError(f"{path} must take one input, the images, but takes {names}")
    image = model.inputs[0]
    shape = image.shape
    if image.kind not in (FLOAT, FLOAT16) or len(shape) != 4:
        raise ValueError(
            f"the input {image.name!r} of {path} must be images [N, channels, height, width] in "
            f"float32 or float16, but is of another type, or of {len(shape)} dimensions"
        )
    if isinstance(shape[0], int):
        raise ValueError(
            f"{path} takes {shape[0]} images at a time, and mining any number: export it with a "
            "dynamic batch: torch.onnx.export(..., dynamic_axes={'image': {0: 'batch'}})"
        )
    sides = (*shape[2:], size)
    for option, given, known in (
        ("--channels", channels, shape[1]),
        ("--size", size, shape[2]),
        ("--size", size, shape[3]),
    ):
        if isinstance(known, int) and given not in (None, known):
            raise ValueError(
                f"{path} was exported for images {list(shape)}, but {option} is {given}; leave it out, "
                "or export the network for it"
            )
    channels = shape[1] if isinstance(shape[1], int) else channels
    fixed = {side for side in sides if isinstance(side, int)}
    if channels is None or not fixed:
        missing = "--channels (1 or 3)" if channels is None else "--size (side in pixels)"
        raise ValueError(f"{path} leaves it open which images it takes ({list(shape)}); give {missing}")
    if channels not in (1, 3) or len(fixed) > 1:
        raise ValueError(
            f"{path} must take square images [N, 1 or 3, side, side], but takes {list(shape)}"
            + ("; channels come before height and width" if shape[3] in (1, 3) else "")
        )
    return channels, fixed.pop()


def _written(model: ModelFile, head: Head, metadata: ExportMetadata) -> bytes:
    g = Graph(model.opset)
    contract, classes = metadata.input, len(metadata.class_names)
    assert contract.size is not None
    image = g.input(IMAGE, FLOAT, ["batch", contract.channels, contract.size, contract.size])
    if model.inputs[0].kind == FLOAT16:
        image = g.cast(image, FLOAT16)
    features, logits = g.include(model, image, [head.features, head.logits])
    # In float32, as everywhere: maps of half precision are full of ties.
    maps = g.op(
        "Conv",
        g.cast(features, FLOAT),
        g.floats(head.weight[:, :, None, None]),
        kernel_shape=[1, 1],
    )
    flat = g.op("Reshape", g.cast(logits, FLOAT), g.ints([-1, classes]))
    g.output("logits", flat, FLOAT, ["batch", classes])
    g.output("cam", maps, FLOAT, ["batch", classes, "map_height", "map_width"])
    return g.serialise({KEY: to_json(metadata)}, __version__)


def _prove(content: bytes, head: Head, metadata: ExportMetadata, path: Path) -> None:
    """Run what was written on noise. ValueError where the maps' mean plus bias is not the logits."""
    side = metadata.input.size
    assert side is not None
    noise = np.random.default_rng(0).random((2, side, side), dtype=np.float32)
    # Blocks: of pixels that differ each from the next a network sees nothing but grey.
    noise[1] = np.kron(noise[1, ::8, ::8], np.ones((8, 8), np.float32))[:side, :side]
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "adopted.onnx"
        trial.write_bytes(content)
        try:
            miner = load_onnx_miner(trial, device="cpu")
            logits, cam = miner.session.run(["logits", "cam"], {IMAGE: miner.normalised(noise)})
        except Exception as error:  # of onnxruntime, which has no base of its own
            first = str(error).splitlines()[0].replace(str(trial), str(path))
            raise ValueError(
                f"{path} cannot be run with class activation maps beside it: {first:.300}. Are "
                "--features and --head what belongs together?"
            ) from error
    pooled = cam.mean((2, 3), dtype=np.float64) + head.bias
    furthest = np.abs(pooled - logits).max()
    largest = max(1e-3, np.abs(logits).max())
    if not furthest <= _TOLERANCES[metadata.precision] * largest:
        raise ValueError(
            f"the logits of {path} must be the mean of its class activation maps plus a bias, but "
            f"differ from it by up to {furthest:.3g} (largest logit {largest:.3g}): {head.features!r} "
            "is not what the linear layer takes the mean of. Name the feature map with --features"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
