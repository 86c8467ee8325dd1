"""The claim at a holder: what it gives an agent, and what an agent gives back to one that was started anew.

After the death of a holder everything that it kept is still here: the in-flight table, and in the ledger the
mounts with records, backing ids and descriptors. PROTOCOL.md beside `csi/holder` states the messages.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from agent.mount.ledger import Known, Ledger
from csi.holder.client import Answer, HolderConnection, HolderGone
from csi.holder.protocol import Message, Refused, pages

log = logging.getLogger(__name__)


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
    record: dict[str, object] = field(repr=False)  # may hold credentials
    backing: dict[int, int] = field(default_factory=dict)
    bound: int = 0
    kind: str = "fuse"


@dataclass(frozen=True)
class InFlightTable:
    """The in-flight table's memfd (the caller's to close), and its shape: slots of `slot_size` bytes."""

    fd: int
    slots: int
    slot_size: int

    def close(self) -> None:
        os.close(self.fd)


def claimed(answers: list[Answer]) -> tuple[InFlightTable, list[HeldMount]]:
    """Put the packets of a claim together; on failure no descriptor stays open."""
    first = answers[0]
    slots, slot_size = number_of(first.message, "slots"), number_of(first.message, "slot_size")
    table = InFlightTable(first.take(), slots, slot_size)
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
    number, bound = number_of(answer.message, "number"), number_of(answer.message, "bound")
    kind = str(answer.message.get("kind", "fuse"))
    fd = -1 if kind == "tree" else answer.take()
    return HeldMount(name, number, fd, record, bound=bound, kind=kind)


def _add_backing(mounts: dict[str, HeldMount], message: Message) -> None:
    name, pairs = message.get("mount"), message.get("backing")
    if name not in mounts or not isinstance(pairs, list):
        raise _unclear("backing")
    held = mounts[str(name)]
    mounts[held.mount] = replace(held, backing={**held.backing, **dict(pairs)})


def number_of(message: Message, name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int):
        raise _unclear(name)
    return value


def _unclear(name: str) -> HolderGone:
    return HolderGone(f"the holder's answer lacks {name!r}; are holder and agent of one release?")


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What came of a claim at another holder: on how many targets each FUSE mount is bound that it has now,
    and its own in-flight table (the caller's to close), where it did not take ours."""

    bound: dict[str, int]
    table: InFlightTable | None


def reclaim(connection: HolderConnection, ledger: Ledger, table: InFlightTable) -> Reclaimed:
    """Claim at a holder, and restore what it lacks. Raises Refused (another has the claim), HolderGone."""
    with connection.request("claim", {}, several=True) as answers:
        theirs, told = claimed(answers)
    held = {mount.mount: mount for mount in told}
    try:
        for mount in told:
            if mount.fd >= 0:
                os.close(mount.fd)  # ours is the same
        bound = {name: mount.bound for name, mount in held.items() if mount.kind == "fuse"}
        if not _same(theirs, table) and not _restore_table(connection, table):
            return Reclaimed(bound, replace(theirs, fd=os.dup(theirs.fd)))
        with ledger.known() as known:
            for name, ours in known.items():
                _restore(connection, name, ours, held.get(name), bound)
        return Reclaimed(bound, None)
    finally:
        os.close(theirs.fd)


def _same(theirs: InFlightTable, ours: InFlightTable) -> bool:
    return os.path.samestat(os.fstat(theirs.fd), os.fstat(ours.fd))


def _restore_table(connection: HolderConnection, table: InFlightTable) -> bool:
    """Whether the holder keeps our in-flight table from now on; one of an older release cannot."""
    fields: Message = {"part": "table", "slots": table.slots, "slot_size": table.slot_size}
    what = f"the holder (build {connection.build}) takes no mounts back, they will end with this agent"
    with _logged(what), connection.request("restore", fields, [table.fd]):
        return True
    return False


def _restore(
    connection: HolderConnection, name: str, ours: Known, theirs: HeldMount | None, bound: dict[str, int]
) -> None:
    """Give one mount back, as far as the holder lacks it. Raises HolderGone."""
    if ours.fd is None:  # a tree: found again without us, but for its record
        ours.owes_record = theirs is not None and theirs.record != ours.record
        return
    with _logged(f"the holder does not take the mount {name} back"):
        if theirs is None:
            bound[name] = _restore_mount(connection, name, ours, ours.fd)
        told = {} if theirs is None else theirs.backing
        for page in pages([nodeid, found] for nodeid, found in ours.backing.items() if nodeid not in told):
            with connection.request("restore", {"part": "backing", "mount": name, "backing": page}):
                pass


def _restore_mount(connection: HolderConnection, name: str, ours: Known, fd: int) -> int:
    """On how many targets it is bound."""
    fields: Message = {"part": "mount", "mount": name, "number": ours.number, "record": ours.record}
    with connection.request("restore", fields, [fd]) as (answer,):
        ours.owes_record = False
        return number_of(answer.message, "bound")


@contextmanager
def _logged(what: str) -> Iterator[None]:
    """What the holder refuses is logged; the mounts are served on all the same."""
    try:
        yield
    except Refused as error:
        log.error("%s: %s (%s)", what, error.message, error.code)
