"""File origins on a real file system, with links, pipes and a mount of our own that nobody serves."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.config import OriginConfig
from agent.content import ObjectRef
from agent.errors import BadRequest, ObjectMissing, OriginUnavailable, VersionChanged
from agent.origin.file import FileOrigin
from tests.harness.sink import MemorySink, read_object

MNT_DETACH = 2  # include/linux/fs.h


@pytest.fixture
async def origin() -> AsyncIterator[FileOrigin]:
    origin = FileOrigin(OriginConfig(deadline=5.0))
    yield origin
    await origin.close()


def uri(path: Path) -> str:
    return f"file://{path}"


async def test_a_tree_is_listed_and_read(origin: FileOrigin, tmp_path: Path) -> None:
    (tmp_path / "sub/empty").mkdir(parents=True)
    files = {"a b%41": b"1" * 3_000_000, "sub/f": b"2", "zero": b""}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    dataset = await origin.resolve(uri(tmp_path) + "/")
    assert {entry.path: await read_object(origin, entry.ref) for entry in dataset.entries} == files
    assert dataset.directories == ("sub/empty",)
    assert dataset.entries[0].mtime_ns == (tmp_path / "a b%41").stat().st_mtime_ns


async def test_one_file_is_a_dataset_under_its_name(origin: FileOrigin, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "name.bin").symlink_to("blob")
    (entry,) = (await origin.resolve(uri(tmp_path / "name.bin"))).entries
    assert (entry.path, entry.ref.uri) == ("name.bin", uri(tmp_path / "blob"))


async def test_links_are_followed_only_inside_the_tree(origin: FileOrigin, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (tmp_path / "outside").write_text("secret")
    (root / "d/f").write_bytes(b"data")
    links = {"in": "d/f", "dir": "d", "up": "..", "loop": ".", "out": "../outside", "broken": "nowhere"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")
    dataset = await origin.resolve(uri(root))
    assert [entry.path for entry in dataset.entries] == ["d/f", "dir/f", "in"]
    assert len({entry.ref for entry in dataset.entries}) == 1
    reasons = {item.key: item.reason for item in dataset.unmapped}
    assert sorted(reasons) == ["broken", "loop", "out", "pipe", "up"]
    assert "nowhere" in reasons["broken"] and "out of the tree" in reasons["out"]
    assert "above" in reasons["loop"] and "neither" in reasons["pipe"]


async def test_changed_files_are_another_version(origin: FileOrigin, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1" * 100)
    ref = (await origin.resolve(uri(path))).entries[0].ref
    path.write_bytes(b"2" * 101)
    with pytest.raises(VersionChanged):
        await read_object(origin, ref)
    ref = (await origin.resolve(uri(path))).entries[0].ref
    (tmp_path / "new").write_bytes(b"3" * 101)
    os.replace(tmp_path / "new", path)
    with pytest.raises(VersionChanged):
        await read_object(origin, ref)
    path.unlink()
    with pytest.raises(ObjectMissing):
        await read_object(origin, ref)
    path.symlink_to("elsewhere")
    with pytest.raises(OriginUnavailable):
        await read_object(origin, ref)


async def test_a_file_that_changes_while_a_chunk_is_read_is_noticed(
    origin: FileOrigin, tmp_path: Path
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1" * 3_000_000)
    ref = (await origin.resolve(uri(path))).entries[0].ref

    class Overwriting(MemorySink):
        def write(self, data: memoryview) -> None:
            super().write(data)
            os.utime(path, ns=(1, 1))

    with pytest.raises(VersionChanged):
        await origin.fetch(ref, Overwriting(0, ref.size))


async def test_pieces_are_of_a_mib_at_most(origin: FileOrigin, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(5_000_000))
    ref = (await origin.resolve(uri(path))).entries[0].ref
    sink = MemorySink(1_000_000, 4_500_000)
    await origin.fetch(ref, sink)
    assert bytes(sink.data) == path.read_bytes()[1_000_000:4_500_000]
    assert sink.largest == 1 << 20


async def test_a_cancelled_fetch_touches_the_sink_no_more(origin: FileOrigin, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(4 << 20))
    ref = (await origin.resolve(uri(path))).entries[0].ref
    loop = asyncio.get_running_loop()
    writing, go_on = asyncio.Event(), threading.Event()

    class Slow(MemorySink):
        def write(self, data: memoryview) -> None:
            loop.call_soon_threadsafe(writing.set)
            go_on.wait(10)
            super().write(data)

    sink = Slow(0, ref.size)
    fetch = asyncio.create_task(origin.fetch(ref, sink))
    await writing.wait()
    fetch.cancel()
    loop.call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await fetch
    assert len(sink.data) == 1 << 20
    await origin.resolve(uri(path))  # the thread has come back to the pool
    assert len(sink.data) == 1 << 20


async def test_paths_that_are_not_absolute_or_not_there_are_refused(
    origin: FileOrigin, tmp_path: Path
) -> None:
    for bad in ("file://host/path", "file:relative", "file://", "file:///a\0b"):
        with pytest.raises(BadRequest):
            await origin.resolve(bad)
    with pytest.raises(ObjectMissing, match="nowhere"):
        await origin.resolve(uri(tmp_path / "nowhere"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequest):
        await origin.resolve(uri(tmp_path / "pipe"))


async def test_a_mount_of_our_own_is_never_touched(origin: FileOrigin, tmp_path: Path) -> None:
    point = tmp_path / "tree/mount"
    point.mkdir(parents=True)
    (tmp_path / "tree/f").write_bytes(b"x")
    (tmp_path / "link").symlink_to(point / "x")
    with unserved_mount(point):
        for path in (point, point / "x", tmp_path / "link"):
            with pytest.raises(BadRequest, match="Headrace itself"):
                await origin.resolve(uri(path))
        with pytest.raises(BadRequest, match="Headrace itself"):
            await origin.fetch(ObjectRef(uri(point / "x"), "1:1:1", 1), MemorySink(0, 1))
        dataset = await origin.resolve(uri(tmp_path / "tree"))
    assert [entry.path for entry in dataset.entries] == ["f"]
    assert [item.key for item in dataset.unmapped] == ["mount"]


async def test_a_file_system_that_hangs_is_unavailable_within_the_deadline(tmp_path: Path) -> None:
    origin = FileOrigin(OriginConfig(deadline=0.2))
    with unserved_mount(tmp_path, kind=b"fuse.hung"), pytest.raises(OriginUnavailable, match="not answer"):
        await origin.resolve(uri(tmp_path / "x"))
    await origin.close()


@contextlib.contextmanager
def unserved_mount(point: Path, kind: bytes = b"fuse.headrace") -> Iterator[None]:
    """A FUSE mount whose requests nobody answers: whoever touches it hangs until it goes away."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"test", os.fsencode(point), kind, 0, options):
        os.close(fd)
        pytest.fail(f"mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(fd)  # ends the connection, and with it every wait
        libc.umount2(os.fsencode(point), MNT_DETACH)
