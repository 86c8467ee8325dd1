"""`headrace-csi status` and the admin API say what is mounted where, how, and what came from where."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.layout import AgentSettings
from deploy.local.stack import CHECKOUT, LocalStack
from tests.harness.reading import read
from tests.harness.s3 import SeaweedS3

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
DATA = random.Random(4).randbytes(9 * MIB)


@pytest.fixture(scope="module")
def stack(seaweed: SeaweedS3) -> Iterator[LocalStack]:
    """Little patience, so that a failing read fails soon."""
    with LocalStack(AgentSettings(patience="1s"), s3=seaweed) as stack:
        yield stack


@pytest.fixture
def mount(stack: LocalStack, request: pytest.FixtureRequest) -> Iterator[Path]:
    bucket = f"status-{len(request.node.name)}"
    stack.s3.put(bucket, "model.bin", DATA)
    stack.s3.put(bucket, "gone.bin", DATA[:MIB])
    target = stack.mount(f"s3://{bucket}")
    yield target
    stack.umount(target)


def status(stack: LocalStack, *options: str) -> subprocess.CompletedProcess[str]:
    layout = stack.layout
    sockets = ("--holder-socket", str(layout.holder_socket), "--admin-socket", str(layout.admin_socket))
    command = [sys.executable, "-m", "csi", "status", *sockets, *options]
    return subprocess.run(command, check=False, cwd=CHECKOUT, capture_output=True, text=True, timeout=30)


def told(stack: LocalStack, target: Path) -> dict[str, Any]:
    mounts = json.loads(status(stack, "--json").stdout)
    return next(one for one in mounts if str(target) in one["targets"])


def test_bytes_are_told_by_the_source_that_they_came_from(stack: LocalStack, mount: Path) -> None:
    read("sequential", mount / "model.bin")
    row = told(stack, mount)
    assert row["mode"] == "fuse"
    assert row["uri"].startswith("s3://status-")
    assert 0 < row["origin_bytes"] <= len(DATA)
    assert row["origin_bytes"] + row["store_bytes"] == len(DATA)
    assert row["last_error"] == ""


def test_a_complete_file_is_told_as_passed_through(stack: LocalStack, mount: Path) -> None:
    read("sequential", mount / "model.bin")
    read("sequential", mount / "model.bin")  # complete now; one file of the dataset is not, so no promotion
    assert told(stack, mount)["mode"] == "passthrough"


def test_the_last_error_says_what_to_look_at(stack: LocalStack, mount: Path) -> None:
    bucket = told(stack, mount)["uri"].removeprefix("s3://")
    stack.s3.delete(bucket, "gone.bin")
    reader = subprocess.run(["cat", str(mount / "gone.bin")], check=False, capture_output=True, timeout=20)
    assert reader.returncode != 0
    assert "gone.bin" in told(stack, mount)["last_error"]


def test_people_get_a_table_with_every_target(stack: LocalStack, mount: Path) -> None:
    printed = status(stack)
    assert printed.returncode == 0, printed.stderr
    assert "last error" in printed.stdout
    assert str(mount) in printed.stdout


def test_without_the_agent_the_holders_mounts_are_listed_and_the_failure_is_said(
    stack: LocalStack, mount: Path
) -> None:
    stack.stop_agent()
    try:
        printed = status(stack, "--json")
        assert printed.returncode == 1
        assert "is headrace-agent running?" in printed.stderr
        rows = [one for one in json.loads(printed.stdout) if str(mount) in one["targets"]]
        assert [row["mode"] for row in rows] == ["unserved"]
    finally:
        stack.start_agent()


def test_without_the_holder_it_fails_with_one_line(stack: LocalStack, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "csi", "status", "--holder-socket", str(tmp_path / "none.sock")]
    printed = subprocess.run(command, check=False, cwd=CHECKOUT, capture_output=True, text=True, timeout=30)
    assert printed.returncode == 1
    assert len(printed.stderr.splitlines()) == 1
