"""Where a stack's files are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from deploy.local.layout import parent_directory
from deploy.local.stack import LocalStack
from tests.harness import leftovers
from tests.harness.s3 import SeaweedS3


def test_a_mount_that_a_stack_leaves_is_seen_by_the_sessions_check(seaweed: SeaweedS3) -> None:
    seaweed.put("layout", "tree/file", b"bytes")
    with LocalStack(s3=seaweed) as stack:
        mounted = stack.mount("s3://layout/tree")
        assert mounted in leftovers.mounts((Path(tempfile.gettempdir()),))


def test_a_temporary_directory_that_others_cannot_enter_is_not_used(
    traversable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = traversable / "private"
    private.mkdir(mode=0o700)
    for directory, used in ((traversable, traversable), (private, Path("/tmp"))):
        monkeypatch.setattr(tempfile, "tempdir", str(directory))
        assert parent_directory() == used


def test_a_temporary_directory_too_long_for_sockets_is_not_used(
    traversable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = traversable / ("x" * 60)
    long.mkdir(mode=0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert parent_directory() == Path("/tmp")
