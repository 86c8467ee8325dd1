"""What the holder does for the agent, on the real /dev/fuse: mounts, readahead, passthrough; who may ask."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.mount.holder import Holder
from csi.holder import kernel
from csi.holder.client import HolderConnection, HolderGone
from csi.holder.protocol import Message, Refused
from tests.csi.holding import (
    AGENT_USER,
    REPOSITORY,
    THIRD_UID,
    WITHIN,
    HolderProcess,
    answer_one,
    answering,
    ask,
    stat_elsewhere,
)

TIMEOUT = 20.0  # seconds for another process


@pytest.fixture
def agent(holder: HolderProcess) -> Iterator[HolderConnection]:
    connection = holder.connect("agent")
    with connection.request("claim", {}, several=True):
        pass
    yield connection
    connection.close()


@pytest.fixture
def fuse(agent: HolderConnection) -> Iterator[int]:
    """The descriptor of mount `m`, its INIT not yet answered."""
    with agent.request("mount", {"mount": "m", "record": {}}) as (answer,):
        descriptor = answer.take()
    ask(agent, "record", {"mount": "m", "record": {}})  # by now the holder has closed the copy that it sent
    yield descriptor
    os.close(descriptor)


def code_of(connection: HolderConnection, op: str, fields: Message, *descriptors: int) -> str:
    with pytest.raises(Refused) as refused:
        ask(connection, op, fields, descriptors)
    return refused.value.code


def test_a_mount_is_read_only_and_harmless_and_answers_its_readers(holder: HolderProcess, fuse: int) -> None:
    entry = holder.mounted_at("m")
    assert entry is not None and entry.fstype == "fuse.headrace"
    assert {"ro", "nosuid", "nodev"} <= set(entry.options.split(","))
    assert answer_one(fuse) == 26
    with answering(fuse):
        result = stat_elsewhere(entry.point)
    assert (result.returncode, result.stdout.strip()) == (0, "416d")


def test_the_descriptor_is_non_blocking(fuse: int) -> None:
    assert not os.get_blocking(fuse)


def test_ready_keeps_the_record_and_sets_the_readahead(
    holder: HolderProcess, agent: HolderConnection, fuse: int
) -> None:
    answer_one(fuse)
    ask(agent, "ready", {"mount": "m", "record": {"revision": "r"}, "read_ahead_kb": 4096})
    entry = holder.mounted_at("m")
    assert entry is not None
    assert Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text().strip() == "4096"
    with agent.request("list", {}, several=True) as answers:
        assert answers[0].message["record"] == {"revision": "r"}
    ask(agent, "record", {"mount": "m", "record": {"revision": "s"}})
    with agent.request("list", {}, several=True) as answers:
        assert answers[0].message["record"] == {"revision": "s"}


def test_unmount_takes_everything_away_and_the_id_is_free_again(
    holder: HolderProcess, agent: HolderConnection
) -> None:
    before = holder.descriptors()
    for number in (1, 2):
        with agent.request("mount", {"mount": "m", "record": {}}) as (answer,):
            assert answer.message["number"] == number
        assert code_of(agent, "mount", {"mount": "m"}) == "exists"
        ask(agent, "unmount", {"mount": "m"})
        assert holder.mounted_at("m") is None
        assert os.listdir(holder.base / "run" / "mounts") == []
    assert holder.descriptors() == before
    assert code_of(agent, "unmount", {"mount": "m"}) == "no-mount"


def test_the_in_flight_table_cannot_be_resized(holder: HolderProcess) -> None:
    agent = holder.connect("agent")
    with agent.request("claim", {}, several=True) as answers:
        table = answers[0].take()
        shape = answers[0].message
    assert os.fstat(table).st_size == 2048 * 8192
    assert (shape["slots"], shape["slot_size"]) == (2048, 8192)
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(table, size)
    os.close(table)
    agent.close()


class TestBacking:
    """Passthrough ids, on the real kernel."""

    @pytest.fixture
    def file(self, holder: HolderProcess) -> Iterator[int]:
        path = holder.store / "object"
        path.write_bytes(b"bytes")
        descriptor = os.open(path, os.O_RDONLY)
        yield descriptor
        os.close(descriptor)

    def test_a_nodeid_keeps_its_id_until_it_is_closed(
        self, holder: HolderProcess, agent: HolderConnection, fuse: int, file: int
    ) -> None:
        answer_one(fuse)
        before = holder.descriptors()
        first = ask(agent, "backing_open", {"mount": "m", "nodeid": 2}, [file])["backing"]
        assert isinstance(first, int) and first > 0
        assert ask(agent, "backing_open", {"mount": "m", "nodeid": 2}, [file])["backing"] == first
        other = ask(agent, "backing_open", {"mount": "m", "nodeid": (1 << 64) - 1}, [file])["backing"]
        assert other != first
        with agent.request("claim", {}, several=True) as answers:
            told = [answer.message.get("backing") for answer in answers]
        assert [[2, first], [(1 << 64) - 1, other]] in told
        for _ in range(2):
            ask(agent, "backing_close", {"mount": "m", "nodeid": 2})
        assert ask(agent, "backing_open", {"mount": "m", "nodeid": 3}, [file])["backing"] != other
        assert holder.descriptors() == before

    def test_before_init_there_is_no_passthrough(self, agent: HolderConnection, fuse: int, file: int) -> None:
        assert code_of(agent, "backing_open", {"mount": "m", "nodeid": 2}, file) == "unsupported"

    def test_only_regular_read_only_files_of_the_store_are_taken(
        self, holder: HolderProcess, agent: HolderConnection, fuse: int, file: int
    ) -> None:
        answer_one(fuse)
        path = holder.store / "object"
        elsewhere = holder.base / "elsewhere"
        elsewhere.mkdir()
        kernel.mount("none", str(elsewhere), "tmpfs", 0, "size=64k")
        (elsewhere / "file").write_bytes(b"x")
        left, right = socket.socketpair()
        unfit = [
            os.open(holder.store, os.O_RDONLY),
            os.open(path, os.O_RDWR),
            os.open(path, os.O_WRONLY),
            os.open(path, os.O_PATH),
            os.open(elsewhere / "file", os.O_RDONLY),
            os.open("/dev/null", os.O_RDONLY),
            left.detach(),
        ]
        fields: Message = {"mount": "m", "nodeid": 2}
        for descriptor in unfit:
            assert code_of(agent, "backing_open", fields, descriptor) == "bad-file"
            os.close(descriptor)
        right.close()
        assert code_of(agent, "backing_open", fields) == "bad-request"
        assert code_of(agent, "backing_open", fields, file, file) == "bad-request"

    def test_a_file_of_a_mount_that_hangs_does_not_hang_the_holder(
        self, holder: HolderProcess, agent: HolderConnection, fuse: int
    ) -> None:
        """The mount's INIT stays unanswered: whoever asks its file system waits."""
        entry = holder.mounted_at("m")
        assert entry is not None
        root = os.open(entry.point, os.O_PATH | os.O_DIRECTORY)
        assert code_of(agent, "backing_open", {"mount": "m", "nodeid": 2}, root) == "bad-file"
        os.close(root)


# Run as another user: prints what the holder answers to a connection, or why there is none.
ASKING = """
import sys
from csi.holder.client import HolderConnection, HolderGone
from csi.holder.protocol import Refused
path, role, op = sys.argv[1:]
try:
    connection = HolderConnection.open(path, role, "test", 5)
    with connection.request(op, {"mount": "m", "target": "/t"}, several=op == "claim") as answers:
        print("answered", len(answers))
except (HolderGone, Refused) as error:
    print(getattr(error, "code", "gone"), error)
"""

# Run as another user: listens until its input ends.
LISTENING = """
import os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    os.write(1, b"r")
    os.read(0, 1)
"""


class TestAccess:
    """The access rules, by processes of other users."""

    def run(self, holder: HolderProcess, user: int | str, role: str, op: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", ASKING, holder.socket, role, op],
            user=user,
            group="nogroup",
            extra_groups=[],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def test_the_agent_user_may_claim(self, holder: HolderProcess) -> None:
        assert self.run(holder, AGENT_USER, "agent", "claim") == "answered 2\n"

    @pytest.mark.parametrize("op", ["bind", "unbind", "target"])
    @pytest.mark.parametrize("role", ["agent", "command"])
    def test_the_agent_user_may_not_bind(self, holder: HolderProcess, role: str, op: str) -> None:
        assert self.run(holder, AGENT_USER, role, op).startswith("denied")

    def test_the_command_role_may_not_claim(self, holder: HolderProcess) -> None:
        assert self.run(holder, 0, "command", "claim").startswith("denied")

    def test_a_third_user_is_kept_out_by_the_mode(self, holder: HolderProcess) -> None:
        socket_path = Path(holder.socket)
        assert socket_path.stat().st_mode & 0o777 == 0o660
        assert socket_path.stat().st_uid == 0
        socket_path.chmod(0o600)  # nogroup is the agent user's group
        assert "Permission denied" in self.run(holder, THIRD_UID, "agent", "claim")

    @pytest.mark.parametrize("role", ["agent", "command"])
    def test_a_third_user_is_kept_out_by_its_credentials(self, holder: HolderProcess, role: str) -> None:
        Path(holder.socket).chmod(0o666)
        assert "closed at hello" in self.run(holder, THIRD_UID, role, "list")
        holder.terminate()
        assert any(f"refused a connection of uid {THIRD_UID}" in line for line in holder.lines)

    def test_nobody_looks_into_the_mounts_directory(self, holder: HolderProcess) -> None:
        assert (holder.base / "run" / "mounts").stat().st_mode & 0o777 == 0o700

    def test_a_client_does_not_trust_a_socket_where_root_does_not_listen(self, holder: HolderProcess) -> None:
        directory = holder.base / "theirs"
        directory.mkdir()
        os.chown(directory, THIRD_UID, THIRD_UID)
        path = str(directory / "holder.sock")
        command = [sys.executable, "-c", LISTENING, path]
        with subprocess.Popen(
            command, user=THIRD_UID, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as theirs:
            assert theirs.stdout is not None
            assert theirs.stdout.read(1) == b"r"
            with pytest.raises(HolderGone, match=f"uid {THIRD_UID} listens there, not root"):
                HolderConnection.open(path, "command", "test", WITHIN)
            theirs.communicate(timeout=TIMEOUT)


def test_the_credentials_of_a_record_are_for_the_agent_with_the_claim_only(holder: HolderProcess) -> None:
    record: dict[str, object] = {"uri": "s3://b", "credentials": ["s3", {"secret_access_key": "hush"}]}
    claim, table, _ = Holder.claim(holder.socket, "test")
    held = claim.mount("secret", record)
    connection = holder.connect()
    with connection.request("list", {}, several=True) as answers:
        (listed,) = [answer.message["record"] for answer in answers if answer.message["part"] == "mount"]
    connection.close()
    claim.close()
    again, same_table, mounts = Holder.claim(holder.socket, "test")
    assert (listed, mounts[0].record) == ({"uri": "s3://b"}, record)
    assert "hush" not in repr(mounts)
    again.close()
    for fd in (held.fd, table.fd, same_table.fd, mounts[0].fd):
        os.close(fd)
    assert "hush" not in "".join(holder.lines)
