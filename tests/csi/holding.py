"""A real holder process for tests, somebody to answer its mounts, and cleaning up behind all of it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from csi.holder import kernel
from csi.holder.client import HolderConnection
from csi.holder.mountinfo import MountEntry, mount_entries
from csi.holder.protocol import Message

REPOSITORY = Path(__file__).resolve().parents[2]
AGENT_USER = "nobody"
THIRD_UID = 65533
WITHIN = 10.0  # seconds for anything that should take milliseconds


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that every user can pass through; whatever is mounted below it goes first."""
    path = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        for entry in reversed(entries_below(path)):
            kernel.unmount(entry.point, kernel.MNT_DETACH)
        shutil.rmtree(path)


def entries_below(path: Path) -> list[MountEntry]:
    return [entry for entry in mount_entries() if entry.point.startswith(f"{path}/")]


class Process:
    """One of our commands as a process, ready when it says so on stderr; `lines` is what it said so far."""

    def __init__(self, *arguments: str, program: Sequence[str] = ("-m", "csi")) -> None:
        command = [sys.executable, *program, *arguments]
        self.popen = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._spoke = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        try:
            assert self._spoke.wait(WITHIN), "the command does not get ready"
            assert self.lines and "ready at" in self.lines[-1], self.lines
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        """A pipe that nobody empties would hold the process up."""
        assert self.popen.stderr is not None
        with self.popen.stderr:
            for line in self.popen.stderr:
                self.lines.append(line.rstrip("\n"))
                if "ready at" in line:
                    self._spoke.set()
        self._spoke.set()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def terminate(self) -> int:
        self.popen.terminate()
        return self._wait()

    def kill(self) -> int:
        self.popen.send_signal(signal.SIGKILL)
        return self._wait()

    def _wait(self) -> int:
        status = self.popen.wait(WITHIN)
        self._reader.join(WITHIN)
        return status

    def close(self) -> None:
        if self.popen.poll() is None:
            self.terminate()


class HolderProcess(Process):
    """`headrace-csi hold`, its store at `base/store`, its socket at `base/run/holder.sock`."""

    def __init__(self, base: Path, program: Sequence[str] = ("-m", "csi")) -> None:
        self.base = base
        self.socket = str(base / "run" / "holder.sock")
        self.store = base / "store"
        self.store.mkdir(exist_ok=True)
        options = ("--holder-socket", self.socket, "--agent-user", AGENT_USER, "--store", str(self.store))
        super().__init__("hold", *options, program=program)

    def connect(self, role: str = "command") -> HolderConnection:
        return HolderConnection.open(self.socket, role, "test", WITHIN)

    def mounted_at(self, mount: str) -> MountEntry | None:
        point = str(self.base / "run" / "mounts" / mount)
        return next((entry for entry in mount_entries() if entry.point == point), None)


@contextlib.contextmanager
def running_holder() -> Iterator[HolderProcess]:
    with scratch() as base:
        holder = HolderProcess(base)
        try:
            yield holder
        finally:
            holder.close()


def ask(connection: HolderConnection, op: str, fields: Message, descriptors: Sequence[int] = ()) -> Message:
    """One request and the message of its answer."""
    with connection.request(op, fields, descriptors) as (answer,):
        return answer.message


@contextlib.contextmanager
def path_descriptor(path: Path | str) -> Iterator[int]:
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# The few structs of the FUSE protocol that prove a mount alive (include/uapi/linux/fuse.h, 7.31 and newer).
_IN = struct.Struct("=IIQQIIII")
_INIT, _GETATTR = 26, 3
_UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_INIT_EXT, _PASSTHROUGH = 1 << 30, 1 << (37 - 32)
_ENOSYS = 38


def _init_answer() -> bytes:
    head = struct.pack("=IIIIHHIIHHI", 7, 41, 1 << 20, _INIT_EXT, 512, 0, 4096, 1, 0, 0, _PASSTHROUGH)
    return head + struct.pack("=I6I", 1, *[0] * 6)


def _attributes(inode: int) -> bytes:
    return struct.pack("=QII", 0, 0, 0) + struct.pack("=6Q10I", inode, *[0] * 8, 0o40555, 2, *[0] * 5)


def answer_one(fuse: int, timeout: float = WITHIN) -> int:
    """Answer the next request of a mount; its opcode. Raises TimeoutError."""
    ready, _, _ = select.select([fuse], [], [], timeout)
    if not ready:
        raise TimeoutError("no request came")
    request = os.read(fuse, 8192)
    _, opcode, unique, nodeid, *_ = _IN.unpack_from(request)
    body = {_INIT: _init_answer(), _GETATTR: _attributes(nodeid)}.get(opcode)
    if opcode not in _UNANSWERED:
        error = 0 if body is not None else -_ENOSYS
        os.write(fuse, struct.pack("=IiQ", 16 + len(body or b""), error, unique) + (body or b""))
    return int(opcode)


@contextlib.contextmanager
def answering(fuse: int) -> Iterator[None]:
    """A thread that answers a mount's requests while the block runs."""
    stop, stopped = os.pipe()

    def answer() -> None:
        while True:
            ready, _, _ = select.select([fuse, stop], [], [])
            if stop in ready:
                return
            try:
                answer_one(fuse)
            except OSError as error:
                if error.errno == errno.ENODEV:  # it is unmounted
                    return
                if error.errno not in (errno.EAGAIN, errno.ENOENT):  # who asked has gone
                    raise

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        os.close(stopped)
        thread.join(WITHIN)
        os.close(stop)


def stat_elsewhere(path: Path | str, timeout: float = WITHIN) -> subprocess.CompletedProcess[str]:
    """stat(1) in another process: this one must not touch what it serves."""
    return subprocess.run(
        ["stat", "-c", "%f", str(path)], capture_output=True, text=True, timeout=timeout, check=False
    )
