"""Our own mounts are recognised by the mount table, and never touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import BadRequest
from agent.origin.mounts import OwnMounts, resolve

TABLE = (
    "22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw\n"
    "90 27 0:51 / /mnt/models rw,nosuid - fuse.headrace headrace ro\n"
    "91 27 0:52 / /mnt/with\\040space rw - fuse.headrace headrace ro\n"
    "92 27 0:53 / /mnt/other rw - fuse.sshfs host: rw\n"
)


def test_mounts_of_our_type_hold_their_point_and_what_is_below(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(TABLE)
    mounts = OwnMounts.read(tmp_path / "mountinfo")
    for path in ("/mnt/models", "/mnt/models/a/b", "/mnt/with space/x"):
        assert mounts.holds(path)
        with pytest.raises(BadRequest, match="Headrace itself"):
            mounts.refuse(path)
    for path in ("/", "/mnt", "/mnt/models2", "/mnt/other/x", "/proc"):
        assert not mounts.holds(path)


def test_links_are_resolved_as_the_kernel_does(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_text("x")
    (tmp_path / "relative").symlink_to("a/./b/../b")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")
    none = OwnMounts(frozenset())
    for path in ("a/b/f", "relative/f", "absolute/../b/f", "absolute//f"):
        assert resolve(f"{tmp_path}/{path}", none) == os.path.realpath(f"{tmp_path}/{path}")


def test_a_link_into_a_mount_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "mount" / "x")
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "x").write_text("x")
    with pytest.raises(BadRequest):
        resolve(str(tmp_path / "link"), OwnMounts(frozenset({str(tmp_path / "mount")})))


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="too many symbolic links"):
        resolve(str(tmp_path / "a"), OwnMounts(frozenset()))
