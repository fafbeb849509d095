from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cxr_fast.archive.sources import remote

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def real_images() -> Callable[[str, int], list[Path]]:
    """The first files of a folder of real data beside the repository; skips where there is none."""

    def first(name: str, count: int) -> list[Path]:
        folder = SHARED_DATA / name
        if not folder.is_dir():
            pytest.skip(f"no real images at {folder}")
        return sorted(folder.iterdir())[:count]

    return first


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that fail are tried again at once."""
    monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0, 0.0))
