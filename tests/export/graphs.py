"""What tests of the export share: networks with statistics that are not trivial, graphs, sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from cxr_fast.config import MiningSettings
from cxr_fast.export.command import describe
from cxr_fast.export.graph import FLOAT, INT64, Graph
from cxr_fast.export.metadata import ExportMetadata, InputContract
from cxr_fast.export.model import mined, onnx_file
from cxr_fast.export.network import Maps
from cxr_fast.models import Architecture, FoldedClassifier, ModelCard, build, fold

ALL_MAPS = {"heatmap": True, "erased_at": True}


def session(content: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def outputs(content: bytes | onnxruntime.InferenceSession, **feeds: Any) -> dict[str, np.ndarray]:
    """The outputs by name."""
    run = session(content) if isinstance(content, bytes) else content
    names = [output.name for output in run.get_outputs()]
    return dict(zip(names, run.run(names, feeds), strict=True))


def mining_file(
    settings: MiningSettings, classes: int, size: tuple[int, int] | None, opset: int = 18
) -> bytes:
    """A graph of the mining alone: cam and image_size in, all outputs but logits out."""
    g = Graph(opset)
    cam = g.input("cam", FLOAT, ["batch", classes, *(size or ("rows", "columns"))])
    image_size = g.cast(g.input("image_size", INT64, ["batch", 2]), FLOAT)
    metadata = ExportMetadata(
        form="end2end",
        precision="float32",
        class_names=tuple(map(str, range(classes))),
        input=InputContract(False, 1, 32, (0.5,), (0.25,)),
        mining=settings,
        outputs=("boxes", "scores", "counts", "heatmap", "erased_at"),
    )
    mined(g, Maps(cam, size), metadata, image_size)
    return g.serialise({}, "0")


def network(card: ModelCard, seed: int = 0, dtype: torch.dtype = torch.float32) -> FoldedClassifier:
    """A folded network with random weights and statistics."""
    torch.manual_seed(seed)
    model = build(card).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.8, 1.25)
    with torch.no_grad():
        model.fc.bias.normal_()
    return fold(model).to(dtype)


def card_of(architecture: Architecture, size: int = 64, **values: Any) -> ModelCard:
    return ModelCard(architecture, ("one", "two", "three"), size, **values)


def exported(model: FoldedClassifier, card: ModelCard, form: Any = "end2end", **options: Any) -> bytes:
    opset = options.pop("opset", None)
    return onnx_file(model, describe(model, card, form, wanted=ALL_MAPS, **options), opset)
