"""Binding on targets and taking off again, whatever state the mount is in; real mounts, real processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.holder import kernel
from csi.holder.client import HolderConnection
from csi.holder.mountinfo import MountEntry, mount_entries
from csi.holder.protocol import Message, Refused
from tests.csi.holding import (
    HolderProcess,
    answer_one,
    answering,
    ask,
    path_descriptor,
    stat_elsewhere,
)


@pytest.fixture
def agent(holder: HolderProcess) -> Iterator[HolderConnection]:
    connection = holder.connect("agent")
    with connection.request("claim", {}, several=True):
        pass
    yield connection
    connection.close()


@pytest.fixture
def serve(holder: HolderProcess) -> Iterator[HolderConnection]:
    connection = holder.connect("command")
    yield connection
    connection.close()


@pytest.fixture
def target(holder: HolderProcess) -> Path:
    path = holder.base / "pods" / "a b"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def fuse(agent: HolderConnection) -> Iterator[int]:
    descriptor = mounted(agent, "m")
    yield descriptor
    os.close(descriptor)


def mounted(agent: HolderConnection, name: str) -> int:
    with agent.request("mount", {"mount": name, "record": {}}) as (answer,):
        descriptor = answer.take()
    ask(agent, "record", {"mount": name, "record": {}})  # by now the holder has closed the copy that it sent
    return descriptor


def bind(serve: HolderConnection, mount: str, target: Path, note: Message | None = None) -> Message:
    with path_descriptor(target) as descriptor:
        return ask(serve, "bind", {"mount": mount, "target": str(target), "note": note or {}}, [descriptor])


def refusal(serve: HolderConnection, mount: str, target: Path) -> str:
    with pytest.raises(Refused) as refused:
        bind(serve, mount, target)
    return refused.value.code


def entries_at(target: Path) -> list[MountEntry]:
    """What is mounted there: other tests mount elsewhere at the same time."""
    return [entry for entry in mount_entries() if entry.point == str(target)]


def entry_at(target: Path) -> MountEntry | None:
    return next(iter(entries_at(target)), None)


def test_a_bound_target_shows_the_mount_read_only_and_harmless(
    serve: HolderConnection, fuse: int, target: Path
) -> None:
    assert bind(serve, "m", target)["already"] is False
    entry = entry_at(target)
    assert entry is not None and entry.fstype == "fuse.headrace"
    assert {"ro", "nosuid", "nodev"} <= set(entry.options.split(","))
    answer_one(fuse)
    with answering(fuse):
        assert stat_elsewhere(target).stdout.strip() == "416d"


def test_binding_again_changes_nothing_and_keeps_the_first_note(
    serve: HolderConnection, fuse: int, target: Path
) -> None:
    bind(serve, "m", target, {"first": 1})
    before = entries_at(target)
    assert bind(serve, "m", target, {"second": 2})["already"] is True
    assert entries_at(target) == before and len(before) == 1
    assert ask(serve, "target", {"target": str(target)})["note"] == {"first": 1}


def test_unbinding_tells_what_was_there_and_can_be_repeated(
    serve: HolderConnection, fuse: int, target: Path
) -> None:
    other = target.parent / "b"
    other.mkdir()
    bind(serve, "m", target, {"volume": "v"})
    bind(serve, "m", other)
    first = ask(serve, "unbind", {"target": str(target)})
    assert (first["gone"], first["mount"], first["note"], first["remaining"]) == (
        False,
        "m",
        {"volume": "v"},
        1,
    )
    assert ask(serve, "unbind", {"target": str(target)})["gone"] is True
    assert ask(serve, "unbind", {"target": str(other)})["remaining"] == 0
    assert entry_at(target) is None
    assert entry_at(other) is None


def test_a_mount_that_a_target_shows_is_not_unmounted(
    agent: HolderConnection, serve: HolderConnection, fuse: int, target: Path
) -> None:
    bind(serve, "m", target)
    with pytest.raises(Refused, match="bound on 1 targets"):
        ask(agent, "unmount", {"mount": "m"})
    kernel.unmount(str(target), kernel.MNT_DETACH)  # somebody else's umount is noticed
    assert ask(serve, "target", {"target": str(target)})["mount"] is None
    ask(agent, "unmount", {"mount": "m"})


def test_a_bound_mount_that_never_answers_is_unbound_at_once(
    holder: HolderProcess, serve: HolderConnection, fuse: int, target: Path
) -> None:
    """INIT is not answered: every program that asks this mount anything waits."""
    bind(serve, "m", target)
    with subprocess.Popen(
        ["stat", str(target)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as waiting:
        try:
            assert ask(serve, "unbind", {"target": str(target)})["gone"] is False
            assert entry_at(target) is None
        finally:
            waiting.kill()


def test_what_a_dead_holder_left_on_a_target_is_taken_off(
    serve: HolderConnection, holder: HolderProcess, target: Path
) -> None:
    dead_mount(target)
    assert entry_at(target) is not None
    assert ask(serve, "unbind", {"target": str(target)})["gone"] is True
    assert entry_at(target) is None


def test_what_a_dead_holder_left_on_a_target_is_replaced(
    serve: HolderConnection, holder: HolderProcess, fuse: int, target: Path
) -> None:
    dead_mount(target)
    assert bind(serve, "m", target)["already"] is False
    entry, mount = entry_at(target), holder.mounted_at("m")
    assert entry is not None and mount is not None and entry.device == mount.device
    assert sum(other.point == str(target) for other in mount_entries()) == 1


def dead_mount(target: Path) -> None:
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    kernel.mount("headrace", str(target), "fuse.headrace", kernel.MS_RDONLY, options)
    os.close(fuse)


def test_a_target_of_another_mount_is_refused(
    agent: HolderConnection, serve: HolderConnection, fuse: int, target: Path
) -> None:
    other = mounted(agent, "other")
    bind(serve, "m", target)
    assert refusal(serve, "other", target) == "bound"
    os.close(other)


def test_a_foreign_mount_on_the_target_is_never_touched(
    serve: HolderConnection, fuse: int, target: Path
) -> None:
    kernel.mount("none", str(target), "tmpfs", 0, "size=64k")
    assert ask(serve, "unbind", {"target": str(target)})["gone"] is True
    entry = entry_at(target)
    assert entry is not None and entry.fstype == "tmpfs"


def test_path_and_descriptor_must_mean_the_same_directory(
    serve: HolderConnection, fuse: int, target: Path
) -> None:
    other = target.parent / "b"
    other.mkdir()
    fields: Message = {"mount": "m", "target": str(target), "note": {}}
    with path_descriptor(other) as descriptor, pytest.raises(Refused, match="another directory"):
        ask(serve, "bind", fields, [descriptor])
    assert entry_at(target) is None
    assert entry_at(other) is None


def test_no_symbolic_link_is_followed_to_a_target(serve: HolderConnection, fuse: int, target: Path) -> None:
    (target.parent / "link").symlink_to(target)
    with path_descriptor(target) as descriptor, pytest.raises(Refused) as refused:
        ask(serve, "bind", {"mount": "m", "target": str(target.parent / "link")}, [descriptor])
    assert refused.value.code == "failed"
    assert entry_at(target) is None
    assert ask(serve, "unbind", {"target": str(target.parent / "link")})["gone"] is True


def test_a_target_inside_a_mount_is_refused_without_a_look(
    holder: HolderProcess, serve: HolderConnection, fuse: int, target: Path
) -> None:
    bind(serve, "m", target)
    own = holder.base / "run" / "mounts"
    with path_descriptor(own) as descriptor:
        for inside in (target / "x", own / "m", own / "m" / "x", own / "y"):
            with pytest.raises(Refused) as refused:
                ask(serve, "bind", {"mount": "m", "target": str(inside)}, [descriptor])
            assert refused.value.code == "bad-target"
            with pytest.raises(Refused):
                ask(serve, "unbind", {"target": str(inside)})
    assert holder.mounted_at("m") is not None


def test_a_target_that_is_gone_is_unbound(serve: HolderConnection, fuse: int, target: Path) -> None:
    bind(serve, "m", target)
    kernel.unmount(str(target), kernel.MNT_DETACH)
    target.rmdir()
    assert ask(serve, "unbind", {"target": str(target)})["remaining"] == 0
    assert ask(serve, "unbind", {"target": str(target.parent / "x" / "y")})["gone"] is True


def test_binding_leaks_no_descriptor(
    holder: HolderProcess, serve: HolderConnection, fuse: int, target: Path
) -> None:
    before = holder.descriptors()
    for _ in range(10):
        bind(serve, "m", target)
        refusal(serve, "none", target)
        ask(serve, "unbind", {"target": str(target)})
    assert holder.descriptors() == before


def test_targets_beyond_one_packet_are_all_listed(serve: HolderConnection, fuse: int, target: Path) -> None:
    paths = [target.parent / f"{number:03}-{'x' * 200}" for number in range(200)]
    for path in paths:
        path.mkdir()
        bind(serve, "m", path)
    with serve.request("list", {}, several=True) as answers:
        listed = [answer.message.get("targets") or [] for answer in answers]
    assert sum(bool(page) for page in listed) > 1
    assert [item for page in listed if isinstance(page, list) for item in page] == [
        str(path) for path in paths
    ]
