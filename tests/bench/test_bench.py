"""The bench itself, on real parts: one quick round of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_quick_run_measures_headrace_and_the_limit_in_every_workload(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    command = [
        sys.executable,
        "-m",
        "bench",
        "--quick",
        "--size",
        "32MiB",
        "--no-rivals",
        "--json",
        str(result),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    workloads = json.loads(result.read_text())["workloads"]
    assert len(workloads) == 15
    for workload in workloads:
        assert {workload["limit"], "headrace"} <= set(workload["rounds"][0]), workload["notes"]
