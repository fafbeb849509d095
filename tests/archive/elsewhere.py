"""Images that other processes than this one have trouble with; those must be able to import it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cxr_fast.archive.images import list_images
from cxr_fast.archive.sources import FileList


@dataclass(frozen=True)
class Elsewhere(FileList):
    """Files that raise ``trouble`` outside the process that listed them."""

    home: int
    trouble: Exception
    # Where trouble is noted; once it is, a list with ``once`` has none any more.
    note: str
    once: bool
    # Only every so many images have it.
    every: int = 1

    def read(self, index: int) -> bytes:
        if (
            index % self.every == 0
            and os.getpid() != self.home
            and not (self.once and os.path.exists(self.note))
        ):
            Path(self.note).touch()
            raise self.trouble
        return super().read(index)


def elsewhere(
    folder: Path, note: Path, trouble: Exception, once: bool = False, every: int = 1
) -> Elsewhere:
    images, home = list_images(folder), os.getpid()
    return Elsewhere(images.store, images.root, images.rows, home, trouble, str(note), once, every)
