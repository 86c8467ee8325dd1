"""A complete dataset is published as a bind mount of its files: the same to look at, nobody in between."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.control.client import AdminClient
from csi.holder.mountinfo import mount_entries
from deploy.local.layout import AgentSettings
from deploy.local.stack import LocalStack
from tests.harness.reading import digests, read, run, start_reader
from tests.harness.s3 import SeaweedS3

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
THIRD_UID = 65533
# What a user sees of a tree: kind and mode, size, modification time, bytes.
WALK = """
import hashlib, os, sys
root = os.fsencode(sys.argv[1])
for directory, names, files in os.walk(root):
    for path in (directory, *(os.path.join(directory, name) for name in files)):
        status = os.lstat(path)
        file = path != directory
        data = open(path, "rb").read() if file else b""
        size = status.st_size if file else ""
        digest = hashlib.sha256(data).hexdigest()
        print(os.path.relpath(path, root), oct(status.st_mode), size, status.st_mtime_ns, digest)
"""
HOLD_MAPPED = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
    print("mapped", flush=True)
    sys.stdin.readline()
    print(hashlib.sha256(view).hexdigest())
"""


@contextlib.contextmanager
def running(s3: SeaweedS3, settings: AgentSettings | None = None) -> Iterator[LocalStack]:
    with LocalStack(settings or AgentSettings(), s3=s3) as stack:
        yield stack


def upload(stack: LocalStack, bucket: str, size: int = 9 * MIB) -> dict[str, bytes]:
    rng = random.Random(size)
    files = {
        "weights": rng.randbytes(size),
        "d/e/small": b"small",
        "d/none": b"",
        "odd\nname": rng.randbytes(5),
    }
    for key, data in files.items():
        stack.s3.put(bucket, key, data)
    stack.s3.put(bucket, "nothing/", b"")
    return files


def modes(stack: LocalStack) -> list[str]:
    async def ask() -> list[str]:
        async with AdminClient(str(stack.layout.admin_socket)) as client:
            return [mount.mode for mount in await client.mounts()]

    return sorted(asyncio.run(ask()))


def walk(path: Path, user: int | None = None) -> list[str]:
    command = [sys.executable, "-c", WALK, str(path)]
    seen = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, user=user, extra_groups=[]
    )
    assert seen.returncode == 0, seen.stderr
    return sorted(seen.stdout.splitlines())


def warm(stack: LocalStack, uri: str) -> list[str]:
    """Read all of a dataset through FUSE, and give what was seen."""
    mount = stack.mount(uri)
    seen = walk(mount)
    stack.umount(mount)
    return seen


def trees(stack: LocalStack) -> list[Path]:
    return [tree for store in stack.settings.stores(stack.layout) for tree in store.glob("trees/*")]


def leases(stack: LocalStack) -> int:
    index = sqlite3.connect(f"file:{stack.layout.store / 'index.sqlite'}?mode=ro", uri=True)
    with contextlib.closing(index):
        (count,) = index.execute("SELECT COUNT(*) FROM leases").fetchone()
    return int(count)


def nothing_left(stack: LocalStack) -> bool:
    root = f"{stack.layout.root}/"
    return not (trees(stack) or leases(stack) or any(e.point.startswith(root) for e in mount_entries()))


def test_the_tree_is_to_look_at_what_fuse_shows(stack: LocalStack) -> None:
    files = upload(stack, "promoted-same")
    through_fuse = warm(stack, "s3://promoted-same")
    assert modes(stack) == []
    mount = stack.mount("s3://promoted-same")
    assert modes(stack) == ["promoted"]
    assert walk(mount) == through_fuse
    assert walk(mount, user=THIRD_UID) == through_fuse
    assert read("mapped", mount / "weights") == [hashlib.sha256(files["weights"]).hexdigest()]
    assert all(stat.S_IMODE(tree.stat().st_mode) == 0o700 for tree in trees(stack))
    (tree,) = trees(stack)
    denied = subprocess.run(
        ["ls", str(tree / "root")], user=THIRD_UID, extra_groups=[], capture_output=True, check=False
    )
    assert denied.returncode != 0
    for change in (["touch", f"{mount}/weights"], ["rm", f"{mount}/weights"], ["touch", f"{mount}/new"]):
        assert "Read-only file system" in run(change).stderr
    stack.umount(mount)
    assert nothing_left(stack)


def test_two_targets_share_a_tree_until_the_last_is_gone(stack: LocalStack) -> None:
    upload(stack, "promoted-shared")
    warm(stack, "s3://promoted-shared")
    first, second = (stack.mount("s3://promoted-shared") for _ in range(2))
    assert (modes(stack), len(trees(stack)), leases(stack)) == (["promoted"], 1, 1)
    stack.umount(first)
    assert read("sequential", second / "d/e/small") == [hashlib.sha256(b"small").hexdigest()]
    stack.umount(second)
    assert nothing_left(stack)


def test_what_is_mounted_through_fuse_goes_on_beside_the_tree(stack: LocalStack) -> None:
    upload(stack, "promoted-beside")
    served = stack.mount("s3://promoted-beside")
    seen = walk(served)
    tree = stack.mount("s3://promoted-beside")
    assert "promoted" in modes(stack) and len(modes(stack)) == 2
    assert walk(served) == walk(tree) == seen
    stack.umount(tree)
    assert walk(served) == seen
    stack.umount(served)
    assert nothing_left(stack)


def test_reads_and_mappings_go_on_while_holder_and_agent_are_dead(stack: LocalStack) -> None:
    files = upload(stack, "promoted-dead")
    expected = hashlib.sha256(files["weights"]).hexdigest()
    warm(stack, "s3://promoted-dead")
    mount = stack.mount("s3://promoted-dead")
    mapped = subprocess.Popen(
        [sys.executable, "-c", HOLD_MAPPED, str(mount / "weights")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert mapped.stdout is not None and mapped.stdout.readline() == "mapped\n"
    stack.kill_agent()
    stack.kill_holder()
    assert mapped.communicate("go\n", timeout=30)[0].strip() == expected
    for how in ("sequential", "mapped", "scattered"):
        assert digests(start_reader(how, [mount / "weights"])) == [expected]
    stack.start_holder()
    stack.start_agent()
    assert modes(stack) == ["promoted"]
    assert read("sequential", mount / "weights") == [expected]
    again = stack.mount("s3://promoted-dead")
    assert walk(again) == walk(mount)
    stack.umount(again)
    stack.umount(mount)
    assert nothing_left(stack)


def test_what_was_unpublished_while_no_agent_was_there_is_gone_with_the_next(stack: LocalStack) -> None:
    upload(stack, "promoted-orphan")
    warm(stack, "s3://promoted-orphan")
    mount = stack.mount("s3://promoted-orphan")
    stack.kill_agent()
    stack.umount(mount)
    assert trees(stack)
    stack.start_agent()
    assert nothing_left(stack)


def test_a_holder_that_is_restarted_under_a_running_agent_keeps_the_tree(stack: LocalStack) -> None:
    upload(stack, "promoted-holder")
    warm(stack, "s3://promoted-holder")
    mount = stack.mount("s3://promoted-holder")
    seen = walk(mount)
    stack.kill_holder()
    assert walk(mount) == seen
    stack.start_holder()
    stack.process("agent").await_ready(lambda: stack.metrics()["headrace_holder_connected"] == 1, 30.0)
    again = stack.mount("s3://promoted-holder")
    assert walk(again) == seen
    stack.umount(mount)
    stack.umount(again)
    assert nothing_left(stack)


def test_nothing_is_promoted_where_the_setting_says_never(seaweed: SeaweedS3) -> None:
    with running(seaweed, AgentSettings(promote="never")) as stack:
        upload(stack, "promoted-never")
        warm(stack, "s3://promoted-never")
        mount = stack.mount("s3://promoted-never")
        assert "promoted" not in modes(stack) and len(modes(stack)) == 1
        stack.umount(mount)


def test_an_incomplete_dataset_is_not_promoted(stack: LocalStack) -> None:
    upload(stack, "promoted-part")
    mount = stack.mount("s3://promoted-part")
    read("sequential", mount / "d/e/small", mount / "odd\nname")
    again = stack.mount("s3://promoted-part")
    assert "promoted" not in modes(stack)
    stack.umount(again)
    stack.umount(mount)


@pytest.mark.parametrize(("capacity", "promoted"), [("64MiB", True), ("12MiB", False)])
def test_only_a_dataset_that_fits_one_directory_is_promoted(
    seaweed: SeaweedS3, capacity: str, promoted: bool
) -> None:
    settings = AgentSettings(directories=("a", "b"), capacity=capacity, reserve="1MiB")
    with running(seaweed, settings) as stack:
        bucket = f"promoted-spread-{capacity.lower()}"
        for name in ("one", "two"):
            stack.s3.put(bucket, name, os.urandom(8 * MIB))
        seen = warm(stack, f"s3://{bucket}")
        mount = stack.mount(f"s3://{bucket}")
        assert ("promoted" in modes(stack)) is promoted
        assert walk(mount) == seen
        stack.umount(mount)


def test_after_a_restart_of_the_machine_it_is_verified_first_and_damage_is_refetched(
    seaweed: SeaweedS3,
) -> None:
    # No scrub: where it came first, the dataset would not be whole, and nothing else of it would be verified.
    with running(seaweed, AgentSettings(scrub_rate="0B")) as stack:
        upload(stack, "promoted-boot", size=20 * MIB)
        seen = warm(stack, "s3://promoted-boot")
        another_boot(stack)
        mount = stack.mount("s3://promoted-boot")
        assert "promoted" not in modes(stack)
        within_a_minute(lambda: published_promoted(stack, "s3://promoted-boot"))
        stack.umount(mount)
        another_boot(stack)
        flip(largest_object(stack), 9 * MIB)
        mount = stack.mount("s3://promoted-boot")
        within_a_minute(lambda: not published_promoted(stack, "s3://promoted-boot") and verified(stack))
        assert not published_promoted(stack, "s3://promoted-boot")
        assert walk(mount) == seen
        within_a_minute(lambda: published_promoted(stack, "s3://promoted-boot"))
        stack.umount(mount)
        assert nothing_left(stack)


def published_promoted(stack: LocalStack, uri: str) -> bool:
    mount = stack.mount(uri)
    promoted = "promoted" in modes(stack)
    stack.umount(mount)
    return promoted


def another_boot(stack: LocalStack) -> None:
    """Have the store's bytes be those of another boot, as the index knows them."""
    stack.stop_agent()
    _index(stack, "UPDATE chunks SET boot = 'another'")
    stack.start_agent()


def verified(stack: LocalStack) -> bool:
    return not _index(stack, "SELECT 1 FROM chunks WHERE boot = 'another'")


def within_a_minute(published: Callable[[], bool]) -> None:
    """Publish again, which takes its time, until it comes out as wanted."""
    deadline = time.monotonic() + 60
    while not published():
        assert time.monotonic() < deadline


def _index(stack: LocalStack, statement: str) -> list[object]:
    with contextlib.closing(sqlite3.connect(stack.layout.store / "index.sqlite")) as index, index:
        return index.execute(statement).fetchall()


def largest_object(stack: LocalStack) -> Path:
    files = (path for path in (stack.layout.store / "objects").rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
