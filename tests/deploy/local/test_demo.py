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


def lines_up_to(process: subprocess.Popen[str], text: str) -> list[str]:
    """Read the demonstration's output up to the first line that has `text` in it."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return seen
    pytest.fail(f"ended before {text!r}: {seen}")


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """That line."""
    return lines_up_to(process, text)[-1]


def directories_in(text: str) -> list[str]:
    """The nodes' directories, as far as the demonstration has told them."""
    found = re.findall(r"/[^\s,]*/headrace-[^\s,]+", text)
    assert found
    return found


def left_of(directories: list[str]) -> list[str]:
    """What is left of stacks: their directories, their mounts, and processes that these are named to."""
    return [left for directory in directories for left in _left_of(directory)]


def _left_of(directory: str) -> list[str]:
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
        line = line_with(process, "starting")
        output, errors = process.communicate(timeout=ENDS_WITHIN)
    assert (process.returncode, errors) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    parts = {row[0]: [float(part) for part in row[5:]] for row in rows}
    for row in rows:
        assert row[1:3] == ["13", "91,618,861"]
        assert sum(parts[row[0]]) == pytest.approx(91.6, abs=0.25)
    columns = ("origin", "peers", "swarm", "store", "page cache")
    came = {name: dict(zip(columns, found, strict=True)) for name, found in parts.items()}
    assert list(came) == ["1", "1 again", "2", "3"]
    assert came["1"]["origin"] > 90 > came["1 again"]["origin"] == 0
    # Where a machine is so busy that a peer answers late, an agent reads the origin, as it should.
    assert came["2"]["peers"] > 80 > 10 > came["2"]["origin"]
    assert came["3"]["swarm"] > 80 > 10 > came["3"]["origin"]
    assert "13 of 13 files have the SHA-256" in output
    directories = directories_in(line + output)
    assert len(directories) == 3
    assert left_of(directories) == []


@pytest.mark.parametrize(
    ("moment", "stopping", "status"),
    [
        ("starting", signal.SIGINT, 130),
        ("starting two more nodes", signal.SIGINT, 130),
        ("the first time", signal.SIGTERM, 143),
    ],
)
def test_an_interrupted_demo_leaves_nothing(moment: str, stopping: signal.Signals, status: int) -> None:
    with demo() as process:
        line = line_with(process, "starting")
        if moment not in line:
            line += "".join(lines_up_to(process, moment))
        process.send_signal(stopping)
        _, errors = process.communicate(timeout=ENDS_WITHIN)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert left_of(directories_in(line)) == []


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
        'headrace_peer_bytes_total{direction="received"}': 5.0,
        'headrace_peer_bytes_total{direction="sent"}': 50.0,
        'headrace_swarm_bytes_total{direction="received"}': 7.0,
        'headrace_read_bytes_total{source="origin"}': 30.0,
        'headrace_read_bytes_total{source="store"}': 35.0,
    }
    expected = Sources(origin=40, peers=5, swarm=7, store=23, page_cache=25)
    assert sources(loaded, before, after) == expected


def test_the_sources_of_a_load_are_never_more_than_it_read() -> None:
    loaded = Loaded(files=1, tensors=0, bytes=100, seconds=1.0, disk_bytes=4096)
    after = {'headrace_origin_bytes_total{origin="s3://"}': 70.0}
    assert sources(loaded, {}, after) == Sources(origin=70, peers=0, swarm=0, store=30, page_cache=0)


@pytest.mark.parametrize(
    ("found", "what"),
    [({}, "a is missing"), ({"a": "1", "b": "2"}, "b is in the mount"), ({"a": "2"}, "a: SHA-256 2")],
)
def test_a_tree_that_differs_fails_the_demo(found: dict[str, str], what: str) -> None:
    with pytest.raises(DemoFailed, match=what):
        compare({"a": "1"}, found)
