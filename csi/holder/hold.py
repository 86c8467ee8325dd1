"""`headrace-csi hold`: prepare socket and directories, then run the holder until it is told to stop."""

from __future__ import annotations

import logging
import os
import pwd
import resource
import signal
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from csi.holder import stale
from csi.holder.inflight import InFlightTable
from csi.holder.mounts import Mounts
from csi.holder.operations import Operations
from csi.holder.server import Server
from csi.holder.sockets import private_files, socket_lock
from csi.holder.state import StateFile
from csi.holder.targets import Targets
from csi.holder.trees import TreePlaces

_log = logging.getLogger("headrace.holder")

PIPE_LIMIT = "/proc/sys/fs/pipe-max-size"  # proc_sys_fs(5)
PIPE_SIZE = 2 << 20  # bytes: what one reply of the agent needs (agent/mount/splicing.py)


class CannotHold(Exception):
    """The machine or the arguments do not allow a holder: one line that says what to do."""


def hold(socket_path: str, agent_user: str | None, stores: Sequence[str], build: str) -> None:
    """Run the holder; returns after SIGTERM or SIGINT. What no agent can give to the next one is unmounted.

    Raises CannotHold, SocketTaken.
    """
    uid, gid = _agent_ids(agent_user)
    devices = frozenset(_device(store) for store in stores)
    _allow_descriptors()
    _allow_pipes()
    # Probes of stale mounts are never waited for (stale.py).
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        directory = _make_directories(os.path.realpath(os.path.dirname(socket_path) or "."), gid)
        with socket_lock(socket_path), stop_signal() as wake:
            state = StateFile(f"{os.path.realpath(socket_path)}.state")
            mounts = Mounts(directory, devices, TreePlaces(stores), state)
            mounts.find_trees()
            stale.clean(directory, frozenset(mount.directory for mount in mounts))
            mounts.recall()
            operations = Operations(mounts, Targets(mounts, state), InFlightTable.create(), build)
            with _listening(socket_path, gid) as listener:
                _serve(listener, operations, frozenset({0, uid}), wake, socket_path)
    except OSError as error:
        where = error.filename or socket_path
        raise CannotHold(f"{where}: {error.strerror}") from error


def _serve(
    listener: socket.socket, operations: Operations, users: frozenset[int], wake: socket.socket, path: str
) -> None:
    server = Server(listener, operations, users, wake)
    _log.info("ready at %s", path)
    try:
        server.run()
    finally:
        operations.close()
        server.close()


def _agent_ids(agent_user: str | None) -> tuple[int, int]:
    if agent_user is None:
        return 0, 0
    try:
        entry = pwd.getpwnam(agent_user)
    except KeyError:
        raise CannotHold(
            f"--agent-user: there is no user {agent_user!r}; add it with `useradd --system`"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _device(store: str) -> tuple[int, int]:
    try:
        status = os.stat(store)
    except OSError as error:
        raise CannotHold(f"--store: {store}: {error.strerror}; make the directory first") from error
    if not stat.S_ISDIR(status.st_mode):
        raise CannotHold(f"--store: {store} is not a directory")
    return os.major(status.st_dev), os.minor(status.st_dev)


def _allow_descriptors() -> None:
    """Each mount keeps one; a launcher's low default should not limit them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _allow_pipes() -> None:
    """Let the agent, which may not by itself, make pipes of the size that its replies need.

    The limit is the machine's: it is raised, never lowered, and stays. Where it cannot be, replies cost more.
    """
    try:
        with open(PIPE_LIMIT, encoding="ascii") as setting:
            limit = int(setting.read())
        if limit < PIPE_SIZE:
            with open(PIPE_LIMIT, "w", encoding="ascii") as setting:
                setting.write(str(PIPE_SIZE))
            _log.info("raised fs.pipe-max-size from %d to %d", limit, PIPE_SIZE)
    except OSError as error:
        _log.info("fs.pipe-max-size stays below %d: %s", PIPE_SIZE, error.strerror)


def _make_directories(directory: str, gid: int) -> str:
    """The socket's directory, where missing, and `mounts` in it, which must be root's alone.

    The agent makes its admin socket in the same directory: it may write there, but the sticky bit keeps it
    from renaming or removing what is root's.
    """
    if not os.path.isdir(directory):
        os.makedirs(directory, 0o755)
        os.chown(directory, 0, gid)
        os.chmod(directory, 0o1775)
    mounts = os.path.join(directory, "mounts")
    with suppress(FileExistsError):
        os.mkdir(mounts, 0o700)
    status = os.lstat(mounts)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o077:
        raise CannotHold(f"{mounts}: must be a directory of root, mode 0700; remove it")
    return mounts


@contextmanager
def _listening(path: str, gid: int) -> Iterator[socket.socket]:
    """The socket, for root and the agent's group."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with listener:
        with private_files():
            listener.bind(path)
        os.chown(path, 0, gid)
        os.chmod(path, 0o660)
        listener.listen()
        try:
            yield listener
        finally:
            os.unlink(path)


@contextmanager
def stop_signal() -> Iterator[socket.socket]:
    """A socket that becomes readable at SIGTERM and SIGINT.

    The interpreter writes to it where the signal arrives (signal.set_wakeup_fd). A handler in Python would
    run at the next instruction only: never, where the signal came between the last one and the wait.
    """
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with reading, writing:
        wakes = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, _noted) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield reading
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakes)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The signal has no other effect than to be written."""
