from __future__ import annotations

import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cxr_fast.cli import main
from cxr_fast.config import BOXED_FINDINGS
from cxr_fast.model_files import DEMO_MODEL
from cxr_fast.models import Architecture, load_checkpoint
from cxr_fast.phantom import PhantomSettings, write_archive
from cxr_fast.reproduce import real
from cxr_fast.training import command
from cxr_fast.training.settings import from_values, read_yaml

SMALL = ["--backbone", "resnet18", "--width", "0.125", "--in-channels", "1", "--input-size", "64"]
SHORT = ["--epochs", "1", "--batch-size", "16", "--threads", "1", "--precision", "float32"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "archive"
    write_archive(folder, PhantomSettings(images=96, size=96, seed=4))
    listed = (folder / "test_list.txt").read_text().split()
    (folder / "mine.txt").write_text("\n".join(listed[:8]))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


_OPENED: list[str] = []
_WATCHING = [False]


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _WATCHING[0] and event == "open":
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_watch)  # there is no way to take one off again


def test_every_stage_learns_without_opening_a_table_of_boxes(archive: Path, tmp_path: Path) -> None:
    """The box table lies in the archive, beside what is read."""
    _OPENED.clear()
    _WATCHING[0] = True
    try:
        shared = [*SHORT, "--cache", tmp_path / "cache"]
        base = run("train", archive, "--out", tmp_path / "base", *SMALL, *shared)
        assert base.exit_code == 0, base.output
        start = tmp_path / "base" / "best.safetensors"
        for stage in ("msa-init", "msa", "mining"):
            more = ["--mine-list", archive / "mine.txt"] if stage == "mining" else []
            ran = run(
                "train",
                archive,
                "--stage",
                stage,
                "--start",
                start,
                "--out",
                tmp_path / stage,
                *more,
                *shared,
            )
            assert ran.exit_code == 0, ran.output
            start = tmp_path / stage / "last.safetensors"
    finally:
        _WATCHING[0] = False
    assert any("Data_Entry" in name for name in _OPENED), (
        "the watch saw nothing: the test would show nothing"
    )
    assert not [name for name in _OPENED if "BBox" in name]
    card = load_checkpoint(start)[1]
    assert card.architecture.msa == "bilinear"
    assert (card.mining.select, card.mining.steps) == ("components", 1)
    assert card.provenance.count("stage ") == 4
    assert "mean AUROC" in ran.output


def test_a_config_file_and_flags_over_it(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "epochs: 3\nbatch_size: 16\nbackbone: resnet18\nwidth: 0.125\nin_channels: 1\ninput_size: 64\n"
        "augmentation: {flip: 0.5}\n"
    )
    out = tmp_path / "out"
    ran = run(
        "train",
        archive,
        "--out",
        out,
        "--config",
        tmp_path / "run.yaml",
        "--epochs",
        "1",
        "--threads",
        "1",
    )
    assert ran.exit_code == 0, ran.output
    assert len((out / "metrics.csv").read_text().splitlines()) == 2
    again = run("train", archive, "--out", out, "--config", tmp_path / "run.yaml", "--threads", "1")
    assert again.exit_code == 1
    assert "settings.epochs: 1 -> 3" in again.output


RECIPE = Path(__file__).parents[1] / "docs" / "recipes" / "own-archive.yaml"


def test_the_recipe_for_one_s_own_archive_is_that_of_the_evidence(tmp_path: Path) -> None:
    values = read_yaml(RECIPE)
    network = {f.name: values.pop(f.name) for f in fields(Architecture) if f.name in values}
    trained = real.Network(replace(Architecture(msa="none"), **network), values.pop("input_size"))
    assert trained == real.NETWORKS["LSE, fine, halves, 160 pixels"]
    assert values.pop("standardise")
    # Pinned in the study, so that its results are those of any machine.
    assert replace(from_values(values), precision="bfloat16") == real.TRAINING


def test_a_network_beyond_the_paper_learns_mines_and_is_described(
    archive: Path, tmp_path: Path
) -> None:
    """The recipe, smaller, on an archive with two findings of its own naming."""
    copy = tmp_path / "archive"
    write_archive(copy, PhantomSettings(images=64, size=64, seed=6))
    table = next(copy.glob("Data_Entry*"))
    table.write_text(table.read_text().replace("Effusion", "Fluid"))
    ran = run(
        "train", copy, "--out", tmp_path / "out", "--config", RECIPE, "--findings", "Fluid, Mass",
        "--epochs", "1", "--batch-size", "16", "--threads", "1", "--width", "0.125",
        "--input-size", "64",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    whole = run(
        "train", copy, "--out", tmp_path / "whole", "--config", RECIPE, "--findings", "Fluid, Mass",
        "--epochs", "1", "--batch-size", "16", "--threads", "1", "--width", "0.125", "--whole",
        "--input-size", "64", "--imagenet", tmp_path / "out" / "last.safetensors",
    )  # fmt: skip
    assert whole.exit_code == 0, whole.output
    assert not load_checkpoint(tmp_path / "whole" / "last.safetensors")[1].architecture.bilateral
    card = load_checkpoint(tmp_path / "out" / "last.safetensors")[1]
    assert card.class_names == ("Fluid", "Mass")
    assert (card.standardise, card.architecture.bilateral, card.architecture.neck) == (True, True, 64)
    assert (card.mining.select, card.mining.steps) == ("regions", 3)
    model = tmp_path / "out" / "last.safetensors"
    mined = run("mine", copy / "images", "--model", model, "--out", tmp_path / "run", "--threads", "1")
    assert mined.exit_code == 0, mined.output
    rows = pq.read_table(tmp_path / "run" / "findings")
    assert set(rows["rank"].to_pylist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "msa"], "goes on from a model; give it with --start"),
        (["--stage", "base", "--start", "x"], "starts from nothing; leave --start out"),
        (["--mine-list", "x"], "erases nothing; leave --mine-list out"),
        (["--stage", "mining", "--start", "x"], "list their names in a file"),
        (["--config", "absent.yaml"], "must be a YAML file, but absent.yaml is not a file"),
        (["--learning-rate", "0"], "learning_rate must be above 0"),
        (["--stage", "msa", "--start", "absent"], "there is no such file"),
        (["--width", "9"], "width of an architecture must be"),
        (["--imagenet", "absent.pth"], "--imagenet must be a file, but absent.pth is none"),
        (["--stage", "msa", "--start", str(DEMO_MODEL), "--input-size", "1024"], "input_size is 1024"),
        (["--stage", "msa", "--start", str(DEMO_MODEL), "--imagenet", "x"], "leave --imagenet out"),
    ],
)
def test_careless_arguments_get_a_sentence(
    archive: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ran = run("train", archive, "--out", tmp_path / "out", *arguments)
    assert ran.exit_code == 1
    assert message in ran.output
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_training_is_not_written_over(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(DEMO_MODEL, out / "best.safetensors")
    before = (out / "best.safetensors").read_bytes()
    for start in ((), ("--stage", "msa", "--start", out / "best.safetensors")):
        ran = run("train", archive, *start, "--out", out, "--epochs", 1)
        assert ran.exit_code == 1
        assert "holds best.safetensors but no state.pt" in " ".join(ran.output.split())
    (out / "state.pt").write_bytes(b"")
    ran = run("train", archive, "--stage", "msa", "--start", out / "best.safetensors", "--out", out)
    assert "lies where the training writes" in " ".join(ran.output.split())
    assert (out / "best.safetensors").read_bytes() == before


def test_a_list_of_images_to_mine_that_the_archive_lacks(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text((archive / "mine.txt").read_text() + "\nabsent.png\n")
    ran = run(
        "train", archive, "--stage", "mining", "--start", DEMO_MODEL, "--out", tmp_path / "out",
        "--mine-list", tmp_path / "mine.txt",
    )  # fmt: skip
    assert ran.exit_code == 1
    assert "mine.txt, line 9: expected an image of the archive, but 'absent.png'" in " ".join(
        ran.output.split()
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: 5", "start must be the name of a file, but is 5"),
        ("in_channels: 1.9", "in_channels of an architecture must be 1 or 3"),
        ("mining: kp", "mining must hold names and values"),
        ("standardise: maybe", "standardise of a model card must be true or false"),
    ],
)
def test_odd_values_of_a_file_get_a_sentence(
    archive: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    ran = run("train", archive, "--out", tmp_path / "out", "--config", tmp_path / "run.yaml")
    assert ran.exit_code == 1
    assert message in " ".join(ran.output.split())


def test_held_back_patients_are_not_mined(archive: Path, tmp_path: Path) -> None:
    everyone = (archive / "train_val_list.txt").read_text()
    (tmp_path / "mine.txt").write_text(everyone)
    job = command.prepare(
        archive, tmp_path / "out", None,
        {"stage": "mining", "start": str(DEMO_MODEL), "mine_list": str(tmp_path / "mine.txt")},
        BOXED_FINDINGS, None, "refuse",
    )  # fmt: skip
    train, held = job._split()
    assert held
    assert set(job._mined(held)) == set(train)


def test_an_archive_that_is_not_whole(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "archive"
    write_archive(copy, PhantomSettings(images=24, size=64, seed=4))
    first = (copy / "train_val_list.txt").read_text().split()[0]
    (copy / "images" / first).unlink()
    refused = run("train", copy, "--out", tmp_path / "out", *SMALL, *SHORT)
    assert refused.exit_code == 1
    assert first in refused.output
    assert "train_val_list.txt, line 1" in refused.output.replace("\n", " ")
    file = tmp_path / "file"
    file.touch()
    assert "--out must be a folder" in run("train", archive, "--out", file).output
