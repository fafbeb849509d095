"""Adversarial erasing with `cxr_fast.ops`: a training loop before and after.

    python erasing_loop.py

In adversarial erasing (Wei et al. 2017; ACoL, Zhang et al. 2018) a classifier is trained on the
features, then on what is left of them when the region that it looked at is erased, and so on.
``logits_before`` is how that is usually written; ``logits_after`` gives the same logits and gradients.
Nothing else in the loop changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cxr_fast import ops

STEPS = 3  # losses on the whole features and on two erasures of them
THRESHOLD = 0.5  # of a map's range: what counts as the region looked at


def logits_before(features: Tensor, head: nn.Linear) -> Tensor:
    """Features [N, D, H, W] -> logits [N, C, T]; an erased copy of the features for each class."""
    from scipy import ndimage

    alive = features.new_ones(len(features), head.out_features, *features.shape[2:])
    logits = []
    for _ in range(STEPS):
        erased = features[:, None] * alive[:, :, None]  # [N, C, D, H, W]
        logits.append((erased.mean((3, 4)) * head.weight).sum(2) + head.bias)
        cam = torch.einsum("ncdhw,cd->nchw", erased, head.weight).detach().cpu().numpy()
        alive = alive.clone()
        for n, maps in enumerate(cam):
            for c, cam_of_class in enumerate(maps):
                left = alive[n, c].bool().cpu().numpy()
                if not left.any():
                    continue
                low, high = cam_of_class[left].min(), cam_of_class[left].max()
                if low == high:
                    continue
                labels, _ = ndimage.label(
                    left & (cam_of_class >= low + THRESHOLD * (high - low)), structure=[[1] * 3] * 3
                )
                peak = labels[left & (cam_of_class == high)][0]
                alive[n, c][torch.from_numpy(labels == peak).to(alive.device)] = 0
    return torch.stack(logits, 2)


def logits_after(features: Tensor, head: nn.Linear) -> Tensor:
    """Features [N, D, H, W] -> logits [N, C, T], the same, without copies or trips to the CPU."""
    cam = ops.cam(features, head.weight)
    mined = ops.mine_attention(cam, steps=STEPS, threshold=THRESHOLD)
    return ops.masked_gap(cam, mined.erased_at, steps=STEPS) + head.bias[:, None]


class Network(nn.Module):
    """A small backbone, and the linear head behind global average pooling."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(32, classes)


def examples(count: int, generator: torch.Generator, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 64, 64] with two striped spots each; labels [N, C]: their direction."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    images = 0.3 * torch.randn(count, 1, 64, 64, generator=generator)
    labels = torch.zeros(count, classes)
    for n in range(count):
        kind = int(torch.randint(classes, (1,), generator=generator))
        angle = torch.tensor(kind * torch.pi / classes)
        stripes = torch.sin(1.3 * (x * angle.cos() + y * angle.sin()))
        for centre in torch.rand(2, 2, generator=generator) * 48 + 8:
            images[n, 0] += stripes * ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 64)
        labels[n, kind] = 1
    return images, labels


def train(
    logits_of: Callable[[Tensor, nn.Linear], Tensor], updates: int = 60
) -> tuple[list[float], float]:
    """The loop that is left alone: losses of all updates, and the seconds that erasure took."""
    torch.manual_seed(0)
    network, generator = Network(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses, seconds = [], 0.0
    for _ in range(updates):
        images, labels = examples(16, generator)
        features = network.backbone(images)
        began = time.perf_counter()
        logits = logits_of(features, network.head)
        seconds += time.perf_counter() - began
        target = labels[:, :, None].expand_as(logits)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, seconds


def main(arguments: Sequence[str] = ()) -> None:
    """Train the same network both ways."""
    for name, logits_of in (("before", logits_before), ("after", logits_after)):
        losses, seconds = train(logits_of)
        each = seconds * 1000 / len(losses)
        print(f"{name:7}loss {losses[0]:.4f} -> {losses[-1]:.4f}, {each:6.2f} ms an update")


if __name__ == "__main__":
    main()
