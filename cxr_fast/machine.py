"""What this process may use of the machine. Imports nothing of ours."""

from __future__ import annotations

import os


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))
