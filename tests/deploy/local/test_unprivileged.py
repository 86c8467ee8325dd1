"""Running as an ordinary user from a place that only root may enter."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.holder.mountinfo import mount_entries
from deploy.local.unprivileged import closed_above

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that only root may enter, in one that everybody may."""
    with tempfile.TemporaryDirectory(prefix="headrace-test-") as directory:
        outer = Path(directory)
        outer.chmod(0o755)
        (outer / "stage").mkdir(mode=0o700)
        inner = outer / "closed"
        for name in ("needed", "other"):
            (inner / name).mkdir(parents=True)
            (inner / name / "file").write_text(name)
        inner.chmod(0o700)
        yield inner


def run_in(closed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    prefix = ["unshare", "--mount", "--propagation", "private", "--", sys.executable, "-m"]
    arguments = ["deploy.local.unprivileged", "nobody", str(closed.parent / "stage"), str(closed / "needed")]
    return subprocess.run(
        [*prefix, *arguments, "--", *command],
        check=False,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_closed_directory_is_found_above_a_path(closed: Path) -> None:
    assert closed_above(closed / "needed") == closed
    assert closed_above(Path("/usr/bin")) is None


def test_the_named_directory_can_be_read_and_nothing_beside_it(closed: Path) -> None:
    assert run_in(closed, "cat", str(closed / "needed/file")).stdout == "needed"
    assert "No such file" in run_in(closed, "cat", str(closed / "other/file")).stderr


def test_the_named_directory_is_read_only_there(closed: Path) -> None:
    (closed / "needed").chmod(0o777)
    assert "Read-only file system" in run_in(closed, "touch", str(closed / "needed/new")).stderr


def test_outside_nothing_changes(closed: Path) -> None:
    assert run_in(closed, "true").returncode == 0
    assert [entry.point for entry in mount_entries() if str(closed.parent) in entry.point] == []
    assert closed.stat().st_mode & 0o777 == 0o700


def test_the_command_is_an_ordinary_user_without_a_capability(closed: Path) -> None:
    status = run_in(closed, "cat", "/proc/self/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == fields["Gid"].split() == ["65534"] * 4
    assert fields["Groups"].strip() == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert fields["NoNewPrivs"] == "1"
