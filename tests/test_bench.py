"""cxr-fast bench: the command, the timers, the roofline, the races and their report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from cxr_fast import bench
from cxr_fast.benchmarks import place as places
from cxr_fast.benchmarks import racing, reporting
from cxr_fast.benchmarks.place import Place, peer_module
from cxr_fast.benchmarks.racing import Case, Outcome, Peer, Timing, Yardstick, check_equality, race
from cxr_fast.benchmarks.roofline import Probe, Work, probes, roofline
from cxr_fast.benchmarks.timers import CpuTimer, CudaTimer
from cxr_fast.cli import main

HERE = Place(torch.device("cpu"), quick=True, seconds=0.01)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


class Clock:
    """Moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class Cuda:
    """As much of torch.cuda as a timer uses, on a clock of its own."""

    def __init__(self, waits: bool = False, breaks: bool = False) -> None:
        self.clock, self.waits, self.breaks = Clock(), waits, breaks
        self.mode, self.captures, self.allocated, self.peak = 0, 0, 100, 100

    def Event(self, enable_timing: bool) -> Cuda.Mark:  # noqa: N802
        assert enable_timing
        return Cuda.Mark(self)

    class Mark:
        def __init__(self, cuda: Cuda) -> None:
            self.cuda = cuda

        def record(self) -> None:
            self.at = self.cuda.clock()

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Cuda.Mark) -> float:
            return (end.at - self.at) * 1e3

    def synchronize(self, device: torch.device) -> None:
        pass

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.mode = mode

    def CUDAGraph(self) -> Any:  # noqa: N802
        return type("Graph", (), {"replay": lambda graph: self.clock.spend(0.5)})()

    @contextmanager
    def graph(self, graph: Any) -> Any:
        self.captures += 1
        yield
        if self.breaks:
            raise RuntimeError("operation not permitted when stream is capturing")

    def work(self, seconds: float = 1.0) -> None:
        if self.waits and self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.clock.spend(seconds)
        self.peak = max(self.peak, self.allocated + 30)

    def memory_allocated(self, device: torch.device) -> int:
        return self.allocated

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = self.allocated

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.peak


def test_a_cpu_is_timed_call_by_call() -> None:
    clock = Clock()
    pauses = iter((1.0, 3.0, 2.0))
    timer = CpuTimer(clock)
    assert timer.sample(lambda: clock.spend(next(pauses)), 3) == [1.0, 3.0, 2.0]
    assert timer.captured([clock]) is None
    held = timer.peak_bytes(lambda: (torch.zeros(1000), torch.zeros(500).add_(1), None)[2])
    assert 6000 <= held < 7000
    # What a call has only begun is waited for, before and after.
    begun = [0.25]

    def settle() -> None:
        clock.spend(begun.pop() if begun else 0.0)

    assert CpuTimer(clock, settle).sample(lambda: begun.append(2.0), 1) == [2.0]


def test_a_gpu_is_timed_between_events() -> None:
    cuda = Cuda()
    timer = CudaTimer(torch.device("cuda"), cuda)
    pauses = iter((1.0, 3.0, 2.0))
    assert timer.sample(lambda: cuda.work(next(pauses)), 3) == [pytest.approx(2.0)]
    assert timer.peak_bytes(cuda.work) == 30


def test_graphs_of_what_does_not_wait() -> None:
    cuda = Cuda()
    replay = CudaTimer(torch.device("cuda"), cuda).captured([cuda.work, cuda.work])
    assert replay is not None
    before = cuda.clock()
    replay()
    assert cuda.clock() - before == 0.5
    waiting, broken = Cuda(waits=True), Cuda(breaks=True)
    assert CudaTimer(torch.device("cuda"), waiting).captured([waiting.work]) is None
    assert waiting.captures == 0, "a capture that must fail was begun"
    assert waiting.mode == 0
    assert CudaTimer(torch.device("cuda"), broken).captured([broken.work]) is None


def test_the_roofline_is_the_slower_of_both() -> None:
    timed = {
        "slow": (Probe("bytes", 100, lambda: None), 2.0),
        "fast": (Probe("bytes", 100, lambda: None), 0.5),
        "product": (Probe("operations", 1000, lambda: None), 0.1),
    }
    moving = roofline(Work(moved_bytes=400, flops=1000), timed)
    assert (moving.bandwidth, moving.operations, moving.floor) == (200.0, 10_000.0, 2.0)
    assert roofline(Work(moved_bytes=400, flops=50_000), timed).floor == 5.0
    assert roofline(Work(moved_bytes=400), timed).floor == 2.0
    found = probes(Work(1 << 20, flops=1), HERE)
    assert {probe.kind for probe in found.values()} == {"bytes", "operations"}
    assert found["sum"].amount == 1 << 20
    assert found["product"].amount == 2 * 128**3


def test_a_case_reaches_the_floor_by_its_graph() -> None:
    ours, peer = (Timing(seconds, seconds, seconds, 5) for seconds in (4.0, 8.0))
    outcome = Outcome("x", ours, {"slow": peer, "fast": ours}, roofline=racing.Roofline(1, 1, 1.0))
    assert outcome.best_peer == "fast"
    assert outcome.ratio("slow") == 2.0
    assert outcome.floor_reached == 0.25
    replayed = Outcome("x", ours, graphs={"ours": peer}, roofline=outcome.roofline)
    assert replayed.floor_reached == 0.125
    assert replayed.best_peer is None
    assert Outcome("x", ours).floor_reached is None


def test_copies_exceed_the_cache() -> None:
    megabyte = 1 << 20
    assert racing.copies_to_make(100 * megabyte, 50 * megabyte) + 1 == 2
    assert racing.copies_to_make(400 * megabyte, 50 * megabyte) + 1 == 2
    assert racing.copies_to_make(4 * megabyte, 50 * megabyte) + 1 == 50
    assert racing.copies_to_make(1, 50 * megabyte) + 1 == racing.MOST_COPIES
    inputs = (torch.ones(3),)
    assert racing.rotated(inputs, HERE) == [inputs]
    turns = racing._in_turn([lambda: 1, lambda: 2])
    assert [turns() for _ in range(3)] == [1, 2, 1]


def a_case(answer: float = 2.0) -> Case:
    def equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(theirs, ours)

    peers = [
        Peer("same", lambda x: x + x, equal),
        Peer("numpy", lambda a: torch.from_numpy(a * answer), equal, lambda x: (x.numpy(),)),
    ]
    stick = Yardstick("a copy", lambda x: x.clone())
    return Case(
        "doubled", (torch.ones(100),), lambda x: x * 2, peers, [stick], Work(800, 100), "a note"
    )


def test_a_race(tmp_path: Path) -> None:
    case = a_case()
    check_equality(case)
    outcome = race(case, HERE)
    assert set(outcome.peers) == {"same", "numpy"}
    assert set(outcome.yardsticks) == {"a copy"}
    assert 0 < outcome.ours.lower <= outcome.ours.median <= outcome.ours.upper
    assert outcome.floor == outcome.roofline.floor > 0
    path = reporting.write_results([outcome], HERE, tmp_path / "out")
    table = path.with_suffix(".txt").read_text()
    for text in ("doubled", "  numpy", "  beside a copy", "ours = ", "(a note)", "roofline", "QUICK"):
        assert text in table
    assert "in a graph" not in table, "an empty column"
    results = json.loads(path.read_text())
    assert results["machine"]["torch"] == torch.__version__
    assert results["cases"]["doubled"]["floor"] == outcome.floor
    assert "doubled" in "".join(map(str, bench.compare(path, path).columns[0].cells))


def test_a_race_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    monkeypatch.setattr(racing, "timer_for", lambda device: CudaTimer(device, cuda))
    copies = [(torch.zeros(1),)] * 5  # a replay of half a second does the work of all of them
    monkeypatch.setattr(racing, "rotated", lambda inputs, place: copies)

    def check(ours: None, theirs: None) -> None:
        pass

    peers = [
        Peer("captured", lambda x: cuda.work(3.0), check, graph=True),
        Peer("not asked", lambda x: cuda.work(4.0), check),
    ]
    sticks = [Yardstick("other", lambda x: cuda.work(8.0))]
    case = Case("x", copies[0], lambda x: cuda.work(2.0), peers, sticks, memory=True)
    outcome = race(case, HERE)
    assert outcome.ours.median == pytest.approx(2.0)
    assert {name: t.median for name, t in outcome.graphs.items()} == {
        "ours": pytest.approx(0.1),
        "captured": pytest.approx(0.1),
    }
    assert outcome.ratio("not asked") == pytest.approx(2.0)
    assert outcome.yardsticks["other"].median == pytest.approx(8.0)
    assert outcome.peak_bytes == {"ours": 30, "captured": 30, "not asked": 30, "other": 30}


def test_what_only_a_gpu_reports_is_in_the_table() -> None:
    timing = Timing(2e-5, 2e-5, 2e-5, 5)
    outcome = Outcome(
        "x", timing, {"p": timing}, graphs={"ours": Timing(1e-5, 0, 0, 5), "p": timing},
        peak_bytes={"ours": 3 << 20}, images=2,
    )  # fmt: skip
    table = reporting.render([outcome], HERE)
    for text in ("in a graph", "10 us", "both in a graph", "2 x", "peak MiB", "images/s", "1e+05"):
        assert text in table


def test_a_peer_that_differs_is_named() -> None:
    with pytest.raises(AssertionError) as caught:
        check_equality(a_case(answer=3.0))
    assert "the peer 'numpy' differs" in str(caught.value.__notes__)


def test_a_peer_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MISSING", set())
    monkeypatch.setattr(reporting, "MISSING", places.MISSING)
    assert peer_module("no_such_library.part") is None
    assert peer_module("json") is json
    outcome = Outcome("x", Timing(1e-5, 1e-5, 1e-5, 5))
    assert "left out: no_such_library (pip install 'cxr_fast[bench]'" in reporting.render(
        [outcome], HERE
    )


def result_file(path: Path, cases: dict[str, tuple[float, float | None]], **machine: Any) -> Path:
    about = {"commit": "abc", "kernels": "C++ (avx2)", "threads": "2", **machine}
    made = {
        name: {"ours": {"median": ours}, "floor": floor, "graphs": {"ours": {"median": ours / 2}}}
        for name, (ours, floor) in cases.items()
    }
    path.write_text(json.dumps({"machine": about, "cases": made}))
    return path


def test_compare(tmp_path: Path) -> None:
    old = result_file(tmp_path / "old.json", {"cam": (4e-3, 1e-3), "gone": (1.0, 1.0)})
    new = result_file(tmp_path / "new.json", {"cam": (2e-3, 2e-3), "new": (1.0, None)}, gpu="H100")
    result = run("bench", "compare", old, new)
    assert result.exit_code == 0, result.output
    for text in ("abc (C++ (avx2), 2 threads) -> abc (H100)", "4 ms", "2 ms", "2.00", "0.50",
                 "in a graph", "in one file only: gone, new"):  # fmt: skip
        assert text in result.output
    refused = run("bench", "compare", old, tmp_path / "absent.json")
    assert refused.exit_code == 1
    assert "absent.json" in refused.output
    for content in ("{}", "[1]", '{"machine": {}, "cases": {}}', "not json"):
        (tmp_path / "other.json").write_text(content)
        refused = run("bench", "compare", old, tmp_path / "other.json")
        assert refused.exit_code == 1
        assert "no results of cxr-fast bench" in refused.output
    kept = Path(__file__).parents[1] / "benchmarks" / "results"
    for path in kept.glob("*threads*.json"):  # those of earlier versions, too
        assert run("bench", "compare", path, path).exit_code == 0


def test_help_and_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("bench", "--help").output
    for word in ("--device", "--only", "--seconds", "--out", "--quick", "compare"):
        assert word in text
    assert "bench" in run("--help").output
    refused = run("bench", "--device", "abacus")
    assert refused.exit_code == 1
    assert "device must be auto, cpu or cuda" in refused.output
    find = bench.importlib.util.find_spec
    monkeypatch.setattr(
        bench.importlib.util, "find_spec", lambda name: None if name == "pytest" else find(name)
    )
    refused = run("bench")
    assert refused.exit_code == 1
    assert "need pytest, which is not installed" in refused.output
    assert "cxr_fast[bench]" in refused.output


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cxr_fast.cli", "bench", "--device", "cpu", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_quick_run(tmp_path: Path) -> None:
    done = command("--quick", "--only", "masked_gap or mining_head", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "QUICK" in done.stdout
    assert "2 passed" in done.stdout
    (path,) = tmp_path.glob("*-quick.json")
    assert f"written: {path}" in done.stdout
    assert any(name.startswith("masked_gap") for name in json.loads(path.read_text())["cases"])
    assert path.with_suffix(".txt").exists()


def test_a_selection_of_nothing() -> None:
    done = command("--quick", "--only", "abacus")
    assert done.returncode == 1
    assert "no benchmark matches 'abacus'" in done.stderr


@pytest.mark.slow
def test_every_benchmark_runs_and_every_peer_agrees() -> None:
    done = command("--quick")
    assert done.returncode == 0, done.stdout + done.stderr
