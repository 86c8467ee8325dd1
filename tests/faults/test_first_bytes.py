"""A large cold file: its first bytes are there long before a chunk of it is."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Line
from tests.harness.reading import run

pytestmark = pytest.mark.timeout(120)

MIB, GIB = 1 << 20, 1 << 30
FIRST = random.Random(11).randbytes(MIB)
BUCKET = "first-bytes"
FILLS_DONE = 'headrace_fills_total{result="done"}'


@pytest.fixture
def large(line: Line, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The file, on a mount of its own. Behind the first MiB it is a hole: only the server needs the disk."""
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.write(FIRST)
        file.truncate(request.param)
    line.stack.s3.put(BUCKET, "large", source)
    mount = line.stack.mount(f"s3://{BUCKET}")
    yield mount / "large"
    line.proxy.clear()
    line.stack.umount(mount)
    line.stack.s3.delete(BUCKET, "large")


@pytest.mark.parametrize(
    "large",
    [pytest.param(256 * MIB, id="256 MiB"), pytest.param(GIB, id="1 GiB", marks=pytest.mark.long)],
    indirect=True,
)
def test_the_first_mib_is_served_before_the_first_chunk_is_complete(line: Line, large: Path) -> None:
    before = line.stack.metrics().get(FILLS_DONE, 0.0)
    gate = line.proxy.hold(key="*/large", after=2 * MIB)
    reader = run(["sh", "-c", 'head -c 1048576 "$1" | sha256sum', "sh", str(large)], within=20)
    assert reader.stdout.split()[0] == hashlib.sha256(FIRST).hexdigest(), reader.stderr
    gate.await_held(1)
    assert line.stack.metrics().get(FILLS_DONE, 0.0) == before  # the gate still holds the chunk's other bytes
