"""``cxr-fast env``."""

from __future__ import annotations

import json
from typing import Any

import click

from cxr_fast import __version__
from cxr_fast.cli.commands import Command
from cxr_fast.machine import cores


@click.command(
    cls=Command,
    short_help="Say which kernels serve here, and why.",
    examples=[
        "cxr-fast env",
    ],
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def env(as_json: bool) -> None:
    """Say which kernels serve here, and why."""
    found = _found()
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"cxr_fast {found['cxr_fast']}, Python {found['python']}, {found['cores']} cores")
    click.echo(f"numpy {found['numpy']}: kernels {found['numpy_kernels']}")
    if "torch" not in found:
        click.echo("torch: not installed (pip install 'cxr_fast[torch]')")
        return
    click.echo(f"torch {found['torch']}: CPU kernels {found['cpu_kernels']}")
    click.echo(f"precision auto on this processor: {found['cpu_precision']}")
    if found["cuda"] is None:
        click.echo("CUDA: this torch was built without it")
        return
    click.echo(f"CUDA {found['cuda']}: what serves each operator")
    width = max(map(len, found["cuda_kernels"]))
    for name, served in found["cuda_kernels"].items():
        click.echo(f"  {name:<{width}}  {served}")
    for gpu in found["gpus"]:
        click.echo(f"{gpu['device']} {gpu['name']}, compute capability {gpu['capability']}: "
                   f"CUDA C++ {gpu['code']}")  # fmt: skip
    if not found["gpus"]:
        click.echo("no GPU is visible here")


def _found() -> dict[str, Any]:
    import platform

    import numpy

    from cxr_fast import runtime

    found: dict[str, Any] = {
        "cxr_fast": __version__,
        "python": platform.python_version(),
        "cores": cores(),
        "numpy": numpy.__version__,
        "numpy_kernels": runtime.instruction_set(),
    }
    try:
        import torch
    except ImportError:
        return found
    from cxr_fast import ops
    from cxr_fast.mining import resolve_precision
    from cxr_fast.ops import cuda, library

    precision = resolve_precision("auto", torch.device("cpu"))
    found |= {
        "torch": torch.__version__,
        "cpu_kernels": ops.CPU_KERNELS,
        "cpu_precision": str(precision).removeprefix("torch."),
        "cuda": torch.version.cuda,
        "cuda_kernels": dict(ops.CUDA_KERNELS) if torch.version.cuda else {},
        "gpus": [],
    }
    extension = library.find_extension()
    in_use = any(served.startswith("CUDA C++") for served in ops.CUDA_KERNELS.values())
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        major, minor = torch.cuda.get_device_capability(device)
        gpu = {
            "device": f"cuda:{device}",
            "name": torch.cuda.get_device_name(device),
            "capability": f"{major}.{minor}",
            "code": cuda.describe(device, extension) if extension and in_use else "not in use",
        }
        found["gpus"].append(gpu)
    return found
