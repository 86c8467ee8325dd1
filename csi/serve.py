"""`headrace-csi serve`: the CSI node service on a UNIX socket that only root can open."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import grpc
import grpc.aio

from csi.binder import Binder
from csi.holder.sockets import private_files, socket_lock
from csi.identity import IdentityService
from csi.node import NodeService
from csi.registration import RegistrationService
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
    registration_socket: str | None = None  # none: kubelet is not there
    kubelet_csi_socket: str | None = None  # how kubelet names csi_socket; none: the same


def serve(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SocketTaken, OSError."""
    paths = [os.path.abspath(settings.csi_socket)]
    if settings.registration_socket is not None:
        paths.append(os.path.abspath(settings.registration_socket))
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(socket_lock(path))
            stack.callback(_unlink, path)
        asyncio.run(_serve(settings, *paths))


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


async def _serve(settings: ServeSettings, path: str, registration: str | None = None) -> None:
    binder = Binder(settings.holder_socket, settings.build)
    node = NodeService(settings.node_id, TargetRoots(settings.target_roots), binder, settings.admin_socket)
    servers = [await _started(path, [*IdentityService(binder, settings.build).handlers(), *node.handlers()])]
    if registration is not None:  # after the other: kubelet comes at once
        endpoint = settings.kubelet_csi_socket or path
        servers.append(await _started(registration, RegistrationService(endpoint).handlers()))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    _log.info("ready at %s", path)
    await stopped.wait()
    for server in reversed(servers):
        await server.stop(STOP_GRACE)


async def _started(path: str, handlers: Sequence[grpc.GenericRpcHandler]) -> grpc.aio.Server:
    """A server at a UNIX socket that only root can open. Raises OSError."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(list(handlers))
    with private_files():
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:  # how grpc says that it cannot bind
            raise OSError(0, f"cannot listen: {error}", path) from error
    await server.start()
    return server
