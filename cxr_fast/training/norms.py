"""Batch normalisation over the images of all processes, so that how many there are changes nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
from torch import Tensor, nn


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """``BatchNorm2d`` whose statistics are those of all processes' images, equally many in each.

    torch's own ``SyncBatchNorm`` does the same on a GPU, and refuses to run on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[n, D, H, W] -> the same, normalised."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        axes, processes = (0, 2, 3), dist.get_world_size()
        wide = x.float()
        mean = collective.all_reduce(wide.mean(axes)) / processes
        centred = wide - mean[:, None, None]
        variance = collective.all_reduce(centred.square().mean(axes)) / processes
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = (
                self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            )
            count = x.numel() // x.shape[1] * processes
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(x.dtype)


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Make every ``BatchNorm2d`` of ``model`` look at all processes' images, in place."""
    for parent in model.modules():
        for name, norm in parent.named_children():
            if type(norm) is not nn.BatchNorm2d:
                continue
            if device.type == "cuda":
                synced = nn.SyncBatchNorm.convert_sync_batchnorm(norm)
            else:
                synced = SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum)
                synced.load_state_dict(norm.state_dict())
                synced.train(norm.training)
            setattr(parent, name, synced)


def freeze(module: nn.Module) -> None:
    """Keep the normalisations of ``module`` in eval mode: running statistics are used, and kept."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
