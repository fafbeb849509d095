"""A large archive of few pictures, for runs that are stopped midway."""

from __future__ import annotations

from pathlib import Path


def linked_images(archive: Path, folder: Path, count: int) -> Path:
    """A folder of ``count`` links to the pictures of a phantom archive, taken in turn."""
    folder.mkdir()
    drawn = sorted((archive / "images").iterdir())
    for i in range(count):
        (folder / f"{i:04d}.png").symlink_to(drawn[i % len(drawn)])
    return folder
