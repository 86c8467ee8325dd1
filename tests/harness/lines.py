"""Waiting for what another process logs when it has happened."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def await_line(log: Path, true: Callable[[], bool], within: float) -> None:
    """Return once something is so that a line of `log` tells; it is asked whenever there are new lines."""
    deadline = time.monotonic() + within
    with subprocess.Popen(["tail", "--lines=+1", "--follow", str(log)], stdout=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        try:
            while not true():
                rest = max(0.0, deadline - time.monotonic())
                ready, _, _ = select.select([tail.stdout], [], [], rest)
                assert ready, f"it did not come about within {within:g} s"
                os.read(tail.stdout.fileno(), 1 << 16)
        finally:
            tail.kill()
