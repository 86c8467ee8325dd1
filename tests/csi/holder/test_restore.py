"""The holder dies and another one starts: what it knows by itself, and what it takes back from the agent."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.errors import HolderError
from agent.mount.holder import HeldMount, Holder, HolderAway, InFlightTable
from csi.holder.client import HolderConnection
from csi.holder.protocol import Message, Refused
from tests.csi.holding import (
    WITHIN,
    HolderProcess,
    answer_one,
    answering,
    ask,
    entries_below,
    path_descriptor,
    running_holder,
    scratch,
    stat_elsewhere,
)

NOTE: Message = {"volume": "v", "uri": "s3://b/d", "made": True}

# The holder as an older release: it knows no `restore`.
OLDER = """
import sys
from csi.holder import hold, operations
class Older(operations.Operations):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        del self._operations["restore"]
hold.Operations = Older
from csi.__main__ import main
sys.exit(main())
"""


@dataclass
class Orphaned:
    """An agent whose holder was killed; it has a mount that is bound on a target."""

    base: Path
    agent: Holder
    table: InFlightTable
    held: HeldMount
    target: Path
    answers: ExitStack

    def die(self) -> None:
        """The agent ends as well, and with it the mount."""
        self.answers.close()
        self.agent.close()
        os.close(self.held.fd)


def bind(holder: HolderProcess, mount: str, target: Path, note: Message = NOTE) -> Message:
    connection = holder.connect()
    try:
        with path_descriptor(target) as descriptor:
            fields: Message = {"mount": mount, "target": str(target), "note": note}
            return ask(connection, "bind", fields, [descriptor])
    finally:
        connection.close()


def asked(holder: HolderProcess, op: str, fields: Message) -> Message:
    connection = holder.connect()
    try:
        return ask(connection, op, fields)
    finally:
        connection.close()


def listed(holder: HolderProcess) -> list[Message]:
    connection = holder.connect()
    try:
        with connection.request("list", {}, several=True) as answers:
            return [answer.message for answer in answers if answer.message["part"] != "end"]
    finally:
        connection.close()


@contextmanager
def started(base: Path, *program: str) -> Iterator[HolderProcess]:
    holder = HolderProcess(base, program or ("-m", "csi"))
    try:
        yield holder
    finally:
        holder.close()


@pytest.fixture
def orphaned() -> Iterator[Orphaned]:
    with scratch() as base:
        holder = HolderProcess(base)
        agent, table, _ = Holder.claim(holder.socket, "test")
        held = agent.mount("m", {})
        answer_one(held.fd)
        agent.ready("m", {"revision": "r"}, 512)
        target = base / "target"
        target.mkdir()
        bind(holder, "m", target)
        holder.kill()
        agent.drop()
        orphaned = Orphaned(base, agent, table, held, target, ExitStack())
        orphaned.answers.enter_context(answering(held.fd))
        yield orphaned
        with suppress(OSError):  # it may have died
            orphaned.die()
        table.close()


def successor(holder: HolderProcess) -> tuple[Holder, InFlightTable, list[HeldMount]]:
    return Holder.claim(holder.socket, "test")


def let_go(agent: Holder, table: InFlightTable, mounts: list[HeldMount]) -> None:
    agent.close()
    for fd in (table.fd, *(held.fd for held in mounts)):
        os.close(fd)


def test_the_next_holder_knows_mounts_and_targets_before_any_agent_comes(orphaned: Orphaned) -> None:
    with started(orphaned.base) as holder:
        told, targets = listed(holder)
        assert (told["mount"], told["number"], told["bound"], told["held"]) == ("m", 1, 1, False)
        assert targets["targets"] == [str(orphaned.target)]
        assert asked(holder, "target", {"target": str(orphaned.target)})["note"] == NOTE
        assert bind(holder, "m", orphaned.target)["already"] is True


def test_unpublish_works_before_any_agent_comes(orphaned: Orphaned) -> None:
    with started(orphaned.base) as holder:
        answer = asked(holder, "unbind", {"target": str(orphaned.target)})
        assert (answer["mount"], answer["note"], answer["remaining"]) == ("m", NOTE, 0)
        assert [entry.point for entry in entries_below(orphaned.base)] == [f"{orphaned.base}/run/mounts/m"]
        assert orphaned.agent.reclaim(orphaned.table).bound == {"m": 0}


def test_everything_comes_back_and_goes_to_the_next_agent(orphaned: Orphaned) -> None:
    path = orphaned.base / "store" / "object"
    path.write_bytes(b"bytes")
    os.pwrite(orphaned.table.fd, b"slot", 8192 * 7)
    with started(orphaned.base) as holder, open(path, "rb") as file:
        assert orphaned.agent.reclaim(orphaned.table).bound == {"m": 1}
        backing = orphaned.agent.backing_open("m", 3, file.fileno())
        holder.kill()
        orphaned.agent.drop()
    with started(orphaned.base) as holder:
        reclaimed = orphaned.agent.reclaim(orphaned.table)
        assert (reclaimed.bound, reclaimed.table) == ({"m": 1}, None)
        orphaned.agent.close()
        agent, table, (held,) = successor(holder)
        assert os.pread(table.fd, 4, 8192 * 7) == b"slot"
        assert (held.number, held.record, held.bound) == (1, {"revision": "r"}, 1)
        assert held.backing == {3: backing}
        assert stat_elsewhere(orphaned.target).returncode == 0
        let_go(agent, table, [held])


def test_a_restored_mount_is_bound_and_unbound_as_ever_and_numbers_go_on(orphaned: Orphaned) -> None:
    with started(orphaned.base) as holder:
        orphaned.agent.reclaim(orphaned.table)
        other = orphaned.base / "other"
        other.mkdir()
        assert bind(holder, "m", other)["already"] is False
        assert asked(holder, "unbind", {"target": str(other)})["remaining"] == 1
        assert asked(holder, "unbind", {"target": str(orphaned.target)})["remaining"] == 0
        orphaned.agent.unmount("m")
        assert entries_below(orphaned.base) == []
        again = orphaned.agent.mount("m", {})
        assert again.number == 2
        os.close(again.fd)


def test_told_to_stop_under_an_agent_it_leaves_the_mounts_to_the_next_holder() -> None:
    with running_holder() as holder:
        agent, table, _ = successor(holder)
        held = agent.mount("m", {})
        assert holder.terminate() == 0
        assert holder.mounted_at("m") is not None
        agent.drop()
        with started(holder.base) as second:
            assert agent.reclaim(table).bound == {"m": 0}
            assert second.mounted_at("m") is not None
            agent.unmount("m")
        let_go(agent, table, [held])


def test_while_no_holder_is_there_the_error_says_so_and_what_changes_is_told_the_next(
    orphaned: Orphaned,
) -> None:
    with pytest.raises(HolderAway, match="new ones wait for it: start `headrace-csi hold`"):
        orphaned.agent.mount("n", {})
    with pytest.raises(HolderAway):
        orphaned.agent.unmount("m")
    orphaned.agent.record("m", {"revision": "r", "prefetch": "all"})
    with started(orphaned.base) as holder:
        orphaned.agent.reclaim(orphaned.table)
        assert listed(holder)[0]["record"] == {"revision": "r", "prefetch": "all"}


def test_backing_ids_given_up_meanwhile_are_closed_at_the_next_holder(orphaned: Orphaned) -> None:
    path = orphaned.base / "store" / "object"
    path.write_bytes(b"bytes")
    with started(orphaned.base) as holder, open(path, "rb") as file:
        orphaned.agent.reclaim(orphaned.table)
        for nodeid in (3, 5):
            orphaned.agent.backing_open("m", nodeid, file.fileno())
        holder.kill()
        orphaned.agent.drop()
    orphaned.agent.backing_close("m", 3)
    with started(orphaned.base) as holder:
        orphaned.agent.reclaim(orphaned.table)
        assert listed(holder)[0]["backings"] == 1


def test_a_tree_is_known_again_and_its_record_told_by_the_agent(orphaned: Orphaned) -> None:
    root = orphaned.base / "store" / "trees" / "t" / "root"
    root.mkdir(parents=True)
    with started(orphaned.base) as holder, path_descriptor(root) as descriptor:
        orphaned.agent.reclaim(orphaned.table)
        orphaned.agent.tree("t", {"kind": "tree"}, descriptor)
        (orphaned.base / "other").mkdir()
        bind(holder, "t", orphaned.base / "other")
        holder.kill()
        orphaned.agent.drop()
    with started(orphaned.base) as holder:
        assert orphaned.agent.reclaim(orphaned.table).bound == {"m": 1}
        found = {told["mount"]: told["record"] for told in listed(holder) if "record" in told}
        assert found == {"m": {"revision": "r"}, "t": {"kind": "tree"}}
        asked(holder, "unbind", {"target": str(orphaned.base / "other")})


def test_a_mount_whose_agent_died_as_well_is_replaced(orphaned: Orphaned) -> None:
    with started(orphaned.base) as holder:
        orphaned.die()
        agent, table, held = successor(holder)
        assert held == []
        assert asked(holder, "target", {"target": str(orphaned.target)}) == {
            "id": 2, "ok": True, "mount": None
        }  # fmt: skip
        fresh = agent.mount("m", {})
        answer_one(fresh.fd)
        assert bind(holder, "m", orphaned.target)["already"] is False
        with answering(fresh.fd):
            assert stat_elsewhere(orphaned.target).returncode == 0
        let_go(agent, table, [fresh])


def test_a_dead_target_is_unpublished_by_the_next_holder(orphaned: Orphaned) -> None:
    orphaned.die()
    with started(orphaned.base) as holder:
        assert holder.mounted_at("m") is None
        answer = asked(holder, "unbind", {"target": str(orphaned.target)})
        assert (answer["note"], answer["remaining"]) == (NOTE, 0)
        assert entries_below(orphaned.base) == []
        assert asked(holder, "unbind", {"target": str(orphaned.target)})["gone"] is True


class TestRefusals:
    """What a holder does not take back."""

    @pytest.fixture
    def holder(self, orphaned: Orphaned) -> Iterator[HolderProcess]:
        with started(orphaned.base) as process:
            yield process

    @pytest.fixture
    def claimed(self, holder: HolderProcess) -> Iterator[HolderConnection]:
        connection = holder.connect("agent")
        with connection.request("claim", {}, several=True):
            pass
        yield connection
        connection.close()

    def refused(self, connection: HolderConnection, fields: Message, *fds: int) -> str:
        with pytest.raises(Refused) as raised:
            ask(connection, "restore", fields, fds)
        return raised.value.code

    def test_without_the_claim_nothing_is_taken(self, holder: HolderProcess, orphaned: Orphaned) -> None:
        connection = holder.connect("agent")
        fields: Message = {"part": "mount", "mount": "m", "number": 1, "record": {}}
        assert self.refused(connection, fields, orphaned.held.fd) == "not-claimed"
        connection.close()

    def test_a_part_of_a_newer_release_is_unknown(self, claimed: HolderConnection) -> None:
        assert self.refused(claimed, {"part": "something new"}) == "unknown-op"

    def test_a_descriptor_must_be_of_dev_fuse_and_of_that_mount(
        self, claimed: HolderConnection, orphaned: Orphaned
    ) -> None:
        fields: Message = {"part": "mount", "mount": "m", "number": 1, "record": {}}
        other = os.open("/dev/null", os.O_RDWR)
        assert self.refused(claimed, fields, other) == "bad-file"
        os.close(other)
        path = os.open("/dev/fuse", os.O_PATH)
        assert self.refused(claimed, fields, path) == "bad-file"
        os.close(path)
        with ask_mount(claimed, "n") as fuse:
            assert self.refused(claimed, fields, fuse) == "bad-file"
        assert self.refused(claimed, fields) == "bad-request"
        ask(claimed, "restore", fields, [orphaned.held.fd])
        assert self.refused(claimed, fields, orphaned.held.fd) == "exists"

    def test_a_mount_must_be_there_and_its_number_free(
        self, claimed: HolderConnection, orphaned: Orphaned
    ) -> None:
        fields: Message = {"part": "mount", "mount": "none", "number": 7, "record": {}}
        assert self.refused(claimed, fields, orphaned.held.fd) == "no-mount"
        with ask_mount(claimed, "n"):
            fields = {"part": "mount", "mount": "m", "number": 2, "record": {}}
            assert self.refused(claimed, fields, orphaned.held.fd) == "bad-request"
        for number in (0, 1 << 32, "1", None):
            fields = {"part": "mount", "mount": "m", "number": number, "record": {}}
            assert self.refused(claimed, fields, orphaned.held.fd) == "bad-request"

    def test_the_table_must_be_a_sealed_memfd_of_the_right_size(
        self, claimed: HolderConnection, orphaned: Orphaned
    ) -> None:
        fields: Message = {"part": "table", "slots": 2048, "slot_size": 8192}
        with open(orphaned.base / "file", "w+b") as file:
            file.truncate(2048 * 8192)
            assert self.refused(claimed, fields, file.fileno()) == "bad-file"
        memory = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, 2048 * 8192)
        assert self.refused(claimed, fields, memory) == "bad-file"
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        assert self.refused(claimed, {**fields, "slots": 1024}, memory) == "bad-file"
        assert self.refused(claimed, {**fields, "slots": 1 << 20}, memory) == "bad-request"
        ask(claimed, "restore", fields, [memory])
        with ask_mount(claimed, "n"):
            assert self.refused(claimed, fields, memory) == "exists"
        os.close(memory)

    def test_backing_ids_must_be_pairs_of_numbers_of_a_restored_mount(
        self, claimed: HolderConnection, orphaned: Orphaned
    ) -> None:
        fields: Message = {"part": "backing", "mount": "m", "backing": [[3, 1]]}
        assert self.refused(claimed, fields) == "no-mount"
        mount: Message = {"part": "mount", "mount": "m", "number": 1, "record": {}}
        ask(claimed, "restore", mount, [orphaned.held.fd])
        wrongs: list[object] = [{}, None, [3, 1], [[3]], [[3, "1"]], [[3, True]], [[0, 1]]]
        for wrong in wrongs:
            assert self.refused(claimed, {**fields, "backing": wrong}) == "bad-request"
        ask(claimed, "restore", fields)


@contextmanager
def ask_mount(connection: HolderConnection, name: str) -> Iterator[int]:
    with connection.request("mount", {"mount": name, "record": {}}) as (answer,):
        fuse = answer.take()
    try:
        yield fuse
    finally:
        os.close(fuse)


class TestStateFile:
    """What a holder writes down, and what its successor believes of it."""

    def test_it_is_roots_alone_and_has_no_record(self, orphaned: Orphaned) -> None:
        path = orphaned.base / "run" / "holder.sock.state"
        assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o600, 0)
        said = json.loads(path.read_text())
        assert set(said["mounts"]["m"]) == {"number", "device"}
        assert said["targets"] == {str(orphaned.target): {"mount": "m", "note": NOTE}}

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"mounts": 1, "targets": {}, "numbers": 0}', "\0"])
    def test_a_file_that_is_not_readable_costs_the_notes_and_no_mount(
        self, orphaned: Orphaned, content: str
    ) -> None:
        (orphaned.base / "run" / "holder.sock.state").write_text(content)
        self.check_lost(orphaned)

    def test_a_file_of_another_user_is_not_believed(self, orphaned: Orphaned) -> None:
        os.chown(orphaned.base / "run" / "holder.sock.state", 65534, 65534)
        self.check_lost(orphaned)

    def check_lost(self, orphaned: Orphaned) -> None:
        with started(orphaned.base) as holder:
            assert asked(holder, "target", {"target": str(orphaned.target)})["mount"] is None
            # It is shown somewhere: an agent must not give it up.
            assert orphaned.agent.reclaim(orphaned.table).bound == {"m": 1}
            assert bind(holder, "m", orphaned.target)["already"] is True
            assert asked(holder, "target", {"target": str(orphaned.target)})["note"] == NOTE
            again = orphaned.agent.mount("n", {})
            assert again.number == 2
            os.close(again.fd)

    def test_a_target_that_was_noted_and_not_bound_any_more_is_forgotten(self, orphaned: Orphaned) -> None:
        path = orphaned.base / "run" / "holder.sock.state"
        said = json.loads(path.read_text())
        said["targets"]["/nowhere"] = {"mount": "m", "note": {}}
        said["mounts"]["gone"] = {"number": 9, "device": "0:9999"}
        path.write_text(json.dumps(said))
        with started(orphaned.base) as holder:
            assert [entry["mount"] for entry in listed(holder)] == ["m", "m"]
            assert listed(holder)[1]["targets"] == [str(orphaned.target)]


class TestReleases:
    """A holder or an agent one release older or newer."""

    def test_an_older_holder_takes_nothing_back_and_serves_what_is_new(
        self, orphaned: Orphaned, caplog: pytest.LogCaptureFixture
    ) -> None:
        with started(orphaned.base, "-c", OLDER) as holder:
            reclaimed = orphaned.agent.reclaim(orphaned.table)
            assert reclaimed.bound == {}
            assert reclaimed.table is not None
            assert "takes no mounts back, they will end with this agent" in caplog.text
            fresh = orphaned.agent.mount("n", {})
            assert holder.mounted_at("m") is not None
            os.close(fresh.fd)
            reclaimed.table.close()

    def test_a_newer_client_gets_the_common_version(self, orphaned: Orphaned) -> None:
        with started(orphaned.base) as holder:
            connection = holder.connect("agent")
            assert connection.version == 1
            hello: Message = {"versions": [1, 2, "x"], "role": "agent", "build": "9", "new": [1]}
            with pytest.raises(Refused, match="hello was said already"):
                ask(connection, "hello", hello)
            connection.close()

    def test_an_older_agent_that_restores_nothing_is_served(self, orphaned: Orphaned) -> None:
        with started(orphaned.base) as holder:
            connection = holder.connect("agent")
            with connection.request("claim", {"new": 1}, several=True) as answers:
                assert [answer.message["part"] for answer in answers] == ["table", "end"]
            with ask_mount(connection, "n"):
                assert holder.mounted_at("n") is not None
            assert holder.mounted_at("m") is not None
            connection.close()


def test_a_full_table_of_connections_is_no_end_the_agent_tries_again(orphaned: Orphaned) -> None:
    with started(orphaned.base) as holder:
        many = [holder.connect() for _ in range(64)]
        with pytest.raises(HolderError):
            orphaned.agent.reclaim(orphaned.table)
        many.pop().close()
        assert asked_until_there(orphaned) == {"m": 1}
        for connection in many:
            connection.close()


def asked_until_there(orphaned: Orphaned) -> dict[str, int]:
    """The holder sees the end of a connection in its own time."""
    for _ in range(50):
        try:
            return orphaned.agent.reclaim(orphaned.table).bound
        except HolderError:
            subprocess.run(["true"], timeout=WITHIN, check=True)
    raise AssertionError("no place becomes free")
