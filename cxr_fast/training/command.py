"""What ``cxr-fast train`` does, apart from talking: everything is checked before any work begins.

Image-level labels are all that is read: neither this file nor what it calls opens a table of boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lightning_fabric import Fabric

from cxr_fast.archive.chestxray14 import read_split, read_split_lines
from cxr_fast.archive.dataset import Archive, load_images, open_archive, split_by_patient
from cxr_fast.files import require_writable
from cxr_fast.models import Architecture, ModelCard, load_checkpoint
from cxr_fast.models.card import recommended_mining
from cxr_fast.training.loop import BEST, LAST, Data, open_fabric
from cxr_fast.training.preconditions import require_own_folder
from cxr_fast.training.settings import PARTS, TrainingSettings, from_values, read_yaml
from cxr_fast.training.stages import Reporter, StageResult, train_base, train_from
from cxr_fast.training.state import STATE

# What a run is told besides its settings, with what holds where nothing is said. The network of the
# stage base is a published one, without aggregation, unless its fields are given.
_NETWORK = {entry.name: entry.default for entry in fields(Architecture)} | {"msa": None}
_OTHERS: Mapping[str, Any] = {
    "start": None,
    "mine_list": None,
    "imagenet": None,
    "input_size": 512,
    "standardise": False,
    **_NETWORK,
}


@dataclass(frozen=True)
class TrainingJob:
    """A training that may begin: archive read, arguments checked."""

    archive: Archive
    settings: TrainingSettings
    card: ModelCard
    others: Mapping[str, Any]
    cache: Path | None
    out: Path

    def run(
        self,
        say: Callable[[str], None],
        images_read: Callable[[str], Callable[[int, int], None] | None],
        reporter: Reporter | None = None,
        threads: int = 2,
    ) -> StageResult:
        """Read the images, through the cache, and train."""
        fabric = open_fabric(self.settings.precision)
        data = self._data(images_read, threads)
        if fabric.is_global_zero:
            counts = [f"{len(part.labels)} {name}" for name, part in data._asdict().items() if part]
            listed = len(read_split(self.others["mine_list"])) if data.mined else 0
            if data.mined and listed > len(data.mined.labels):
                left_out = listed - len(data.mined.labels)
                say(f"{left_out} images to mine are of patients held back for validation: left out")
            say(f"{', '.join(counts)} images; {fabric.world_size} processes on {fabric.device.type}")
        return self._train(data, fabric, reporter)

    def _data(
        self, images_read: Callable[[str], Callable[[int, int], None] | None], threads: int
    ) -> Data:
        archive, size = self.archive, self.card.input_size

        def read(names: tuple[str, ...], what: str) -> Any:
            return load_images(
                archive, names, size, cache=self.cache, threads=threads, progress=images_read(what)
            )

        train, held = self._split()
        mined = self._mined(held)
        return Data(
            read(train, "training images"),
            read(held, "validation images") if held else None,
            read(mined, "images to mine") if mined else None,
        )

    def _split(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Images to train on, and those held back."""
        names = self.archive.split("train_val")
        if not self.settings.validation:
            return names, ()
        patients = self.archive.patients(names)
        ours, theirs = split_by_patient(patients, self.settings.validation, seed=0)
        return tuple(names[i] for i in ours), tuple(names[i] for i in theirs)

    def _mined(self, held: tuple[str, ...]) -> tuple[str, ...]:
        """Images to mine, without those of patients who are held back: these judge, and never learn."""
        listed = self.others["mine_list"]
        if not listed:
            return ()
        names = read_split(listed)
        judging = set(self.archive.patients(held).tolist())
        patients = self.archive.patients(names).tolist()
        kept = tuple(n for n, patient in zip(names, patients, strict=True) if patient not in judging)
        if not kept:
            raise ValueError(
                f"{listed} names images of patients who are held back for validation, and no others; "
                "name more, or train with --validation 0"
            )
        return kept

    def _train(self, data: Data, fabric: Fabric, reporter: Reporter | None) -> StageResult:
        if self.settings.stage == "base":
            imagenet = self.others["imagenet"]
            return train_base(
                data,
                self.card,
                self.settings,
                self.out,
                imagenet=Path(imagenet) if imagenet else None,
                fabric=fabric,
                reporter=reporter,
            )
        return train_from(
            Path(self.others["start"]),
            data,
            self.settings,
            self.out,
            aggregation=self.others["msa"] or "bilinear",
            fabric=fabric,
            reporter=reporter,
        )


def prepare(
    archive: Path,
    out: Path,
    config: Path | None,
    flags: Mapping[str, Any],
    findings: tuple[str, ...],
    cache: Path | None,
    missing: Literal["refuse", "skip"],
) -> TrainingJob:
    """Check the arguments of ``cxr-fast train`` and read the tables they name; writes nothing.

    ``flags`` that are not None count over the values of ``config``. Raises FileNotFoundError or
    ValueError, in a sentence, for anything that is missing or wrong.
    """
    values = read_yaml(config) if config else {}
    given = {k: values.pop(k) for k in list(values) if k in _OTHERS}
    for name, value in flags.items():
        if value is None:
            continue
        if name in _OTHERS:
            given[name] = value
            continue
        part = next((p for p, kind in PARTS.items() if name in {f.name for f in fields(kind)}), None)
        if part and values.get(part) is None:
            values[part] = {}
        (values[part] if part else values)[name] = value
    given = {name: value for name, value in given.items() if value is not None}
    others = {**_OTHERS, **given}
    settings = from_values(values)
    _check_starts(settings, others)
    require_writable(out)
    require_own_folder(out, (BEST, LAST), STATE)
    _check_kept(out, others)
    if settings.stage == "base":
        network = {name: others[name] for name in _NETWORK} | {"msa": others["msa"] or "none"}
        architecture = Architecture(**network)
        card = ModelCard(
            architecture,
            findings,
            others["input_size"],
            standardise=others["standardise"],
            mining=recommended_mining(architecture),
        )
    else:
        _, card = load_checkpoint(Path(others["start"]))
        _check_network(settings, card, given)
    opened = open_archive(archive, card.class_names, missing=missing)
    if others["mine_list"]:
        _check_mine_list(Path(others["mine_list"]), opened)
    return TrainingJob(opened, settings, card, others, cache, out)


def _check_network(settings: TrainingSettings, card: ModelCard, given: Mapping[str, Any]) -> None:
    """What is said of the network is true of the one to go on from: only the stage base makes one."""
    has = {**vars(card.architecture), "input_size": card.input_size, "standardise": card.standardise}
    if settings.stage == "msa-init":
        has.pop("msa")
    for name, value in given.items():
        if name in has and value != has[name]:
            raise ValueError(
                f"{name} is {value!r}, but the model to go on from has {has[name]!r}; only the stage "
                "base makes a network: leave it out, or start from another"
            )


def _check_starts(settings: TrainingSettings, others: Mapping[str, Any]) -> None:
    """Which stage needs which of the files."""
    stage = settings.stage
    for name in ("start", "mine_list", "imagenet"):
        if not isinstance(others[name], str | None):
            raise ValueError(f"{name} must be the name of a file, but is {others[name]!r}")
    if others["imagenet"] is not None:
        if stage != "base":
            raise ValueError(f"the stage {stage} goes on from a model; leave --imagenet out")
        if not Path(others["imagenet"]).is_file():
            raise FileNotFoundError(f"--imagenet must be a file, but {others['imagenet']} is none")
    if (stage == "base") != (others["start"] is None):
        raise ValueError(
            f"the stage {stage} "
            + (
                "starts from nothing; leave --start out, or name another stage"
                if stage == "base"
                else "goes on from a model; give it with --start"
            )
        )
    if (stage == "mining") != (others["mine_list"] is not None):
        raise ValueError(
            f"the stage {stage} "
            + (
                "erases images; list their names in a file, one a line, and give it with --mine-list"
                if stage == "mining"
                else "erases nothing; leave --mine-list out"
            )
        )


def _check_kept(out: Path, others: Mapping[str, Any]) -> None:
    """No file that is read is one that the training writes."""
    written = {(out / name).resolve() for name in (BEST, LAST, STATE, "metrics.csv")}
    for name in ("start", "mine_list", "imagenet"):
        if others[name] is not None and Path(others[name]).resolve() in written:
            raise ValueError(
                f"--{name.replace('_', '-')} {others[name]} lies where the training writes; choose "
                "another --out"
            )


def _check_mine_list(path: Path, archive: Archive) -> None:
    """Every image to mine has a row and a file; ValueError with the list's file and line if not."""
    known = set(archive.labels.images)
    for name, line in read_split_lines(path).items():
        if name not in known or name not in archive.files:
            lacks = f"a row in {archive.labels.path}" if name not in known else "a file in the archive"
            raise ValueError(
                f"{path}, line {line}: expected an image of the archive, but {name!r} lacks {lacks}; "
                "remove the line, or complete the archive"
            )
