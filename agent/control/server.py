"""Serving the agent's two HTTP applications: the admin API on a UNIX socket, the metrics on a TCP port."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agent.errors import ConfigError

log = logging.getLogger(__name__)

SHUTDOWN = 2.0  # seconds that requests under way may still take; a mount of a dead origin would take minutes
# Connections that may wait to be accepted: where they are too many connect(2) on a UNIX socket fails at once
# (EAGAIN), and a node that boots publishes hundreds of volumes together.
BACKLOG = 1024

_PEER = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


async def serve_admin(app: web.Application, path: Path) -> web.AppRunner:
    """Serve on a UNIX socket of mode 0600, to root and to the agent's own user. Raises ConfigError.

    A socket that a dead agent left is replaced; cleaning the runner up removes this one.
    """
    app.middlewares.insert(0, _only(frozenset({0, os.geteuid()})))
    try:
        listener = _listen(path)
    except OSError as error:
        raise ConfigError("admin.socket", _admin_advice(path, error)) from error
    made = _identity(path)

    async def remove(_: web.Application) -> None:
        _remove_own(path, made)

    app.on_cleanup.append(remove)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN)
    try:
        await runner.setup()
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
    except BaseException:
        listener.close()
        await runner.cleanup()
        raise
    return runner


async def serve_metrics(app: web.Application, address: tuple[str, int]) -> web.AppRunner:
    """Serve on a TCP port. Raises ConfigError where it cannot be had."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN)
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
    """A listening socket at `path`, of mode 0600 before anybody can connect. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _alone_in(path.parent):
            _remove_stale(path)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keeps two agents that start at the same time from removing each other's new socket."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more. OSError(EADDRINUSE) where somebody does."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "another process listens there")
    path.unlink()


def _remove_own(path: Path, made: tuple[int, int, int] | None) -> None:
    """Remove the socket that was `made` here; not one that a successor has put in its place."""
    if _identity(path) == made:
        path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What tells one socket file from the next at its path (inode numbers come again); None without one."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


_ADVICE = {
    errno.ENOENT: "there is no such directory: make it, for the agent's user",
    errno.ENOTDIR: "its directory is none: choose another path",
    errno.EACCES: "no permission: give its directory to the agent's user",
    errno.EPERM: "no permission: give its directory to the agent's user",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.EEXIST: "there is something that is no socket: remove it, or choose another path",
    errno.EADDRINUSE: "another process listens there: stop it, or choose another path",
    errno.EWOULDBLOCK: "another agent is starting there: stop it, or choose another path",
}


def _admin_advice(path: Path, error: OSError) -> str:
    return f"cannot listen on {path}: {_ADVICE.get(error.errno or 0, error.strerror or str(error))}"


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
