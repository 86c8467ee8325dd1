"""Starting readers from a test: other processes, several at once, each with a time limit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

READER = Path(__file__).with_name("reader.py")


def start_reader(how: str, paths: Sequence[Path]) -> subprocess.Popen[str]:
    """Start `reader.py`; end it with `digests`."""
    command = [sys.executable, str(READER), how, *map(str, paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digests(reader: subprocess.Popen[str], within: float = 60.0) -> list[str]:
    """The SHA-256 of each file, in the order asked for. Fails where the reader did, or took longer."""
    try:
        output, errors = reader.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        reader.kill()
        reader.communicate()
        raise AssertionError(f"the reader did not end within {within} s") from None
    assert reader.returncode == 0, errors
    return [line.partition(" ")[0] for line in output.splitlines()]


def read(how: str, *paths: Path, within: float = 60.0) -> list[str]:
    """The SHA-256 of each file as one reader sees it."""
    return digests(start_reader(how, paths), within)


def read_by_many(how: str, readers: int, *paths: Path, within: float = 90.0) -> list[list[str]]:
    """What each of several readers at once sees."""
    started = [start_reader(how, paths) for _ in range(readers)]
    try:
        return [digests(reader, within) for reader in started]
    finally:
        for reader in started:
            reader.kill()
            reader.wait()


def run(command: Sequence[str], within: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command that may touch a mount."""
    return subprocess.run(command, capture_output=True, text=True, timeout=within, check=False)
