"""`headrace-csi status`: every mount of the node, as the holder keeps it and the agent serves it.

Nothing here asks a mounted file system: targets come from the holder's records, figures from the agent's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from agent.control.client import AdminClient, AdminError
from agent.control.views import MountView
from csi.holder.client import HolderConnection, HolderGone
from csi.holder.protocol import Message, Refused

DEADLINE = 10.0  # seconds for the holder, and for the agent
UNFOLDED = 100_000  # columns, for a file or a pipe: a row is a line there
SHOWN_REVISION = 12  # characters of a revision that a person is shown


class StatusFailed(Exception):
    """Holder or agent cannot be asked: one line."""


@dataclass(frozen=True, slots=True)
class MountStatus:
    """One mount. `mode` is `unserved` where no agent serves it now; bytes since the agent took it up."""

    mount: str
    targets: tuple[str, ...]
    uri: str
    revision: str
    mode: str
    origin_bytes: int
    store_bytes: int
    last_error: str


def status(holder_socket: str, admin_socket: str, build: str, *, as_json: bool) -> None:
    """Print the mounts. Raises StatusFailed, for a missing agent after what the holder knows is printed."""
    held = _held(holder_socket, build)
    served, failure = asyncio.run(_served(admin_socket))
    _show(join(held, served), as_json=as_json)
    if failure is not None:
        raise StatusFailed(f"agent: {failure.message}")


def join(held: Sequence[MountStatus], served: Sequence[MountView]) -> list[MountStatus]:
    """What the holder keeps, with what the agent says of it."""
    views = {view.mount: view for view in served}
    return [_joined(one, views[one.mount]) if one.mount in views else one for one in held]


def _joined(one: MountStatus, view: MountView) -> MountStatus:
    return MountStatus(
        mount=one.mount,
        targets=one.targets,
        uri=view.uri,
        revision=view.revision,
        mode=view.mode,
        origin_bytes=view.origin_bytes,
        store_bytes=view.store_bytes,
        last_error=view.last_error,
    )


def _held(path: str, build: str) -> list[MountStatus]:
    try:
        with _connection(path, build) as connection, connection.request("list", {}, several=True) as answers:
            return held_mounts([answer.message for answer in answers])
    except (HolderGone, Refused) as error:
        raise StatusFailed(str(error)) from error


def held_mounts(messages: Sequence[Message]) -> list[MountStatus]:
    """The mounts of an answer to `list` (csi/holder/PROTOCOL.md)."""
    targets: dict[str, list[str]] = {}
    records: dict[str, Message] = {}
    for message in messages:
        name = str(message.get("mount"))
        if message.get("part") == "mount":
            record = message.get("record")
            records[name] = record if isinstance(record, dict) else {}
        elif message.get("part") == "targets":
            told = message.get("targets")
            targets.setdefault(name, []).extend(map(str, told if isinstance(told, list) else []))
    return [_unserved(name, record, targets.get(name, [])) for name, record in records.items()]


def _unserved(name: str, record: Message, targets: list[str]) -> MountStatus:
    uri, revision = str(record.get("uri", "")), str(record.get("revision", ""))
    mode = "promoted" if record.get("kind") == "tree" else "unserved"
    return MountStatus(name, tuple(targets), uri, revision, mode, 0, 0, "")


async def _served(path: str) -> tuple[list[MountView], AdminError | None]:
    try:
        async with AdminClient(path, DEADLINE) as agent:
            return await agent.mounts(), None
    except AdminError as error:
        return [], error


@contextmanager
def _connection(path: str, build: str) -> Iterator[HolderConnection]:
    connection = HolderConnection.open(path, "command", build, DEADLINE)
    try:
        yield connection
    finally:
        connection.close()


def _show(mounts: Sequence[MountStatus], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(mount) for mount in mounts], indent=2))  # noqa: T201
        return
    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    if not mounts:
        console.print("no mounts")
        return
    table = Table(
        "target", "mode", "dataset", "revision", "from origin", "from store", "last error", box=None
    )
    for mount in mounts:
        for target in mount.targets or ("(none)",):
            table.add_row(
                Text(target),
                mount.mode,
                Text(mount.uri),
                mount.revision[:SHOWN_REVISION],
                decimal(mount.origin_bytes),
                decimal(mount.store_bytes),
                Text(mount.last_error),
            )
    console.print(table)
