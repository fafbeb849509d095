"""Triton kernels run on a GPU, or in numpy where TRITON_INTERPRET=1 stood before triton's import.

``test_interpreter.py`` starts a process of the second kind for the files ``test_triton_*.py``; on a
GPU they run in the suite's own process. ``TRITON_INTERPRET=1 pytest tests/kernels`` runs them too.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

collect_ignore_glob: list[str] = []


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    collect_ignore_glob += ["test_interpreter.py", "test_compilation.py"]
elif not _has_gpu():
    collect_ignore_glob += ["test_triton_*.py"]


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"
