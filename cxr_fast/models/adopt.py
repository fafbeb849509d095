"""Weights of other people's ResNets as models of ours.

torchvision's, timm's and torchxrayvision's ResNet-18, -34 and -50 are the same network under the same
names: that of ``resnet``, without aggregation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from cxr_fast.config import MiningSettings
from cxr_fast.files import require_new
from cxr_fast.model_files import model_digest
from cxr_fast.models.card import Architecture, Backbone, ModelCard
from cxr_fast.models.checkpoint import save_checkpoint
from cxr_fast.models.msa import Classifier
from cxr_fast.models.weights import copy_weights, read_state_dict

Source = Literal["torchvision", "timm", "torchxrayvision"]

# In the order of the outputs of torchxrayvision's resnet50-res512-all.
TORCHXRAYVISION_FINDINGS = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
    "Lung Lesion",
    "Fracture",
    "Lung Opacity",
    "Enlarged Cardiomediastinum",
)


@dataclass(frozen=True)
class _Known:
    """What a library's weights come with; None where they say nothing."""

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    class_names: tuple[str, ...] | None = None


# Of ImageNet, as both libraries normalise.
_IMAGENET = _Known(3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KNOWN: Mapping[str, _Known] = {
    "torchvision": _IMAGENET,
    "timm": _IMAGENET,
    # Grey levels from -1024 to 1024.
    "torchxrayvision": _Known(1, (0.5,), (1 / 2048,), 512, TORCHXRAYVISION_FINDINGS),
}
# What wrappers put before every name: DataParallel, torchxrayvision, Lightning.
_PREFIXES = ("", "module.", "model.", "module.model.", "model.model.", "backbone.")
# torchxrayvision's operating points: of its probabilities, not of the network.
_IGNORED = ("op_threshs",)
# What tells another network: a pattern of its names, and what it is called.
_OTHERS = (
    (r"conv1\.0\.weight", "a ResNet with a deep stem (timm's resnet50d, ResNet-C)"),
    (r"layer\d\.0\.downsample\.2\.", "a ResNet that averages in its shortcuts (ResNet-D)"),
    (r"layer\d\.\d+\.(se|attn)\.", "a ResNet with attention in its blocks (SE-ResNet)"),
    (r"layer3\.6\.", "a deeper ResNet (101 or 152)"),
    (r"(.*\.)?denseblock\d", "a DenseNet"),
    (r"(.*\.)?(attn|self_attention)\.", "a transformer"),
)


def adopt_weights(
    file: str | Path,
    out: str | Path,
    source: Source | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    mining: MiningSettings | None = None,
    half: bool = False,
) -> ModelCard:
    """Write the state_dict ``file`` of a ResNet-18, -34 or -50 to the new checkpoint ``out``.

    ``source`` is the library whose way to prepare images the network was trained with; what is given
    beside it takes its place. The rest is as in ``ModelCard``, whose ``input_size`` in pixels is
    ``size``; weights are stored as float16 if ``half``. Raises FileExistsError where ``out`` is,
    FileNotFoundError where ``file`` is not, and ValueError for weights of another network and for
    what the file does not say and nobody gave.
    """
    path, target = Path(file), Path(out)
    if source is not None and source not in get_args(Source):
        raise ValueError(f"the source must be {', '.join(get_args(Source))}, but is {source!r}")
    require_new(target)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file of weights, but there is no such file")
    weights = _resnet_weights(read_state_dict(path), path)
    channels, classes = weights["conv1.weight"].shape[1], weights["fc.weight"].shape[0]
    known = _KNOWN[source] if source else None
    if known and known.channels != channels and mean is None:
        raise ValueError(
            f"{path} takes {channels} channels, where weights of {source} take {known.channels}: say "
            "how its images are scaled, with --mean and --std, or --range"
        )
    names = class_names or (known.class_names if known else None)
    _require(names, "--classes: the names of the logits, in their order", path)
    side = size or (known.size if known else None)
    _require(side, "--size: the side in pixels of the images it was trained on", path)
    scaling = (mean, std) if mean is not None else ((known.mean, known.std) if known else None)
    _require(scaling, "--mean and --std, or --range, or the library with --from", path)
    assert names
    assert side
    assert scaling
    assert scaling[1] is not None
    if len(names) != classes:
        raise ValueError(
            f"{path} gives {classes} logits, so that --classes must be {classes} names, but they are "
            f"{len(names)}: {', '.join(names):.200}"
        )
    card = ModelCard(
        Architecture(_backbone(weights, path), "none", in_channels=channels),
        names,
        side,
        scaling[0] or (),
        scaling[1],
        mining=mining or MiningSettings(),
        provenance=f"Adopted from {path.name} (SHA-256 {model_digest(path)}).",
    )
    model = Classifier(card.architecture, classes)
    copy_weights(model.state_dict(), weights, path, _ADVICE)
    save_checkpoint(target, model.eval(), card, dtype=torch.float16 if half else torch.float32)
    return card


_ADVICE = (
    "Only ResNet-18, -34 and -50 are read from their weights alone; export any other network to ONNX "
    "(docs/own-classifier.md) and adopt that file."
)


def _require(value: object, what: str, path: Path) -> None:
    if value is None:
        raise ValueError(f"{path} does not say it itself; give {what}")


def _resnet_weights(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The same tensors under torchvision's names. ValueError where they are of no ResNet."""
    weights = {name: value for name, value in weights.items() if name not in _IGNORED}
    for prefix in _PREFIXES:
        if f"{prefix}layer1.0.conv1.weight" not in weights:
            continue
        if others := sorted(name for name in weights if not name.startswith(prefix)):
            raise ValueError(
                f"{path} has beside a ResNet under {prefix!r} what may change its logits: "
                f"{', '.join(others[:3])}. Save the state_dict of the ResNet alone."
            )
        cut = {name.removeprefix(prefix): value for name, value in weights.items()}
        _refuse_others(cut, path)
        head = sorted(name for name in cut if name.startswith("fc."))
        linear = [name for name in head if name.endswith(".weight")]
        # Also a linear layer behind a dropout, which has no tensors: fc.1.weight.
        if len(head) != 2 or len(linear) != 1 or cut[linear[0]].dim() != 2:
            found = ", ".join(f"{name} {list(cut[name].shape)}" for name in head) or "nothing named fc"
            raise ValueError(
                f"{path} must end in global average pooling and one linear layer (fc.weight, fc.bias), "
                f"but has {found}: a hidden layer between features and logits leaves no class "
                "activation maps to mine. Train the network with a single linear layer."
            )
        for name in head:
            cut[f"fc.{name.rpartition('.')[2]}"] = cut.pop(name)
        first = cut.get("conv1.weight")
        if first is None or first.dim() != 4 or first.shape[1] not in (1, 3):
            raise ValueError(
                f"conv1.weight in {path} must be [64, 1 or 3, 7, 7], but is "
                f"{'absent' if first is None else list(first.shape)}. {_ADVICE}"
            )
        return cut
    _refuse_others(weights, path)
    some = ", ".join(sorted(weights)[:3])
    raise ValueError(
        f"{path} must hold the weights of a ResNet (conv1.weight, layer1.0.conv1.weight, ...), but "
        f"holds {some or 'none'}. {_ADVICE}"
    )


def _refuse_others(weights: Mapping[str, Tensor], path: Path) -> None:
    for pattern, name in _OTHERS:
        if any(re.match(pattern, key) for key in weights):
            raise ValueError(f"{path} has the weights of {name}. {_ADVICE}")


def _backbone(weights: Mapping[str, Tensor], path: Path) -> Backbone:
    """Which backbone has tensors of these names."""
    blocks = {name.split(".conv1")[0] for name in weights if name.endswith(".conv1.weight")}
    for backbone in get_args(Backbone):
        with torch.device("meta"):
            own = Classifier(Architecture(backbone, "none"), 1).state_dict()
        counters = {name for name in own if name.endswith("num_batches_tracked")}
        if own.keys() - counters <= weights.keys() <= own.keys():
            found: Backbone = backbone
            return found
    raise ValueError(
        f"{path} has the weights of a network of {len(blocks)} residual blocks that is neither "
        f"{', nor '.join(get_args(Backbone))}. {_ADVICE}"
    )
