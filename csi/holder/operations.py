"""What the holder answers: each operation's fields checked, its access, and the packets of its answer.

The checks are here and nowhere else: `Mounts` and `Targets` get values of the right type.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from csi.holder.inflight import InFlightTable
from csi.holder.mounts import Mount, Mounts
from csi.holder.protocol import MAX_NOTE, MAX_RECORD, MOUNT_NAME, VERSIONS, Message, Peer, Refused, pages
from csi.holder.restored import MAX_SLOT_SIZE, MAX_SLOTS, restored_table
from csi.holder.targets import Targets

ROLES = ("agent", "command")
MAX_TARGET = 4096  # bytes, PATH_MAX of include/uapi/linux/limits.h
SECRET = "credentials"  # the field of a record that is for the agent with the claim only
MAX_DEPTH = 32  # of a record's nesting, far from what Python's JSON encoder can do
_U64 = 1 << 64


def _depth(value: object, limit: int = MAX_DEPTH + 1) -> int:
    """How deep lists and objects are nested; counting ends at `limit`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None or limit == 0:
        return 0
    return 1 + max((_depth(item, limit - 1) for item in inner), default=0)


_log = logging.getLogger("headrace.holder")


@dataclass
class Client:
    """One connection's state: who it is, and what it said in its hello."""

    peer: Peer
    gone: Callable[[], bool]  # whether the other end has closed, also where that is not yet read
    role: str | None = None


@dataclass(frozen=True)
class Request:
    """One request, with the descriptors that came along; those stay the server's."""

    client: Client
    message: Message = field(repr=False)
    descriptors: list[int]

    def text(self, name: str, limit: int) -> str:
        value = self.message.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= limit or "\0" in value:
            raise Refused("bad-request", f"{name} must be a text of 1 to {limit} characters")
        return value

    def number(self, name: str, low: int, high: int) -> int:
        value = self.message.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
            raise Refused("bad-request", f"{name} must be a whole number of {low} to {high - 1}")
        return value

    def object(self, name: str, limit: int) -> Message:
        value = self.message.get(name, {})
        if not isinstance(value, dict):
            raise Refused("bad-request", f"{name} must be an object")
        try:
            size = len(json.dumps(value, separators=(",", ":"), allow_nan=False))
        except ValueError:
            raise Refused("bad-request", f"{name} has a number that JSON has not") from None
        if size > limit or _depth(value) > MAX_DEPTH:
            raise Refused("bad-request", f"{name} is longer than {limit} bytes or deeper than {MAX_DEPTH}")
        return value

    def mount_name(self) -> str:
        name = self.text("mount", 64)
        if not MOUNT_NAME.fullmatch(name):
            raise Refused("bad-request", "mount must be 1 to 64 of a-z, 0-9 and '-'")
        return name

    def target(self) -> str:
        target = self.text("target", MAX_TARGET)
        if not target.startswith("/") or {"", ".", ".."} & set(target[1:].split("/")):
            raise Refused(
                "bad-request", "target must be an absolute path without '.', '..', '//' or a '/' at its end"
            )
        return target

    def descriptor(self) -> int:
        if len(self.descriptors) != 1:
            raise Refused("bad-request", "exactly one descriptor must come with this request")
        return self.descriptors[0]


@dataclass(frozen=True)
class Reply:
    """One packet of an answer, and the holder's descriptor that goes along (a copy of it)."""

    message: Message = field(default_factory=dict, repr=False)
    descriptor: int | None = None


Replies = Iterator[Reply]


@dataclass(frozen=True)
class _Operation:
    """An operation and who may ask for it: `claimed` the claiming connection only, `root` uid 0 only."""

    run: Callable[[Request], Replies]
    role: str | None = None
    claimed: bool = False
    root: bool = False


class Operations:
    """The table of operations, and the claim."""

    def __init__(self, mounts: Mounts, targets: Targets, table: InFlightTable, build: str) -> None:
        self._mounts = mounts
        self._targets = targets
        self._table = table
        self._build = build
        self._claimant: Client | None = None
        self._operations = {
            "claim": _Operation(self._claim, "agent"),
            "mount": _Operation(self._mount, "agent", claimed=True),
            "tree": _Operation(self._tree, "agent", claimed=True),
            "ready": _Operation(self._ready, "agent", claimed=True),
            "record": _Operation(self._record, "agent", claimed=True),
            "restore": _Operation(self._restore, "agent", claimed=True),
            "backing_open": _Operation(self._backing_open, "agent", claimed=True),
            "backing_close": _Operation(self._backing_close, "agent", claimed=True),
            "unmount": _Operation(self._unmount, "agent", claimed=True),
            "bind": _Operation(self._bind, "command", root=True),
            "unbind": _Operation(self._unbind, "command", root=True),
            "target": _Operation(self._target, "command", root=True),
            "list": _Operation(self._list),
        }

    def answer(self, request: Request) -> Replies:
        """Carry a request out; all of it, before the first packet of the answer is taken.

        Raises Refused.
        """
        op = request.text("op", 64)
        if op == "hello":
            return iter(list(self._hello(request)))
        if request.client.role is None:
            raise Refused("bad-request", "the first message of a connection must be hello")
        operation = self._operations.get(op)
        if operation is None:
            raise Refused("unknown-op", f"this holder knows no operation {op!r}")
        self._check_access(op, operation, request.client)
        try:
            return iter(list(operation.run(request)))
        except OSError as error:
            raise Refused("failed", f"{op}: {error.strerror or error}") from error
        except ValueError as error:  # text that cannot be a path
            raise Refused("bad-request", f"{op}: {error}") from error
        except NotImplementedError as error:
            raise Refused("unsupported", str(error)) from error

    def _check_access(self, op: str, operation: _Operation, client: Client) -> None:
        if operation.root and client.peer.uid != 0:
            raise Refused("denied", f"{op} is for root only")
        if operation.role not in (None, client.role):
            raise Refused("denied", f"{op} is for the role {operation.role}")
        if operation.claimed and client is not self._claimant:
            raise Refused("not-claimed", f"{op} is for the agent that has claimed the descriptors")

    def closed(self, client: Client) -> None:
        """A connection ended; its claim ends with it."""
        if client is self._claimant:
            self._claimant = None

    def _hello(self, request: Request) -> Replies:
        if request.client.role is not None:
            raise Refused("bad-request", "hello was said already")
        offered = request.message.get("versions")
        versions = [item for item in offered if item in VERSIONS] if isinstance(offered, list) else []
        if not versions:
            mine = ", ".join(map(str, VERSIONS))
            raise Refused(
                "version", f"this holder (build {self._build}) speaks version {mine}; the caller does not"
            )
        role = request.text("role", 16)
        if role not in ROLES:
            raise Refused("bad-request", f"role must be one of {', '.join(ROLES)}")
        request.client.role = role
        yield Reply({"version": max(versions), "build": self._build, "pid": os.getpid()})

    def _claim(self, request: Request) -> Replies:
        holds = self._claimant
        if holds is not None and holds is not request.client and not holds.gone():
            raise Refused("busy", f"the agent of pid {holds.peer.pid} has claimed the descriptors")
        self._claimant = request.client
        self._mounts.sweep()
        held = [mount for mount in self._mounts if mount.held]
        table = {"part": "table", "slots": self._table.slots, "slot_size": self._table.slot_size}
        yield Reply({**table, "mounts": len(held)}, self._table.descriptor)
        for mount in held:
            yield Reply(self._describe(mount, "mount"), mount.descriptor)
            for page in pages([nodeid, backing] for nodeid, backing in mount.backing.items()):
                yield Reply({"part": "backing", "mount": mount.name, "backing": page})
        yield Reply({"part": "end"})

    def _describe(self, mount: Mount, part: str) -> Message:
        about: Message = {"part": part, "mount": mount.name, "number": mount.number, "record": mount.record}
        about |= {"kind": mount.kind, "held": mount.held}
        return {**about, "bound": self._targets.places(mount), "backings": len(mount.backing)}

    def _restore(self, request: Request) -> Replies:
        """What a new holder lacks, from the agent that has it: the table first, then mount by mount."""
        part = request.text("part", 16)
        restore = {
            "table": self._restore_table,
            "mount": self._restore_mount,
            "backing": self._restore_backing,
        }.get(part)
        if restore is None:
            raise Refused("unknown-op", f"this holder restores no {part!r}")
        yield Reply(restore(request))

    def _restore_table(self, request: Request) -> Message:
        if any(mount.kind == "fuse" and mount.held for mount in self._mounts):
            raise Refused("exists", "the in-flight table is in use by mounts of this holder")
        slots = request.number("slots", 3, MAX_SLOTS + 1)
        size = request.number("slot_size", 64, MAX_SLOT_SIZE + 1)
        table = restored_table(request.descriptor(), slots, size)
        os.close(self._table.descriptor)
        self._table = table
        return {}

    def _restore_mount(self, request: Request) -> Message:
        number, record = request.number("number", 1, 1 << 32), request.object("record", MAX_RECORD)
        mount = self._mounts.restore(request.mount_name(), number, record, request.descriptor())
        return {"bound": self._targets.places(mount)}

    def _restore_backing(self, request: Request) -> Message:
        mount = self._mounts.get(request.mount_name())
        mount.fuse()
        mount.backing |= _backing_pairs(request.message.get("backing"))
        return {}

    def _mount(self, request: Request) -> Replies:
        mount = self._mounts.add(request.mount_name(), request.object("record", MAX_RECORD))
        yield Reply({"number": mount.number}, mount.descriptor)

    def _tree(self, request: Request) -> Replies:
        record = request.object("record", MAX_RECORD)
        uid = request.client.peer.uid
        self._mounts.add_tree(request.mount_name(), record, request.descriptor(), uid)
        yield Reply()

    def _ready(self, request: Request) -> Replies:
        mount = self._mounts.get(request.mount_name())
        record = request.object("record", MAX_RECORD)
        mount.fuse()
        self._mounts.read_ahead(mount, request.number("read_ahead_kb", 0, 1 << 20))
        mount.record = record
        yield Reply()

    def _record(self, request: Request) -> Replies:
        self._mounts.get(request.mount_name()).record = request.object("record", MAX_RECORD)
        yield Reply()

    def _backing_open(self, request: Request) -> Replies:
        mount = self._mounts.get(request.mount_name())
        nodeid = request.number("nodeid", 1, _U64)
        yield Reply({"backing": self._mounts.open_backing(mount, nodeid, request.descriptor())})

    def _backing_close(self, request: Request) -> Replies:
        mount = self._mounts.get(request.mount_name())
        self._mounts.close_backing(mount, request.number("nodeid", 1, _U64))
        yield Reply()

    def _unmount(self, request: Request) -> Replies:
        mount = self._mounts.get(request.mount_name())
        bound = self._targets.of(mount)
        if bound:
            raise Refused("bound", f"{mount.name} is bound on {len(bound)} targets, one of them {bound[0]}")
        self._mounts.remove(mount)
        yield Reply()

    def _bind(self, request: Request) -> Replies:
        mount = self._mounts.get(request.mount_name())
        note = request.object("note", MAX_NOTE)
        fresh = self._targets.bind(mount, request.target(), request.descriptor(), note)
        yield Reply({"already": not fresh})

    def _unbind(self, request: Request) -> Replies:
        bound = self._targets.unbind(request.target())
        if bound is None:
            yield Reply({"gone": True})
            return
        mount = self._mounts.find(bound.mount)
        remaining = len(self._targets.of(mount)) if mount is not None else 0
        yield Reply({"gone": False, "mount": bound.mount, "note": bound.note, "remaining": remaining})

    def _target(self, request: Request) -> Replies:
        bound = self._targets.find(request.target())
        yield Reply({"mount": bound.mount, "note": bound.note} if bound else {"mount": None})

    def _list(self, request: Request) -> Replies:
        for mount in self._mounts:
            record = {name: value for name, value in mount.record.items() if name != SECRET}
            yield Reply({**self._describe(mount, "mount"), "record": record})
            for page in pages(self._targets.of(mount)):
                yield Reply({"part": "targets", "mount": mount.name, "targets": page})
        yield Reply({"part": "end"})

    def close(self) -> None:
        """The end of this holder, not of what lives on without it.

        A FUSE mount whose descriptor an agent has too is restored to the next holder by that agent; without
        one it would die with this process, and is unmounted lazily. Trees that a target shows need nobody.
        """
        claimant, self._claimant = self._claimant, None
        claimed = claimant is not None and not claimant.gone()
        self._mounts.sweep()
        for mount in self._mounts:
            if claimed or not mount.held or (mount.kind == "tree" and self._targets.places(mount)):
                _log.info("the mount %s is left to the next holder", mount.name)
                continue
            self._take_away(mount)

    def _take_away(self, mount: Mount) -> None:
        for target in self._targets.of(mount):
            try:
                self._targets.unbind(target)
            except (OSError, Refused) as error:
                _log.warning("cannot unbind %s: %s", target, error)
        self._mounts.remove(mount)


def _backing_pairs(value: object) -> dict[int, int]:
    """Backing ids by nodeid. Raises Refused `bad-request` for anything but pairs of whole numbers."""
    if not isinstance(value, list) or not all(map(_is_pair, value)):
        raise Refused("bad-request", "backing must be a list of [nodeid, id]")
    return dict(value)


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < _U64
