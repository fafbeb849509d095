"""Every block of code in the pages: Python runs, commands parse, and none is left unaccounted for.

A block in ``sh`` runs verbatim in a clean clone (test_newcomer.py), or by the page's own test. One
without a language is for the reader's own archive (names in capitals, days of training, clusters), a
formula or another program's file: its ``cxr-fast`` commands are parsed with their real options.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from markdown_pages import PAGES, ROOT, Block, blocks, commands

from cxr_fast.cli import main
from cxr_fast.phantom import PhantomSettings, render

# Pages whose blocks have a test of their own, which knows what must come out.
OWN_TESTS = {
    "docs/archives.md": "tests/test_documented_queries.py",
    "docs/figures.md": "tests/figures/test_figures_page.py",
    "docs/own-classifier.md": "tests/export/test_own_classifier_page.py",
    "docs/scale.md": "tests/test_scale_page.py",
}
RUN_BY_NEWCOMER = {"README.md", "docs/five-minutes.md", "docs/operators.md"}
LANGUAGES = {"", "sh", "text", "python", "sql", "yaml"}
ALL = [block for page in PAGES for block in blocks(page)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def of(language: str) -> list[Block]:
    return [block for block in ALL if block.language == language]


def test_every_block_is_accounted_for() -> None:
    assert {block.language for block in ALL} <= LANGUAGES
    for page, test in OWN_TESTS.items():
        assert f'"{Path(page).name}"' in (ROOT / test).read_text()
    assert {name_of(block.page) for block in of("sql")} <= set(OWN_TESTS)
    assert {name_of(block.page) for block in of("sh")} <= RUN_BY_NEWCOMER | set(OWN_TESTS)
    assert {name_of(block.page) for block in of("yaml")} == {"docs/training.md"}
    ran = [block for block in of("python") if name_of(block.page) not in OWN_TESTS]
    assert len(ran) >= 5


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of "five minutes" were run, as they stand there; chest.png and demo.onnx."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("first_run")
    with contextlib.chdir(folder):
        for block in blocks(ROOT / "docs" / "five-minutes.md"):
            for words in commands(block) if block.language == "sh" else ():
                done = CliRunner().invoke(main, words)
                assert done.exit_code == 0, done.output
    return folder


def python_pages() -> list[Path]:
    pages = {block.page for block in of("python") if name_of(block.page) not in OWN_TESTS}
    return sorted(pages)


@pytest.mark.parametrize("page", python_pages(), ids=name_of)
def test_python(page: Path, first_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in its order, and print the ``text`` that follows them."""
    if page.name == "deploy.md":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
    if page.name == "training.md":
        pytest.importorskip("lightning_fabric")
    monkeypatch.chdir(first_run)
    if page.name == "deploy.md":
        from PIL import Image

        Image.fromarray(render(1, PhantomSettings(size=300)).image).save("chest.png")
        words = commands(blocks(page)[0])[0]
        assert words[:2] == ["export", "demo"]
        Path(words[-1]).unlink(missing_ok=True)
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    names: dict[str, object] = {"__name__": "page"}
    mine = blocks(page)
    for block, following in zip(mine, [*mine[1:], None], strict=True):
        if block.language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, block.place, "exec"), names)
        if "print(" in block.text:
            assert following is not None, f"{block.place} prints, and the page does not say what"
            assert following.language == "text", f"{block.place} prints, and the page does not say what"
            assert_alike(printed.getvalue(), following.text, exact=page.name == "operators.md")


def assert_alike(printed: str, shown: str, exact: bool) -> None:
    """Equal, or equal but for the numbers, which of a network are other ones on other processors."""
    number = r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?"
    if not exact:
        printed, shown = (re.sub(number, "#", text) for text in (printed, shown))
    assert printed == shown


def test_text_that_differs_is_seen() -> None:
    assert_alike("{'x1': 192.0}\n", "{'x1': 208.5}\n", exact=False)
    with pytest.raises(AssertionError):
        assert_alike("{'x1': 192.0}\n", "{'x2': 192.0}\n", exact=False)
    with pytest.raises(AssertionError):
        assert_alike("[1 0]\n", "[1 2]\n", exact=True)


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.place)
def test_settings(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("yaml")
    from cxr_fast.training.settings import from_values, read_yaml

    path = tmp_path / "run.yaml"
    path.write_text(block.text)
    values = read_yaml(path)
    known = {key: value for key, value in values.items() if key not in ("start", "mine_list")}
    assert from_values(known).stage == "mining"


def told() -> Iterator[tuple[Block, list[str]]]:
    for block in ALL:
        if block.language in ("", "sh"):
            for words in commands(block):
                yield block, words


COMMANDS = list(told())


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 35
    assert {words[0] for _, words in COMMANDS} >= {
        "mine",
        "train",
        "export",
        "adopt",
        "convert",
        "evaluate",
    }
    text = "\n".join(block.text for block in ALL if block.language in ("", "sh"))
    starts = re.findall(r"^(?:[A-Z_]+=\S+ )*\s*cxr-fast ", text, re.MULTILINE)
    assert len(starts) == len(COMMANDS)


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=[f"{b.place} {w[0]}" for b, w in COMMANDS])
def test_a_command_parses(block: Block, words: list[str]) -> None:
    parse(words)


def parse(words: list[str]) -> None:
    """As click would, but for asking whether files are there."""
    command: click.Command = main
    # With its settings, -h among them: click keeps in a command what the first context said of help.
    context = click.Context(command, info_name="cxr-fast", **main.context_settings)
    while isinstance(command, click.Group):
        _, words, _ = command.make_parser(context).parse_args(words)
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    given, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left, f"too many arguments: {left}"
    for parameter in command.get_params(context):
        value, _ = parameter.consume_value(context, given)
        if isinstance(parameter.type, (click.Path, click.File)):
            missing = parameter.required and parameter.value_is_missing(value)
            assert not missing, f"{parameter.name} is missing"
        elif not parameter.is_eager:
            parameter.process_value(context, value)


@pytest.mark.parametrize(
    "words",
    [
        ["mined", "IMAGES"],
        ["mine", "IMAGES", "--model", "demo", "--out", "run", "--no-such-option"],
        ["mine", "IMAGES", "--model", "demo"],
        ["mine", "IMAGES", "MORE", "--model", "demo", "--out", "run"],
        ["mine", "IMAGES", "--model", "demo", "--out", "run", "--overlays", "many"],
        ["train", "NIH", "--stage", "no-such-stage", "--out", "x"],
    ],
)
def test_a_wrong_command_does_not_parse(words: list[str]) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parse(words)
