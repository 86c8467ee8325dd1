"""Readers that go on while a test kills what serves them: start them, see that they go on, end them."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).with_name("steady_reader.py")
END_WITHIN = 30.0  # seconds

Spec = Mapping[str, tuple[int, str]]  # path -> bytes to read, their SHA-256


def expect(data: bytes, length: int | None = None) -> tuple[int, str]:
    """What a reader must find of a file: its first `length` bytes, or all."""
    read = data if length is None else data[:length]
    return len(read), hashlib.sha256(read).hexdigest()


@dataclass(frozen=True)
class Ended:
    """What a reader told at its end."""

    longest: float  # seconds between two reads
    files: int


class SteadyReader:
    """One reader, in a process of its own."""

    def __init__(self, how: str, root: Path, spec: Spec, scratch: Path) -> None:
        self.name = f"{how} {next(iter(spec))}"
        self.beats = 0
        file = scratch / f"spec-{time.monotonic_ns()}.json"
        file.write_text(json.dumps(dict(spec)))
        self.errors = file.with_suffix(".err")
        with self.errors.open("wb") as errors:
            command = [sys.executable, str(PROGRAM), how, str(root), str(file)]
            self.popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        assert self.popen.stdout is not None
        self.output = self.popen.stdout

    def drain(self) -> None:
        """Count the dots that have come. Fails where the reader has ended."""
        data = os.read(self.output.fileno(), 1 << 16)
        assert data, f"the reader {self.name!r} has ended: {self.errors.read_text()}"
        self.beats += data.count(b".")

    def end(self) -> Ended:
        """Tell it to stop. Fails where it failed."""
        try:
            output, _ = self.popen.communicate(timeout=END_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the reader {self.name!r} hangs") from None
        assert self.popen.returncode == 0, f"{self.name!r}: {self.errors.read_text()}"
        return Ended(**json.loads(output.lstrip(b".")))

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(END_WITHIN)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def reading(readers: Sequence[SteadyReader]) -> Iterator[None]:
    """No reader outlives the block."""
    try:
        yield
    finally:
        for reader in readers:
            reader.kill()


def await_beats(readers: Sequence[SteadyReader], files: int = 1, within: float = 30.0) -> None:
    """Return once each reader has read that many more files from now on."""
    _drain(readers, 0.0)  # what was read before now shows nothing
    goals = [(reader, reader.beats + files) for reader in readers]
    deadline = time.monotonic() + within
    while late := [reader.name for reader, goal in goals if reader.beats < goal]:
        rest = deadline - time.monotonic()
        assert rest > 0, f"no file was read for {within:g} s by {late}"
        _drain(readers, rest)


def _drain(readers: Sequence[SteadyReader], within: float) -> None:
    ready, _, _ = select.select([reader.output for reader in readers], [], [], within)
    for reader in readers:
        if reader.output in ready:
            reader.drain()
