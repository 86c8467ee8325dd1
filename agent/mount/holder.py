"""The agent's client of the holder: claims the descriptors and asks for the privileged calls.

Used from the agent's loop and from FUSE threads: calls block, up to a deadline, one at a time. Everything
that goes wrong becomes a HolderError of one line. PROTOCOL.md beside `csi/holder` states the messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from agent.errors import HolderError
from agent.mount.claim import HeldMount, InFlightTable, Reclaimed, claimed, number_of, reclaim
from agent.mount.ledger import Ledger
from csi.holder.client import Answer, HolderConnection, HolderGone
from csi.holder.protocol import Message, Refused

__all__ = ["HeldMount", "Holder", "HolderAway", "HolderRefused", "InFlightTable", "Reclaimed"]


class HolderRefused(HolderError):
    """The holder answered with an error: `code` is one of PROTOCOL.md ("bound", "unsupported", ...)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"the holder refused: {message} ({code})")
        self.code = code


class HolderAway(HolderError):
    """The last holder's connection has ended, and no other is there yet."""


class Holder:
    """The claim on the descriptors; it ends with `close`, or with the process.

    A holder that dies is followed by another: `drop` and `reclaim`. `life` counts them.
    """

    def __init__(self, connection: HolderConnection, address: tuple[str, str, float]) -> None:
        """`address` is the socket's path, our build, and the deadline of each request."""
        self._connection: HolderConnection | None = connection
        self._address = address
        self._ledger = Ledger()
        self.life = 1

    @property
    def connected(self) -> bool:
        """Whether a holder is there, as far as is known."""
        return self._connection is not None

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
                table, mounts = claimed(answers)
        except BaseException:
            connection.close()
            raise
        holder = cls(connection, (socket_path, build, timeout))
        for held in mounts:
            fd = held.fd if held.fd >= 0 else None
            holder._ledger.keep(held.mount, held.number, fd, held.record, held.backing)
        return holder, table, mounts

    def fileno(self) -> int:
        """The connection, to be polled for its end. Raises HolderAway."""
        return self._connected().fileno()

    def drop(self) -> None:
        """The connection has ended: until `reclaim` succeeds there is no holder to ask (blocks shortly)."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def reclaim(self, table: InFlightTable) -> Reclaimed:
        """Claim at the holder that is there now, and give it what it lacks of our mounts and our table.

        Raises HolderError, and then there is still no holder to ask.
        """
        path, build, timeout = self._address
        with _translated():
            connection = HolderConnection.open(path, "agent", build, timeout)
            try:
                reclaimed = reclaim(connection, self._ledger, table)
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        self.life += 1
        self._pay()
        return reclaimed

    def _pay(self) -> None:
        """Tell what could not be told while no holder was there; what fails now is owed on."""
        with suppress(HolderError):
            for mount, record in self._ledger.owed_records():
                self.record(mount, record)
        with suppress(HolderError):
            for mount, nodeid in self._ledger.owed_closes():
                self.backing_close(mount, nodeid)

    def mount(self, mount: str, record: dict[str, object]) -> HeldMount:
        """Mount a new file system; its kernel side waits for the answer to INIT. Raises HolderError."""
        with self._request("mount", {"mount": mount, "record": record}) as answer:
            held = HeldMount(mount, number_of(answer.message, "number"), answer.take(), record)
            self._ledger.keep(mount, held.number, held.fd, record, {})
            return held

    def tree(self, mount: str, record: dict[str, object], fd: int) -> None:
        """Mount the tree of that name in a store directory; `fd` is its root, opened with O_PATH.

        Raises HolderError; its code is "bad-tree" where the holder finds another directory in its place.
        """
        with self._request("tree", {"mount": mount, "record": record}, fd):
            self._ledger.keep(mount, 0, None, record, {})

    def ready(self, mount: str, record: dict[str, object], read_ahead_kb: int) -> None:
        """INIT is answered: keep this record, let the kernel read that many KiB ahead. Raises HolderError."""
        with self._request("ready", {"mount": mount, "record": record, "read_ahead_kb": read_ahead_kb}):
            self._ledger.record(mount, record, owed=False)

    def record(self, mount: str, record: dict[str, object]) -> None:
        """Replace the mount's record (at most 16 KiB of JSON). Raises HolderRefused.

        Where no holder is there the next one is told.
        """
        self._ledger.record(mount, record, owed=True)
        if self._tell("record", {"mount": mount, "record": record}):
            self._ledger.record(mount, record, owed=False)

    def backing_open(self, mount: str, nodeid: int, fd: int) -> int:
        """The backing id for passthrough opens of `nodeid`; `fd` is the store's file, opened read-only.

        Raises HolderError; its code is "unsupported" where the kernel has no passthrough.
        """
        with self._request("backing_open", {"mount": mount, "nodeid": nodeid}, fd) as answer:
            backing = number_of(answer.message, "backing")
            self._ledger.opened(mount, nodeid, backing)
            return backing

    def backing_close(self, mount: str, nodeid: int) -> None:
        """Forget the backing id of a nodeid; nothing where it has none. Raises HolderRefused.

        Where no holder is there the next one is told.
        """
        self._ledger.closing(mount, nodeid)
        if self._tell("backing_close", {"mount": mount, "nodeid": nodeid}):
            self._ledger.closed(mount, nodeid)

    def unmount(self, mount: str) -> None:
        """Take a mount away. Raises HolderError; its code is "bound" while targets show it."""
        with self._request("unmount", {"mount": mount}):
            self._ledger.drop(mount)

    def close(self) -> None:
        """Give the claim back; the mounts stay."""
        self.drop()
        self._ledger.close()

    def _connected(self) -> HolderConnection:
        if self._connection is None:
            raise HolderAway(
                "the holder is away; mounts that exist are served on, new ones wait for it:"
                " start `headrace-csi hold`"
            )
        return self._connection

    def _tell(self, op: str, fields: Message) -> bool:
        """Ask for what the next holder can be told as well; whether this one was. Raises HolderRefused."""
        try:
            self._ask(op, fields)
        except HolderRefused:
            raise
        except HolderError:
            return False
        return True

    def _ask(self, op: str, fields: Message) -> None:
        with self._request(op, fields):
            pass

    @contextmanager
    def _request(self, op: str, fields: Message, fd: int | None = None) -> Iterator[Answer]:
        descriptors = [] if fd is None else [fd]
        connection = self._connected()
        with _translated(), connection.request(op, fields, descriptors) as (answer,):
            yield answer


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise HolderRefused(error.code, error.message) from error
    except HolderGone as error:
        raise HolderError(str(error)) from error
