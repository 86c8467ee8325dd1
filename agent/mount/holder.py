"""The agent's client of the holder: claims the descriptors and asks for the privileged calls.

Used from the agent's loop and from FUSE threads: calls block, up to a deadline, one at a time. Everything
that goes wrong becomes a HolderError of one line. PROTOCOL.md beside `csi/holder` states the messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from agent.errors import HolderError
from csi.holder.client import Answer, HolderConnection, HolderGone
from csi.holder.protocol import Message, Refused


class HolderRefused(HolderError):
    """The holder answered with an error: `code` is one of PROTOCOL.md ("bound", "unsupported", ...)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"the holder refused: {message} ({code})")
        self.code = code


@dataclass(frozen=True)
class HeldMount:
    """One mount that the holder keeps.

    `number` names it in the in-flight table, `fd` is its /dev/fuse descriptor (non-blocking; the caller's
    to close), `backing` its passthrough ids by nodeid, `bound` on how many targets it was bound when told.
    A promoted dataset is of the kind "tree", and its `fd` is -1.
    """

    mount: str
    number: int
    fd: int
    record: dict[str, object]
    backing: dict[int, int] = field(default_factory=dict)
    bound: int = 0
    kind: str = "fuse"


@dataclass(frozen=True)
class InFlightTable:
    """The in-flight table's memfd (the caller's to close), and its shape: slots of `slot_size` bytes."""

    fd: int
    slots: int
    slot_size: int


class Holder:
    """The claim on the descriptors; it ends with `close`, or with the process."""

    def __init__(self, connection: HolderConnection) -> None:
        self._connection = connection

    @classmethod
    def claim(
        cls, socket_path: str, build: str, timeout: float = 10.0
    ) -> tuple[Holder, InFlightTable, list[HeldMount]]:
        """Connect and become the one agent that holds the descriptors.

        `timeout` is the deadline of this and of each later request, in seconds. Raises HolderError; its
        code is "busy" where another agent has the claim.
        """
        with _translated():
            connection = HolderConnection.open(socket_path, "agent", build, timeout)
        try:
            with _translated(), connection.request("claim", {}, several=True) as answers:
                table, mounts = _claimed(answers)
        except BaseException:
            connection.close()
            raise
        return cls(connection), table, mounts

    def mount(self, mount: str, record: dict[str, object]) -> HeldMount:
        """Mount a new file system; its kernel side waits for the answer to INIT. Raises HolderError."""
        with self._request("mount", {"mount": mount, "record": record}) as answer:
            number = _number(answer.message, "number")
            return HeldMount(mount, number, answer.take(), record)

    def tree(self, mount: str, record: dict[str, object], fd: int) -> None:
        """Mount the tree of that name in a store directory; `fd` is its root, opened with O_PATH.

        Raises HolderError; its code is "bad-tree" where the holder finds another directory in its place.
        """
        with self._request("tree", {"mount": mount, "record": record}, fd):
            pass

    def ready(self, mount: str, record: dict[str, object], read_ahead_kb: int) -> None:
        """INIT is answered: keep this record, let the kernel read that many KiB ahead. Raises HolderError."""
        self._ask("ready", {"mount": mount, "record": record, "read_ahead_kb": read_ahead_kb})

    def record(self, mount: str, record: dict[str, object]) -> None:
        """Replace the mount's record (at most 16 KiB of JSON). Raises HolderError."""
        self._ask("record", {"mount": mount, "record": record})

    def backing_open(self, mount: str, nodeid: int, fd: int) -> int:
        """The backing id for passthrough opens of `nodeid`; `fd` is the store's file, opened read-only.

        Raises HolderError; its code is "unsupported" where the kernel has no passthrough.
        """
        with self._request("backing_open", {"mount": mount, "nodeid": nodeid}, fd) as answer:
            return _number(answer.message, "backing")

    def backing_close(self, mount: str, nodeid: int) -> None:
        """Forget the backing id of a nodeid; nothing where it has none. Raises HolderError."""
        self._ask("backing_close", {"mount": mount, "nodeid": nodeid})

    def unmount(self, mount: str) -> None:
        """Take a mount away. Raises HolderError; its code is "bound" while targets show it."""
        self._ask("unmount", {"mount": mount})

    def close(self) -> None:
        """Give the claim back; the mounts stay."""
        self._connection.close()

    def _ask(self, op: str, fields: Message) -> None:
        with self._request(op, fields):
            pass

    @contextmanager
    def _request(self, op: str, fields: Message, fd: int | None = None) -> Iterator[Answer]:
        descriptors = [] if fd is None else [fd]
        with _translated(), self._connection.request(op, fields, descriptors) as (answer,):
            yield answer


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise HolderRefused(error.code, error.message) from error
    except HolderGone as error:
        raise HolderError(str(error)) from error


def _claimed(answers: list[Answer]) -> tuple[InFlightTable, list[HeldMount]]:
    """Put the packets of a claim together; on failure no descriptor stays open."""
    first = answers[0]
    table = InFlightTable(first.take(), _number(first.message, "slots"), _number(first.message, "slot_size"))
    mounts: dict[str, HeldMount] = {}
    try:
        for answer in answers[1:]:
            part = answer.message.get("part")
            if part == "mount":
                held = _held(answer)
                mounts[held.mount] = held
            elif part == "backing":
                _add_backing(mounts, answer.message)
    except BaseException:
        for fd in (table.fd, *(held.fd for held in mounts.values() if held.fd >= 0)):
            os.close(fd)
        raise
    return table, list(mounts.values())


def _held(answer: Answer) -> HeldMount:
    name, record = answer.message.get("mount"), answer.message.get("record")
    if not isinstance(name, str) or not isinstance(record, dict):
        raise _unclear("mount")
    number, bound = _number(answer.message, "number"), _number(answer.message, "bound")
    kind = str(answer.message.get("kind", "fuse"))
    fd = -1 if kind == "tree" else answer.take()
    return HeldMount(name, number, fd, record, bound=bound, kind=kind)


def _add_backing(mounts: dict[str, HeldMount], message: Message) -> None:
    name, pairs = message.get("mount"), message.get("backing")
    if name not in mounts or not isinstance(pairs, list):
        raise _unclear("backing")
    held = mounts[str(name)]
    mounts[held.mount] = replace(held, backing={**held.backing, **dict(pairs)})


def _number(message: Message, name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int):
        raise _unclear(name)
    return value


def _unclear(name: str) -> HolderGone:
    return HolderGone(f"the holder's answer lacks {name!r}; are holder and agent of one release?")
