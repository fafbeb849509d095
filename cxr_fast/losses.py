"""Losses of the paper: classification (Eq. 2-3) and knowledge preservation (Eq. 4-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# K of Eq. 5, under the names that ``models.Classifier.layers`` gives them.
PRESERVED_LAYERS = ("bottleneck3", "bottleneck4", "msa", "logits")


def classification_loss(logits: Tensor, labels: Tensor, balance: str = "none") -> Tensor:
    """Binary cross-entropy averaged over images and classes (Eq. 2-3).

    logits [N, C], labels [N, C] in {0, 1}. ``balance="wang"``: positives and negatives of the batch
    weighted by (P+N)/P and (P+N)/N.
    """
    if balance == "none":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels)
    positives = labels.sum()
    total = labels.numel()
    weight = torch.where(
        labels > 0, total / positives.clamp(min=1), total / (total - positives).clamp(min=1)
    )
    return nn.functional.binary_cross_entropy_with_logits(logits, labels, weight)


def pooled(output: Tensor) -> Tensor:
    """Global average pooling, g of Eq. 2, of ``output`` [N, D, H, W] -> [N, D], float32 at least.

    An output [N, D] is returned as it is, at least float32, too.
    """
    # Autocast gives half precision, whose difference of two like numbers has few digits left.
    wide = torch.promote_types(output.dtype, torch.float32)
    return output.mean((2, 3), dtype=wide) if output.dim() == 4 else output.to(wide)


def knowledge_preservation(
    current: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    layers: Sequence[str] = PRESERVED_LAYERS,
) -> Tensor:
    """How far a network has moved from its frozen start on the images that are not erased. ::

        L_KP = 1/|K| * sum over k in K of  1/M * sum over images of ||g(A_k) - g(B_k)||_2

    g is global average pooling. The distance is one l2 norm an image, then the mean over images; its
    gradient where both agree, as they do before the first update, is 0.

    Args:
        current: name -> output of that layer of the network in training, [M, D, H, W] or, pooled
            already (logits are), [M, D]; any float dtype.
        anchor: the same of the starting network in eval mode, [M, D, H, W] or [M, D]. No gradient
            flows into it.
        layers: K by name; the paper's are the default.

    Returns:
        L_KP, a float32 scalar (float64 where a layer is); 0 for M = 0 images. Differentiable in
        ``current``.

    Raises:
        ValueError: no layer, one that either side lacks, or shapes that differ.

    Source: Cai et al. 2018, Eq. 4-5.
    """
    if not layers:
        raise ValueError("layers must name at least one layer to compare; the paper takes four")
    distances = [_distance(name, current, anchor) for name in layers]
    return torch.stack(distances).mean()


def _distance(name: str, current: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """Eq. 4 for one layer."""
    for owner, outputs in (("current", current), ("anchor", anchor)):
        if name not in outputs:
            raise ValueError(
                f"{owner} must hold the layer {name!r}, but has {', '.join(outputs) or 'none'}; "
                "name the layers that both networks give"
            )
    ours, theirs = current[name], anchor[name].detach()
    pair = [pooled(output) for output in (ours, theirs) if output.dim() in (2, 4)]
    if len(pair) != 2 or pair[0].shape != pair[1].shape:
        raise ValueError(
            f"layer {name!r} must be [M, D, H, W] or [M, D], with the same M and D in both networks, "
            f"but is {list(ours.shape)} in current and {list(theirs.shape)} in anchor"
        )
    # The derivative of torch's norm at 0 is 0; the square root of a sum would give NaN there.
    distance: Tensor = torch.linalg.vector_norm(pair[0] - pair[1], dim=1)
    return distance.sum() / max(len(distance), 1)
