"""Which images an update sees: a function of the seed, the epoch and the update, and of nothing else.

So a run that goes on after a kill sees what it would have seen, and processes that share a batch
need not talk about it: each draws the whole order and takes its own part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxr_fast.training import augment
from cxr_fast.training.settings import TrainingSettings

Rows = NDArray[np.int64]

# Third words of the seeds: what a stream of random numbers is for.
_ORDER_OF_MINED, _ORDER, _CHANGES = 1, 2, 3


_Rows = TypeVar("_Rows", Rows, NDArray[np.float32])


class Images(Protocol):
    """uint8 pictures [N, S, S] that an array of positions picks from; an array, or one on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S)."""

    def __getitem__(self, rows: Rows) -> NDArray[np.uint8] | Tensor:
        """uint8 [n, S, S]."""


class Labelled(Protocol):
    """What training reads of an archive; ``archive.dataset.LabelledImages`` is one."""

    @property
    def images(self) -> Images:
        """uint8 [N, S, S]."""

    @property
    def labels(self) -> NDArray[np.float32]:
        """[N, C] in {0, 1}."""

    @property
    def names(self) -> tuple[str, ...]:
        """N names of the images."""


class Batch(NamedTuple):
    """``images`` float32 [n, 1, S, S] in [0, 1], to be erased first; ``labels`` [n, C]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Plan:
    """How the images of a stage fall into batches.

    ``kept`` images learn unerased, ``mined`` ones are erased (none but in the stage ``mining``);
    of each update's batch, ``erased`` are mined ones.
    """

    kept: Labelled
    mined: Labelled | None
    settings: TrainingSettings
    erased: int

    @property
    def updates(self) -> int:
        """Updates of one epoch. A short last batch is left out: it would upset normalisation."""
        if self.mined is not None:
            return max(1, len(self.mined.labels) // self.erased)
        return max(1, len(self.kept.labels) // self.settings.batch_size)

    def part(self, epoch: int, update: int, part: int, parts: int) -> Batch:
        """Part ``part`` of ``parts`` of an update's batch; ``epoch`` and ``update`` count from 0."""
        batch, seed = self.settings.batch_size, self.settings.seed
        picked: list[tuple[Labelled, Rows]] = []
        if self.mined is not None and self.erased:
            rows = _turns([seed, epoch, _ORDER_OF_MINED], len(self.mined.labels), update, self.erased)
            picked.append((self.mined, _own(rows, part, parts)))
        if self.erased < batch:
            rows = _turns([seed, epoch, _ORDER], len(self.kept.labels), update, batch - self.erased)
            picked.append((self.kept, _own(rows, part, parts)))
        pixels = [torch.as_tensor(source.images[rows]) for source, rows in picked]
        labels = [torch.as_tensor(source.labels[rows]) for source, rows in picked]
        images = torch.cat(pixels)[:, None].float() / 255
        changes = self._changes(epoch, update, part, parts)
        return Batch(augment.apply(images, changes), torch.cat(labels).float())

    def _changes(self, epoch: int, update: int, part: int, parts: int) -> NDArray[np.float32]:
        generator = _generator([self.settings.seed, epoch, _CHANGES, update])
        drawn = augment.draw(self.settings.augmentation, self.settings.batch_size, generator)
        mined, kept = drawn[: self.erased], drawn[self.erased :]
        return np.concatenate([_own(mined, part, parts), _own(kept, part, parts)])


def _own(rows: _Rows, part: int, parts: int) -> _Rows:
    size = len(rows) // parts
    return rows[part * size : (part + 1) * size]


def _turns(words: list[int], images: int, update: int, size: int) -> Rows:
    """Positions of an update's images: one random order after another, however often it takes."""
    first, offset = divmod(update * size, images)
    turns = 1 + (offset + size - 1) // images
    orders = [_generator([*words, first + turn]).permutation(images) for turn in range(turns)]
    return np.concatenate(orders)[offset : offset + size]


def _generator(words: list[int]) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
