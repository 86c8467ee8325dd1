"""A program that loads a model from a directory, and knows nothing of Headrace: the demonstration's reader.

    python -m deploy.local.loader load DIR     every tensor, by safetensors, and every other file; timed
    python -m deploy.local.loader hash DIR     the SHA-256 of every file

Both print one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.numpy import load_file

TENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one load took: `disk_bytes` are those that this process itself had to fetch from a disk."""

    files: int
    tensors: int
    bytes: int
    seconds: float
    disk_bytes: int


def load(directory: Path) -> Loaded:
    """Load every tensor into memory, and read every other file."""
    files = list(files_of(directory))
    disk, started, tensors = _disk_bytes(), time.monotonic(), 0
    for path in files:
        if path.suffix == TENSORS:
            tensors += len(load_file(path))
        else:
            path.read_bytes()
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in files)
    return Loaded(len(files), tensors, size, seconds, _disk_bytes() - disk)


def hashes(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file, in hexadecimal, by its path below the directory."""
    return {str(path.relative_to(directory)): _sha256(path) for path in files_of(directory)}


def files_of(directory: Path) -> Iterator[Path]:
    """Every file below a directory, sorted."""
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_bytes() -> int:
    """`read_bytes` of proc_pid_io(5): what this process caused to be fetched from storage."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def main() -> None:
    """Do what is asked and print it."""
    command, directory = sys.argv[1], Path(sys.argv[2])
    result = asdict(load(directory)) if command == "load" else hashes(directory)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
