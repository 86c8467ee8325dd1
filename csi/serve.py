"""`headrace-csi serve`: the CSI node service on a UNIX socket that only root can open."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import grpc.aio

from csi.binder import Binder
from csi.holder.sockets import private_files, socket_lock
from csi.identity import IdentityService
from csi.node import NodeService
from csi.roots import TargetRoots

STOP_GRACE = 10.0  # seconds for calls under way at SIGTERM; kubelet repeats what is cut off

_log = logging.getLogger("headrace.csi")


@dataclass(frozen=True)
class ServeSettings:
    """The command's arguments."""

    csi_socket: str
    holder_socket: str
    admin_socket: str
    target_roots: Sequence[str]
    node_id: str
    build: str


def serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SocketTaken, OSError."""
    path = os.path.abspath(settings.csi_socket)
    with socket_lock(path):
        try:
            asyncio.run(_serve(settings, path))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


async def _serve(settings: ServeSettings, path: str) -> None:
    binder = Binder(settings.holder_socket, settings.build)
    node = NodeService(settings.node_id, TargetRoots(settings.target_roots), binder, settings.admin_socket)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([*IdentityService(binder, settings.build).handlers(), *node.handlers()])
    with private_files():
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:  # how grpc says that it cannot bind
            raise OSError(0, f"cannot listen: {error}", path) from error
    await server.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    _log.info("ready at %s", path)
    await stopped.wait()
    await server.stop(STOP_GRACE)
