"""Every CUDA kernel once or twice on small input, compared with the CPU: for compute-sanitizer, which
makes all of it a hundred times slower.

``python tests/cuda/small_set.py``; ``--without-triton`` leaves ``cam`` to the CPU.
"""

from __future__ import annotations

import sys

import torch

from cxr_fast import ops


def main(triton: bool) -> int:
    """0 if the GPU agrees with the CPU."""
    torch.manual_seed(0)
    for n, d, height, width, c in ((2, 48, 32, 32, 5), (1, 20, 50, 64, 3), (1, 16, 70, 66, 2)):
        features = torch.randn(n, d, height, width)
        features = torch.nn.functional.avg_pool2d(features, 5, 1, 2).to(torch.bfloat16)
        weight = torch.randn(c, d)
        given = ops.cam(features, weight).cuda()
        for layout in (torch.contiguous_format, torch.channels_last) if triton else ():
            x = features.cuda().contiguous(memory_format=layout).requires_grad_()
            w = weight.cuda().requires_grad_()
            cam = ops.cam(x, w)
            torch.testing.assert_close(cam.cpu(), ops.cam(features, weight), rtol=1e-4, atol=1e-4)
            ops.masked_gap(cam, ops.mine_attention(cam).erased_at).sum().backward()
        for upsample, select in ((1, "components"), (2, "peak")):
            settings = {"upsample": upsample, "select": select, "thresholds": (0.3, 0.7)}
            ours, theirs = ops.mine_cam(given, **settings), ops.mine_cam(given.cpu(), **settings)
            for a, b in zip((*ours.mined, ours.heatmap, *ours.found),
                            (*theirs.mined, theirs.heatmap, *theirs.found), strict=True):  # fmt: skip
                assert torch.equal(a.cpu(), b)
        heatmap = ops.aggregate_heatmap(given, ours.mined)
        assert torch.equal(heatmap, ours.heatmap)
        noise = torch.rand(2, height, width) < 0.5
        assert torch.equal(ops.label_components(noise.cuda()).cpu(), ops.label_components(noise))
    torch.cuda.synchronize()
    print("the GPU agrees with the CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main("--without-triton" not in sys.argv))
