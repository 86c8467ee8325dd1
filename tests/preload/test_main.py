from __future__ import annotations

import subprocess
import sys


def test_the_command_says_in_one_line_that_it_is_not_there_yet() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "preload", "warm", "s3://models/x"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("preload: not there yet")
    assert result.stderr.count("\n") == 1
