"""`make demo`, run as its users run it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi.holder.mountinfo import mount_entries
from deploy.local.demo import DemoFailed, Sources, compare, sources
from deploy.local.loader import Loaded

pytestmark = pytest.mark.timeout(120)

CHECKOUT = Path(__file__).resolve().parents[3]
ENDS_WITHIN = 90.0  # seconds


@contextmanager
def demo() -> Iterator[subprocess.Popen[str]]:
    """The demonstration; SIGINT ends it also where the tests run in the background, which ignores it."""
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, "-m", "deploy.local.demo"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """Read the demonstration's output up to the first line that has `text` in it."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    pytest.fail(f"ended before {text!r}: {seen}")


def directory_in(line: str) -> str:
    found = re.search(r"/\S*/headrace-\S+", line)
    assert found is not None
    return found[0]


def left_of(directory: str) -> list[str]:
    """What is left of a stack: its directory, its mounts, and processes that it is named to."""
    left = [directory] if Path(directory).exists() else []
    left += [entry.point for entry in mount_entries() if entry.point.startswith(directory)]
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = command.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
        left += [arguments] if directory in arguments else []
    return left


def test_the_demo_shows_where_the_bytes_came_from_and_leaves_nothing() -> None:
    with demo() as process:
        directory = directory_in(line_with(process, "starting"))
        output, errors = process.communicate(timeout=ENDS_WITHIN)
    assert (process.returncode, errors) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["first", "second"]
    for row in rows:
        assert row[1:3] == ["13", "91,618,861"]
        assert sum(float(part) for part in row[5:]) == pytest.approx(91.6, abs=0.15)
    assert float(rows[0][5]) > 90 > float(rows[1][5]) == 0
    assert "13 of 13 files have the SHA-256" in output
    assert left_of(directory) == []


@pytest.mark.parametrize(
    ("moment", "stopping", "status"),
    [
        ("starting", signal.SIGINT, 130),
        ("headrace-csi mount", signal.SIGINT, 130),
        ("the first time", signal.SIGINT, 130),
        ("the first time", signal.SIGTERM, 143),
    ],
)
def test_an_interrupted_demo_leaves_nothing(moment: str, stopping: signal.Signals, status: int) -> None:
    with demo() as process:
        line = line_with(process, "starting")
        directory = directory_in(line)
        if moment not in line:
            line_with(process, moment)
        process.send_signal(stopping)
        _, errors = process.communicate(timeout=ENDS_WITHIN)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert left_of(directory) == []


def test_without_root_the_demo_says_so_in_one_line() -> None:
    script = "import os, sys; os.setuid(65534); from deploy.local.demo import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN,
    )
    assert done.returncode == 1
    assert done.stderr == "demo: mounting needs root; run it with sudo\n"


def test_the_sources_of_a_load_add_up() -> None:
    loaded = Loaded(files=1, tensors=0, bytes=100, seconds=1.0, disk_bytes=10)
    before = {'headrace_origin_bytes_total{origin="s3://"}': 1000.0}
    after = {
        'headrace_origin_bytes_total{origin="s3://"}': 1040.0,
        'headrace_read_bytes_total{source="origin"}': 30.0,
        'headrace_read_bytes_total{source="store"}': 35.0,
    }
    assert sources(loaded, before, after) == Sources(origin=40, store=35, page_cache=25)


def test_the_sources_of_a_load_are_never_more_than_it_read() -> None:
    loaded = Loaded(files=1, tensors=0, bytes=100, seconds=1.0, disk_bytes=4096)
    after = {'headrace_origin_bytes_total{origin="s3://"}': 70.0}
    assert sources(loaded, {}, after) == Sources(origin=70, store=30, page_cache=0)


@pytest.mark.parametrize(
    ("found", "what"),
    [({}, "a is missing"), ({"a": "1", "b": "2"}, "b is in the mount"), ({"a": "2"}, "a: SHA-256 2")],
)
def test_a_tree_that_differs_fails_the_demo(found: dict[str, str], what: str) -> None:
    with pytest.raises(DemoFailed, match=what):
        compare({"a": "1"}, found)
