"""Other processes, each with a time limit: whoever reads a mount or receives bytes is one of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Reading

ROOT = Path(__file__).resolve().parent.parent
READER_SECONDS = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A measurement could not be made; the message is one line."""


def run(
    command: Sequence[str | Path],
    *,
    text: str = "",
    limit: float = READER_SECONDS,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command to its end and give its standard output. Raises BenchError for a failure or the limit."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=env,
    )
    name = Path(command[0]).name
    try:
        output, errors = process.communicate(text, timeout=limit)
    except subprocess.TimeoutExpired as error:
        process.kill()
        # A reader that a rival left waiting cannot be killed before the rival itself is.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        raise BenchError(f"{name} did not end within {limit:g} s") from error
    if process.returncode:
        last = errors.strip().rpartition("\n")[2]
        raise BenchError(f"{name} ended with {process.returncode}: {last}")
    return output


def run_program(module: str, job: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Reading:
    """Run a module of the bench: a job as JSON on its standard input, its reading on the output."""
    answer = json.loads(run([sys.executable, "-m", module], text=json.dumps(job), env=env))
    return Reading(answer["seconds"], answer["size"], answer["cpu_seconds"])


@contextlib.contextmanager
def kept_memory(size: int) -> Iterator[None]:
    """Keep so much memory at hand for whoever takes it until the block ends (bench/memory.py)."""
    command = [sys.executable, "-m", "bench.memory", str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.stdin.close()


def dd(path: Path, size: int) -> Reading:
    """Read a file to its end with `dd bs=1M`. Raises BenchError, also where it is not `size` bytes long."""
    started = time.monotonic()
    run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"])
    seconds = time.monotonic() - started
    return Reading(seconds, size)


def cpu_seconds(pids: Iterable[int]) -> float:
    """The CPU time that processes have used until now (proc(5): fields 14 and 15 of stat)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / _TICKS


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that serves until the block ends; what it says goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env=env
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
