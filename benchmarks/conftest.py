"""The ``race`` fixture, the parameter ``case``, options, and the table and JSON at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from cxr_fast.benchmarks.place import MISSING, Place, peer_module
from cxr_fast.benchmarks.racing import Case, Outcome, check_equality, race
from cxr_fast.benchmarks.reporting import render, write_results
from cxr_fast.mining import resolve_device

PLACE = pytest.StashKey[Place]()
OUTCOMES = pytest.StashKey[list[Outcome]]()
WRITTEN = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("racing", "what `cxr-fast bench` passes on")
    group.addoption("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    group.addoption("--quick", action="store_true", help="tiny cases: does everything run and agree?")
    group.addoption("--out", type=Path, metavar="DIR", help="write DIR/<machine>-<commit>.json, .txt")
    group.addoption("--seconds", type=float, default=2.0, help="for each case, about (default 2)")


def pytest_configure(config: pytest.Config) -> None:
    option = config.getoption
    device = resolve_device(option("--device"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        device = torch.device("cuda", torch.cuda.current_device())
    quick = bool(option("--quick"))
    config.stash[PLACE] = Place(device, quick, 0.02 if quick else option("--seconds"))
    config.stash[OUTCOMES] = []
    if cv2 := peer_module("cv2"):
        cv2.setNumThreads(torch.get_num_threads())  # the same threads for everybody


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``test_<name>(case)`` runs for every entry of its module's ``<name>_cases(place)``."""
    if "case" in metafunc.fixturenames:
        name = metafunc.function.__name__.removeprefix("test_")
        cases = getattr(metafunc.module, f"{name}_cases")(metafunc.config.stash[PLACE])
        metafunc.parametrize("case", cases, ids=str)


@pytest.fixture(scope="session")
def place(request: pytest.FixtureRequest) -> Place:
    """Where this runs, and how large its cases should be."""
    return request.config.stash[PLACE]


@pytest.fixture(name="race")
def race_fixture(
    benchmark: BenchmarkFixture, place: Place, request: pytest.FixtureRequest
) -> Callable[[Case], None]:
    """``race(case)``: equality with every peer first, then the times.

    Under ``--benchmark-disable`` it stops after equality.
    """

    def run(case: Case) -> None:
        check_equality(case)
        if benchmark.disabled:
            benchmark(lambda: None)  # else pytest-benchmark complains of a fixture not used
            return
        outcome = race(case, place)
        outcomes = request.config.stash[OUTCOMES]
        outcomes.append(outcome)
        if folder := request.config.getoption("--out"):  # a run that is cut short keeps what it has
            request.config.stash[WRITTEN] = write_results(outcomes, place, folder)
        # For those who use pytest-benchmark's own storage and comparison.
        benchmark.extra_info["case"] = case.name
        if outcome.best_peer is not None:
            benchmark.extra_info["best_peer"] = outcome.best_peer
            benchmark.extra_info["ratio"] = outcome.ratio(outcome.best_peer)
        benchmark.pedantic(_finished, (case, place), rounds=1 if place.quick else 5)

    return run


def _finished(case: Case, place: Place) -> None:
    case.ours(*case.inputs)
    if place.cuda:
        torch.cuda.synchronize(place.device)


@pytest.fixture(autouse=True)
def _memory(place: Place) -> None:
    """What one case leaves in the allocator is not the next one's."""
    if place.cuda:
        torch.cuda.empty_cache()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes, place = config.stash[OUTCOMES], config.stash[PLACE]
    if not outcomes:
        if MISSING:
            terminalreporter.write_line(f"left out, not installed: {', '.join(sorted(MISSING))}")
        return
    terminalreporter.write_line("")
    terminalreporter.write(render(outcomes, place))
    if WRITTEN in config.stash:
        terminalreporter.write_line(f"written: {config.stash[WRITTEN]}")
