"""Memory that is freed is used again as it is, instead of being given back and cleared each time."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("resource")

# Twelve pictures at a time, 36 MiB in all, a hundred times; prints the pages that had to be fetched
# meanwhile. In a thread, as they are read by one.
SCRIPT = """
import resource, sys, threading
import numpy as np
from cxr_fast import _numpy_ops
kept = _numpy_ops.keep_freed_memory() if sys.argv[1] == "keep" else True

def rounds():
    for number in range(101):
        pictures = [np.ones(3 << 20, np.uint8) for _ in range(12)]
        if number == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=rounds)
thread.start()
thread.join()
"""


def pages(choice: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, choice], check=True, capture_output=True, text=True
    )
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


def test_freed_memory_can_be_given_back() -> None:
    """Blocks between others in use, kept when freed, then not: in MiB of resident memory."""
    script = """
import numpy as np
from cxr_fast import _numpy_ops
def resident():
    return int(open("/proc/self/statm").read().split()[1]) / 256
kept = _numpy_ops.keep_freed_memory()
blocks = [np.ones(1 << 20, np.uint8) for _ in range(128)]
del blocks[::2]
before = resident()
print(int(kept and _numpy_ops.give_back_memory()), before - resident())
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    given, less = done.stdout.split()
    if given == "0":
        pytest.skip("not glibc: its memory is its own affair")
    assert float(less) > 50


def test_freed_memory_is_kept() -> None:
    kept, faults = pages("keep")
    if not kept:
        pytest.skip("not glibc: its memory is its own affair")
    # Two rounds are held at once, 9,216 pages each; given back they would be fetched time and again.
    assert faults < 3 * 9216
