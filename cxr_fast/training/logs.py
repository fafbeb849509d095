"""What a training writes down as it goes: TensorBoard's log, and a table with a row an epoch."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxr_fast.files import write_whole


class Board:
    """TensorBoard's log; nothing in processes other than the first."""

    def __init__(self, out: Path, writes: bool, done: int) -> None:
        self._writer: Any = None
        if writes:
            from tensorboardX import SummaryWriter

            # What was logged past the state that the training goes on from is struck out.
            self._writer = SummaryWriter(
                str(out / "tensorboard"), purge_step=done + 1 if done else None
            )

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *unused: object) -> None:
        if self._writer is not None:
            # A log that a full disk cuts short must not hide what ended the training.
            with contextlib.suppress(OSError):
                self._writer.close()

    def write(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Log values under ``group``, after ``step`` updates."""
        if self._writer is not None:
            # A finding without an AUROC in a few validation images is no divergence to be warned of.
            for name, value in values.items():
                if math.isnan(value):
                    continue
                self._writer.add_scalar(f"{group}/{name}", value, step)


def write_csv(path: Path, history: list[dict[str, float]]) -> None:
    """Write ``metrics.csv``: what was measured after every epoch, a row each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_whole(path, text.getvalue().encode())
