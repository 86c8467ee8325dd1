"""Parsing of mountinfo."""

from __future__ import annotations

from csi.holder.mountinfo import inside_ours, mount_entries, parse_mountinfo

LINES = [
    "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n",
    "42 27 0:39 / /a\\040b\\134c\\012d\u00a0e ro,nosuid,nodev - fuse.headrace headrace ro\n",
    "43 27 0:40 / /x rw - fuse.other other rw\n",
]


def test_escapes_and_optional_fields_are_understood() -> None:
    first, second, _ = parse_mountinfo(LINES)
    assert (first.mount_id, first.device, first.point, first.fstype) == (36, "98:0", "/mnt2", "ext3")
    assert second.point == "/a b\\c\nd\u00a0e"
    assert second.options == "ro,nosuid,nodev"


def test_only_headrace_mounts_are_ours() -> None:
    assert [entry.ours for entry in parse_mountinfo(LINES)] == [False, True, False]


def test_a_path_lies_inside_a_mount_only_behind_its_slash() -> None:
    entries = parse_mountinfo([line.replace("\\040b\\134c\\012d\u00a0e", "") for line in LINES])
    assert inside_ours("/a/b", entries) is entries[1]
    assert inside_ours("/a", entries) is None
    assert inside_ours("/ab", entries) is None
    assert inside_ours("/x/y", entries) is None


def test_this_machines_own_table_is_understood() -> None:
    assert any(entry.point == "/proc" and entry.fstype == "proc" for entry in mount_entries())
