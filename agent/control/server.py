"""Serving the agent's two HTTP applications: the admin API on a UNIX socket, the metrics on a TCP port."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agent.errors import ConfigError

log = logging.getLogger(__name__)

_PEER = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


async def serve_admin(app: web.Application, path: Path) -> web.AppRunner:
    """Serve on a UNIX socket of mode 0600, to root and to the agent's own user. Raises ConfigError."""
    app.middlewares.insert(0, _only(frozenset({0, os.geteuid()})))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        listener = _listen(path)
        await web.SockSite(runner, listener).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


async def serve_metrics(app: web.Application, address: tuple[str, int]) -> web.AppRunner:
    """Serve on a TCP port. Raises ConfigError where it cannot be had."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, *address).start()
    except OSError as error:
        await runner.cleanup()
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
        message = f"cannot listen on {address[0]}:{address[1]}: {reason}; choose another"
        raise ConfigError("metrics.listen", message) from error
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(64)
    except OSError as error:
        listener.close()
        message = (
            f"cannot listen on {path}: {error.strerror or error}; give its directory to the agent's user"
        )
        raise ConfigError("admin.socket", message) from error
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more. OSError(EADDRINUSE) where somebody does."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is something that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(str(path)) == 0:
            raise OSError(errno.EADDRINUSE, "another agent listens there")
    path.unlink()


def _only(allowed: frozenset[int]) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        uid = peer_uid(request)
        if uid not in allowed:
            log.warning("refused uid %s at the admin socket", uid)
            return web.json_response(
                {"error": "Forbidden", "message": "only root and the agent's user may ask"}, status=403
            )
        return await handler(request)

    return check


def peer_uid(request: web.Request) -> int | None:
    """The user at the other end of a UNIX socket (SO_PEERCRED of unix(7)); None where it has gone."""
    if request.transport is None:
        return None
    connection = request.transport.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(raw)[1])
