"""Which kernels serve CUDA tensors, and how they join the operators.

Decided once, at import, without waking the driver: from what was installed and from
``CXR_FAST_CUDA``, which is one of

- ``auto`` (default): the fastest there is. ``cam`` by Triton; the others by CUDA C++, compiled by nvcc
  when the package was built or else by NVRTC at the first call, which CUDA builds of torch bring. Where
  neither is to be had, Triton for mining and labelling.
- ``nvrtc``: as ``auto``, without what nvcc compiled.
- ``triton``: leaves CUDA C++ out.
- ``reference``: plain PyTorch for everything.

What no kernel serves runs in plain PyTorch, as ``cxr-fast env`` shows; if that was not asked for and
the machine has a GPU, a warning says so once.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cxr_fast
from cxr_fast import reference
from cxr_fast.ops import library

# Operators by the kernels that can serve them.
BY_CUDA = ("mine_attention", "masked_gap", "aggregate_heatmap", "heatmap_boxes", "mine_cam",
           "label_components")  # fmt: skip
WAYS = ("auto", "nvrtc", "triton", "reference")
REFERENCE = "reference (plain PyTorch, slow)"
# bfloat16 on tensor cores, and what Triton supports.
LEAST_CAPABILITY_OF_TRITON = (8, 0)


def serve(extension: str | None) -> dict[str, str]:
    """Registers the kernels for CUDA tensors; says which serves each operator, and why.

    ``extension`` is the path of the compiled operators, or None. ValueError for an unknown
    ``CXR_FAST_CUDA``. Empty where torch was built without CUDA.
    """
    way = os.environ.get("CXR_FAST_CUDA", "auto")
    if way not in WAYS:
        raise ValueError(f"CXR_FAST_CUDA must be {', '.join(WAYS[:-1])} or {WAYS[-1]}, but is {way!r}")
    if torch.version.cuda is None:
        return {}
    if way == "reference" or os.environ.get("CXR_FAST_KERNELS") == "reference":
        return dict.fromkeys(("cam", *BY_CUDA), f"{REFERENCE}, as asked for")
    triton = _why_no_triton()
    served = {"cam": _serve_by_triton("cam", triton)}
    by_cuda, obstacle = "", None
    if way == "triton":
        obstacle = "CXR_FAST_CUDA is triton"
    elif extension is None:
        obstacle = "cxr_fast was installed without its extension"
    else:
        by_cuda, obstacle = _serve_by_cuda(extension, way)
    if obstacle is None:
        served |= dict.fromkeys(BY_CUDA, by_cuda)
    else:
        for name in BY_CUDA:
            by_triton = _serve_by_triton(name, triton) if name in TRITON else REFERENCE
            served[name] = f"{by_triton}, since {obstacle}"
    slow = [name for name, text in served.items() if text.startswith(REFERENCE)]
    if slow and way != "triton" and torch.cuda.device_count() > 0:
        warnings.warn(
            f"{', '.join(slow)}: no GPU kernels, plain PyTorch serves CUDA tensors slowly "
            f"({served[slow[-1]]}); `cxr-fast env` says more, CXR_FAST_CUDA=reference accepts it",
            stacklevel=2,
        )
    return served


def describe(device: int, extension: str) -> str:
    """Where the CUDA C++ code of a device came from, after loading it, or why there is none."""
    text = ctypes.create_string_buffer(4096)
    of_extension = ctypes.CDLL(extension).cxr_fast_describe_cuda
    of_extension.restype = ctypes.c_bool
    found = of_extension(device, text, ctypes.c_size_t(len(text)))
    return ("from " if found else "none: ") + text.value.decode()


# ---- CUDA C++ ----


def _serve_by_cuda(extension: str, way: str) -> tuple[str, str | None]:
    """Registers the CUDA C++ kernels; how their code comes about, or why there is none."""
    # What nvcc compiled lies beside the extension, wherever the Python files are.
    images = Path(extension).parent / "kernels"
    built = way == "auto" and any(images.glob("*.fatbin"))
    nvrtc = find_nvrtc()
    if not built and nvrtc is None:
        return "", "the package was built without nvcc and there is no NVRTC"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):  # nobody's home
        cache = tempfile.gettempdir()
    places = ("libcuda.so.1", nvrtc or "", images if built else "", _sources(), f"{cache}/cxr_fast")
    ctypes.CDLL(extension).cxr_fast_serve_cuda(*(os.fsencode(place) for place in places))
    return "CUDA C++, compiled " + ("by nvcc" if built else "at the first call by NVRTC"), None


def _sources() -> Path:
    spec = importlib.util.find_spec("cxr_fast.kernels")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [Path(folder) for folder in folders if (Path(folder) / "mine_attention.cu").exists()]
    return found[0] if found else Path(cxr_fast.__file__).parent / "kernels"


def find_nvrtc() -> Path | None:
    """The NVRTC that came with torch, or a toolkit's; of torch's own major version."""
    major = (torch.version.cuda or "").split(".")[0]
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    candidates = [path for folder in folders for path in folder.glob(f"*/lib/libnvrtc.so.{major}*")]
    candidates += Path(torch.__file__).parent.glob(f"lib/libnvrtc*.so.{major}*")
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    candidates += toolkit.glob(f"lib64/libnvrtc.so.{major}*")
    plain = [path for path in candidates if "builtins" not in path.name and ".alt." not in path.name]
    return plain[0] if plain else None


# ---- Triton ----


def _why_no_triton() -> str | None:
    """Why Triton cannot serve, or None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        import triton  # noqa: F401
    except Exception as error:  # whatever it is, the operators must still import
        return f"Triton does not import ({type(error).__name__}: {error})"
    return None


def _serve_by_triton(name: str, obstacle: str | None) -> str:
    if obstacle is not None:
        return f"{REFERENCE}: {obstacle}"
    for operator, kernel in TRITON[name].items():
        library.LIBRARY.impl(operator, kernel, "CUDA")
    return "Triton, compiled at the first call"


def _has_tensor_cores(tensor: Tensor) -> bool:
    return torch.cuda.get_device_capability(tensor.device) >= LEAST_CAPABILITY_OF_TRITON


def _cam(features: Tensor, weight: Tensor) -> Tensor:
    # float64 is for checking gradients, not for speed.
    if weight.dtype == torch.float64 or not _has_tensor_cores(features):
        return reference.cam(features, weight)
    from cxr_fast.kernels import cam

    result: Tensor = cam.cam(features, weight)
    return result


def _cam_backward(
    grad: Tensor, features: Tensor, weight: Tensor, need_features: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    if weight.dtype == torch.float64 or not _has_tensor_cores(features):
        from cxr_fast.ops.cam import backward_reference

        return backward_reference(grad, features, weight, need_features, need_weight)
    from cxr_fast.kernels import cam

    of_features, of_weight = cam.cam_backward(grad, features, weight, need_features, need_weight)
    return of_features, of_weight


def _mine_attention(cam: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    from cxr_fast.kernels import mine_attention as kernel

    if max(cam.shape[-2:]) > kernel.LARGEST_SIDE or not _has_tensor_cores(cam):
        return reference.mine_attention(cam, *settings)
    erased_at, extent = kernel.mine_attention(cam, *settings)
    return erased_at, extent


def _mine_cam(
    cam: Tensor,
    bias: Tensor | None,
    steps: int,
    threshold: float,
    connectivity: int,
    mode: str,
    *boxes: Any,
) -> tuple[Tensor, ...]:
    # One operator after the other, each by whatever serves it; ``boxes`` as heatmap_boxes takes them.
    ops = torch.ops.cxr_fast
    erased_at, extent = ops.mine_attention(cam, steps, threshold, connectivity, None, 1)
    logits = ops.masked_gap(cam, erased_at, steps)
    if bias is not None:
        logits = logits + bias[:, None]
    heatmap = ops.aggregate_heatmap(cam, erased_at, extent, mode)
    found = ops.heatmap_boxes(heatmap, *boxes, connectivity)
    return logits, erased_at, extent, heatmap, *found


def _label_components(mask: Tensor, connectivity: int) -> Tensor:
    if not _has_tensor_cores(mask):
        return reference.label_components(mask, connectivity)
    from cxr_fast.kernels import label_components as kernel

    labels: Tensor = kernel.label_components(mask, connectivity)
    return labels


TRITON: dict[str, dict[str, Callable[..., Any]]] = {
    "cam": {"cam": _cam, "cam_backward": _cam_backward},
    "mine_attention": {"mine_attention": _mine_attention},
    "mine_cam": {"mine_cam": _mine_cam},
    "label_components": {"label_components": _label_components},
}
