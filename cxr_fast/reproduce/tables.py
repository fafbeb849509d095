"""Which networks and rules stand in the paper's tables, and which pairs answer its questions."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from cxr_fast.config import MiningSettings
from cxr_fast.models.card import Aggregation
from cxr_fast.reproduce.cells import Cell
from cxr_fast.reproduce.laboratory import Training
from cxr_fast.reproduce.presets import Preset
from cxr_fast.training import MiningStepSettings
from cxr_fast.training.settings import Schedule
from cxr_fast.training.step import Variant

# Wang et al. 2017 cut their CAMs at 60 and 180 of 255.
WANG = (60 / 255, 180 / 255)
_AGGREGATIONS: tuple[Aggregation, ...] = ("bilinear", "deconv")
_PUBLISHED = {"deconv": "deconv."}


class Row(NamedTuple):
    """A line of a table: the paper's name of the method where it has one, ours, and the cell."""

    published: str | None
    name: str
    cell: Cell


class Question(NamedTuple):
    """Two lines of a table whose Acc is compared on the same images, first minus second."""

    text: str
    first: str
    second: str


class Table(NamedTuple):
    """The lines of a table for one seed, the T(IoU) that it is printed at, and what it answers.

    ``bounded``: AFP may not exceed the reference's (the first line's, or Wang's published one).
    """

    rows: tuple[Row, ...]
    iou_thresholds: tuple[float, ...]
    questions: tuple[Question, ...]
    bounded: bool = False


def base(preset: Preset, size: int, seed: int) -> Training:
    """The backbone."""
    return Training(preset.settings("base", size, seed), size, weights=preset.imagenet)


def aggregated(preset: Preset, size: int, seed: int, aggregation: Aggregation) -> Training:
    """The backbone with aggregation, both stages."""
    start = base(preset, size, seed)
    grown = Training(preset.settings("msa-init", size, seed), size, start, aggregation)
    return Training(preset.settings("msa", size, seed), size, grown, aggregation)


def mined(
    preset: Preset, seed: int, variant: Variant, steps: int, schedule: Schedule = "joint"
) -> Training:
    """Attention mining on the network with bilinear aggregation, at the input size for it."""
    size = preset.mined_size
    settings = preset.settings("mining", size, seed)
    step: MiningStepSettings = replace(settings.mining, variant=variant, steps=steps)
    settings = replace(settings, mining=step, schedule=schedule)
    if variant == "none":  # a batch of nothing but mined images: as many updates as the others take
        settings = replace(settings, epochs=round(settings.epochs_to_train / step.erased_share))
    start = aggregated(preset, size, seed, "bilinear")
    return Training(settings, size, start, "bilinear")


def baseline(preset: Preset, seed: int) -> Training:
    """The paper's baseline: t = 1 with KP-Vanilla (there until it converges, here as long as ours)."""
    size = preset.mined_size
    start = aggregated(preset, size, seed, "bilinear")
    return Training(preset.settings("baseline", size, seed), size, start, "bilinear")


def steps(rule: MiningSettings, count: int) -> MiningSettings:
    """The same rule after ``count`` steps."""
    return replace(rule, steps=count)


def table1(preset: Preset, seed: int) -> Table:
    """Aggregation and resolution, nothing erased."""
    rule = steps(preset.mining, 1)
    rows = []
    for published, size in zip((512, 1024), preset.input_sizes, strict=True):
        networks = {"baseline": base(preset, size, seed)}
        for aggregation in _AGGREGATIONS:
            networks[aggregation] = aggregated(preset, size, seed, aggregation)
        for name, training in networks.items():
            rows.append(
                Row(f"{published}-{_PUBLISHED.get(name, name)}", f"{size}-{name}", Cell(training, rule))
            )
    questions = [
        Question(f"aggregation ({name}) at {size}", f"{size}-{name}", f"{size}-baseline")
        for size in preset.input_sizes
        for name in _AGGREGATIONS
    ]
    return Table(tuple(rows), (0.1, 0.3), tuple(questions))


def table2(preset: Preset, seed: int) -> Table:
    """Against a plain CAM and the paper's baseline, at the reference's AFP."""
    plain, rule = steps(preset.mining, 1), steps(preset.mining, 3)
    wang = replace(plain, thresholds=WANG, select="components")
    size = preset.mined_size
    joint = mined(preset, seed, "kp", 3)
    rows = (
        Row("ref.", "Wang-style CAM", Cell(base(preset, size, seed), wang)),
        Row("base.", "t = 1, KP-Vanilla", Cell(baseline(preset, seed), plain)),
        Row("ours", "ours, joint", Cell(joint, rule)),
        Row(None, "ours, staged", Cell(mined(preset, seed, "kp", 3, "staged"), rule)),
    )
    questions = (
        Question("mining, joint, against the baseline", "ours, joint", "t = 1, KP-Vanilla"),
        Question("mining, staged, against the baseline", "ours, staged", "t = 1, KP-Vanilla"),
    )
    return Table(rows, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), questions, bounded=True)


def table3(preset: Preset, seed: int) -> Table:
    """Steps, and knowledge preservation."""
    joint, staged = mined(preset, seed, "kp", 3), mined(preset, seed, "kp", 3, "staged")
    rows, questions = [], []
    for count in (1, 2, 3):
        rows.append(Row(f"t={count}", f"t = {count}", Cell(joint, steps(preset.mining, count))))
    for count in (2, 3):
        cell = Cell(staged, steps(preset.mining, count), count)
        rows.append(Row(None, f"t = {count}, staged", cell))
        raw = replace(cell, rule=replace(cell.rule, mode="raw"))
        rows.append(Row(None, f"t = {count}, staged, raw", raw))
    unmined = aggregated(preset, preset.mined_size, seed, "bilinear")
    rows.append(Row(None, "t = 1, not mined", Cell(unmined, steps(preset.mining, 1))))
    for row in rows[1:]:
        questions.append(Question(f"{row.name} against t = 1", row.name, "t = 1"))
    variants: tuple[tuple[str, Variant], ...] = (
        ("w/o KP", "none"), ("KP-Vanilla", "kp-vanilla"), ("KP", "kp"),
    )  # fmt: skip
    for published, variant in variants:
        training = mined(preset, seed, variant, 3)
        rows.append(Row(published, published, Cell(training, steps(preset.mining, 3))))
    for other in ("w/o KP", "KP-Vanilla"):
        questions.append(Question(f"KP against {other}", "KP", other))
    return Table(tuple(rows), (0.1, 0.3), tuple(questions))


TABLES = {"table1": table1, "table2": table2, "table3": table3}
