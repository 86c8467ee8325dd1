"""Mounts of trees: what the holder takes for one, and that they are bound and taken away as any mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.mount.holder import Holder, HolderRefused
from csi.holder.mountinfo import mount_entries
from tests.csi.holding import (
    THIRD_UID,
    HolderProcess,
    ask,
    entries_below,
    path_descriptor,
    running_holder,
    scratch,
)


@pytest.fixture
def holder() -> Iterator[HolderProcess]:
    with running_holder() as running:
        yield running


@pytest.fixture
def agent(holder: HolderProcess) -> Iterator[Holder]:
    claimed, table, _ = Holder.claim(holder.socket, "test")
    yield claimed
    claimed.close()
    os.close(table.fd)


def make_tree(holder: HolderProcess, name: str, owner: int = 0) -> Path:
    root = holder.store / "trees" / name / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "file").write_bytes(b"bytes")
    os.chown(root, owner, -1)
    return root


def make_target(holder: HolderProcess, name: str = "target") -> Path:
    target = holder.base / name
    target.mkdir()
    return target


def mount_tree(agent: Holder, name: str, root: Path) -> None:
    with path_descriptor(root) as descriptor:
        agent.tree(name, {"kind": "tree"}, descriptor)


def bind(holder: HolderProcess, name: str, target: Path) -> bool:
    serve = holder.connect()
    with path_descriptor(target) as descriptor:
        already = ask(serve, "bind", {"mount": name, "target": str(target)}, [descriptor])["already"]
    serve.close()
    return bool(already)


def unbind(holder: HolderProcess, target: Path) -> dict[str, object]:
    serve = holder.connect()
    answer = ask(serve, "unbind", {"target": str(target)})
    serve.close()
    return answer


def test_a_tree_is_bound_read_only_and_taken_off_again(holder: HolderProcess, agent: Holder) -> None:
    mount_tree(agent, "t", make_tree(holder, "t"))
    target = make_target(holder)
    assert not bind(holder, "t", target)
    assert bind(holder, "t", target)
    assert (target / "d" / "file").read_bytes() == b"bytes"
    with pytest.raises(OSError, match="Read-only"):
        (target / "d" / "new").touch()
    flags = {entry.options for entry in entries_below(holder.base)}
    assert all(option.startswith("ro,nosuid,nodev") for option in flags)
    with pytest.raises(HolderRefused) as refused:
        agent.unmount("t")
    assert refused.value.code == "bound"
    assert unbind(holder, target) | {"id": 0} == {
        "id": 0, "ok": True, "gone": False, "mount": "t", "note": {}, "remaining": 0,
    }  # fmt: skip
    agent.unmount("t")
    assert entries_below(holder.base) == []
    assert os.listdir(holder.base / "run" / "mounts") == []


def test_two_trees_of_one_disk_are_two_mounts(holder: HolderProcess, agent: Holder) -> None:
    for name in ("one", "two"):
        mount_tree(agent, name, make_tree(holder, name))
    target = make_target(holder)
    bind(holder, "one", target)
    agent.unmount("two")
    serve = holder.connect()
    with pytest.raises(Exception, match="no mount two"), path_descriptor(target) as descriptor:
        ask(serve, "bind", {"mount": "two", "target": str(target)}, [descriptor])
    serve.close()
    assert unbind(holder, target)["mount"] == "one"


def test_a_claim_tells_trees_without_a_descriptor(holder: HolderProcess, agent: Holder) -> None:
    mount_tree(agent, "t", make_tree(holder, "t"))
    agent.close()
    again, table, held = Holder.claim(holder.socket, "test")
    os.close(table.fd)
    assert [(item.mount, item.kind, item.fd, item.bound, item.record) for item in held] == [
        ("t", "tree", -1, 0, {"kind": "tree"})
    ]
    again.close()


def test_a_tree_has_no_backing_files_and_no_init(holder: HolderProcess, agent: Holder) -> None:
    mount_tree(agent, "t", make_tree(holder, "t"))
    for call in (lambda: agent.ready("t", {}, 4), lambda: agent.backing_open("t", 1, 0)):
        with pytest.raises(HolderRefused, match="is a tree"):
            call()
    agent.backing_close("t", 1)


def test_only_the_agents_own_tree_in_its_place_is_taken(holder: HolderProcess, agent: Holder) -> None:
    root = make_tree(holder, "mine")
    foreign = make_tree(holder, "foreign", owner=THIRD_UID)
    elsewhere = holder.base / "elsewhere"
    elsewhere.mkdir()
    (holder.store / "trees" / "linked").symlink_to(elsewhere.parent)
    for name, given in (("mine", elsewhere), ("none", root), ("foreign", foreign), ("mine", foreign)):
        with pytest.raises(HolderRefused) as refused:
            mount_tree(agent, name, given)
        assert refused.value.code == "bad-tree"
    with pytest.raises(HolderRefused) as refused:
        mount_tree(agent, "linked", elsewhere)
    assert refused.value.code == "failed"
    assert entries_below(holder.base) == []


@pytest.mark.parametrize("notes", ["kept", "lost"])
def test_a_tree_lives_without_a_holder_and_the_next_one_knows_it_again(notes: str) -> None:
    with scratch() as base:
        first = HolderProcess(base)
        claimed, table, _ = Holder.claim(first.socket, "test")
        mount_tree(claimed, "t", make_tree(first, "t"))
        target = make_target(first)
        bind(first, "t", target)
        first.kill()
        claimed.close()
        os.close(table.fd)
        assert (target / "d" / "file").read_bytes() == b"bytes"
        if notes == "lost":
            os.unlink(f"{first.socket}.state")
        second = HolderProcess(base)
        again, table, held = Holder.claim(second.socket, "test")
        assert [(item.mount, item.kind, item.bound) for item in held] == [("t", "tree", 1)]
        assert unbind(second, target)["gone"] is (notes == "lost")
        assert str(target) not in {entry.point for entry in mount_entries()}
        again.unmount("t")
        again.close()
        os.close(table.fd)
        second.close()
        assert entries_below(base) == []


def test_what_is_left_of_a_removed_tree_is_unbound(holder: HolderProcess, agent: Holder) -> None:
    root = make_tree(holder, "t")
    mount_tree(agent, "t", root)
    target = make_target(holder)
    bind(holder, "t", target)
    os.unlink(root / "d" / "file")
    os.removedirs(root / "d")
    assert unbind(holder, target)["remaining"] == 0
    agent.unmount("t")
    assert entries_below(holder.base) == []
