"""The operators of attention mining, for torch tensors.

Each is registered with torch (schema, kernels, fake, autograd), so it runs eagerly, under
``torch.compile(fullgraph=True)``, ``torch.export`` and autocast. ``cxr_fast.reference`` has the same
functions in plain PyTorch; ``cxr_fast.runtime`` has them for numpy arrays, without torch.
"""

from __future__ import annotations

from cxr_fast.ops import cuda, library
from cxr_fast.ops.aggregate_heatmap import aggregate_heatmap
from cxr_fast.ops.attention_mining import attention_mining, mine_cam
from cxr_fast.ops.cam import cam
from cxr_fast.ops.heatmap_boxes import heatmap_boxes
from cxr_fast.ops.label_components import label_components
from cxr_fast.ops.masked_gap import masked_gap
from cxr_fast.ops.mine_attention import mine_attention
from cxr_fast.reference import HeatmapBoxes, MinedAttention, MiningResult

_EXTENSION = library.find_extension()
CPU_KERNELS = library.load_kernels(_EXTENSION)
# Operator to what serves it on CUDA tensors; empty where torch was built without CUDA.
CUDA_KERNELS = cuda.serve(_EXTENSION)


def describe_cuda(device: int) -> str:
    """Where the CUDA C++ kernels of a device came from, after loading them, or why there are none."""
    if _EXTENSION is None or not any(text.startswith("CUDA C++") for text in CUDA_KERNELS.values()):
        return "is not in use"
    return cuda.describe(device, _EXTENSION)


__all__ = [
    "CPU_KERNELS",
    "CUDA_KERNELS",
    "HeatmapBoxes",
    "MinedAttention",
    "MiningResult",
    "aggregate_heatmap",
    "attention_mining",
    "cam",
    "describe_cuda",
    "heatmap_boxes",
    "label_components",
    "masked_gap",
    "mine_attention",
    "mine_cam",
]
