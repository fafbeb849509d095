"""The ``race`` fixture, its options, and the table and JSON at the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from racing import Outcome, Peer, Run, Work, race
from reporting import render, write_results

OUTCOMES = pytest.StashKey[list[Outcome]]()

Race = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("racing")
    group.addoption("--results", type=Path, metavar="DIR", help="write DIR/<machine>-<commit>.json")
    group.addoption(
        "--race-seconds", type=float, default=2.0, help="time for each case, about (default 2)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = []
    cv2.setNumThreads(torch.get_num_threads())  # the same threads for everybody


@pytest.fixture(name="race")
def race_fixture(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Race:
    """``race(case, ours, peers, work)``: equality with every peer first, then the times.

    Under ``--benchmark-disable`` it stops after equality, which makes a quick test.
    """

    def run(case: str, ours: Run, peers: Sequence[Peer], work: Work, note: str = "") -> None:
        result = ours()
        for peer in peers:
            peer.check(result, peer.run())
        if benchmark.disabled:
            benchmark(lambda: None)  # else pytest-benchmark complains of a fixture not used
            return
        seconds = request.config.getoption("--race-seconds")
        outcome = race(case, ours, peers, work, seconds, note)
        request.config.stash[OUTCOMES].append(outcome)
        # For those who use pytest-benchmark's own storage and comparison.
        benchmark.extra_info["best_peer"] = outcome.best_peer
        benchmark.extra_info["ratio"] = outcome.ratio(outcome.best_peer)
        benchmark.pedantic(ours, rounds=5, warmup_rounds=1)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = config.stash[OUTCOMES]
    if not outcomes:
        return
    terminalreporter.write_line("")
    terminalreporter.write(render(outcomes))
    if folder := config.getoption("--results"):
        terminalreporter.write_line(f"written: {write_results(outcomes, folder)}")
