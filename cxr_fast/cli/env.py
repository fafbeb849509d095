"""``cxr-fast env``."""

from __future__ import annotations

import click

from cxr_fast import __version__
from cxr_fast.cli.options import cores


@click.command()
def env() -> None:
    """Say which kernels serve here, and why."""
    import platform

    import numpy

    from cxr_fast import runtime

    click.echo(f"cxr_fast {__version__}, Python {platform.python_version()}, {cores()} cores")
    click.echo(f"numpy {numpy.__version__}: kernels {runtime.instruction_set()}")
    try:
        import torch
    except ImportError:
        click.echo("torch: not installed (pip install 'cxr_fast[torch]')")
        return
    from cxr_fast import ops
    from cxr_fast.mining import resolve_precision
    from cxr_fast.ops import cuda, library

    click.echo(f"torch {torch.__version__}: CPU kernels {ops.CPU_KERNELS}")
    cpu = resolve_precision("auto", torch.device("cpu"))
    click.echo(f"precision auto on this processor: {str(cpu).removeprefix('torch.')}")
    if torch.version.cuda is None:
        click.echo("CUDA: this torch was built without it")
        return
    click.echo(f"CUDA {torch.version.cuda}: what serves each operator")
    width = max(map(len, ops.CUDA_KERNELS))
    for name, served in ops.CUDA_KERNELS.items():
        click.echo(f"  {name:<{width}}  {served}")
    if not torch.cuda.is_available():
        click.echo("no GPU is visible here")
        return
    extension = library.find_extension()
    in_use = any(served.startswith("CUDA C++") for served in ops.CUDA_KERNELS.values())
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        code = cuda.describe(device, extension) if extension and in_use else "not in use"
        click.echo(
            f"cuda:{device} {torch.cuda.get_device_name(device)}, compute capability {major}.{minor}: "
            f"CUDA C++ {code}"
        )
