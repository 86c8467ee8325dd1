"""What a holder writes down for its successor: mounts by name and number, targets with their notes.

A small file beside the socket, root's alone (0600), replaced by rename(2), so that it is always whole. It
holds nothing secret: records and descriptors come back from the agent. What it says is believed only where
mountinfo says the same; after a restart of the machine that is nothing. It is written before what it tells
of is done, so that a holder killed in between loses no target. Without a file the mounts are still restored,
and only what was known of their targets is lost.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from dataclasses import asdict, dataclass, field

from csi.holder.protocol import MOUNT_NAME, Message

VERSION = 1

_log = logging.getLogger("headrace.holder")


@dataclass(frozen=True, slots=True)
class KnownMount:
    """A FUSE mount: its number in the in-flight table, and its "major:minor" in mountinfo."""

    number: int
    device: str


@dataclass(frozen=True, slots=True)
class KnownTarget:
    """What is bound on a target: the mount, and serve's note."""

    mount: str
    note: Message = field(default_factory=dict)


class StateFile:
    """The file and what it says. Nothing that goes wrong with it stops the holder; it is logged."""

    def __init__(self, path: str) -> None:
        """Read what an earlier holder left at `path`; what is not readable counts as nothing."""
        self._path = path
        self.numbers = 0  # the highest number given so far
        self.mounts: dict[str, KnownMount] = {}
        self.targets: dict[str, KnownTarget] = {}
        try:
            self._take(_read(path))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _log.warning("%s is not readable (%s): what was bound where is not known", path, error)
            self.mounts, self.targets = {}, {}

    def _take(self, said: Message) -> None:
        mounts, targets, numbers = said["mounts"], said["targets"], said["numbers"]
        if not isinstance(mounts, dict) or not isinstance(targets, dict) or not isinstance(numbers, int):
            raise ValueError("not a holder's state")
        self.numbers = numbers
        for name, known in mounts.items():
            if not MOUNT_NAME.fullmatch(name):
                raise ValueError("a mount without a name")
            self.mounts[name] = KnownMount(int(known["number"]), str(known["device"]))
        for target, bound in targets.items():
            self.targets[target] = KnownTarget(str(bound["mount"]), dict(bound["note"]))

    def save(self) -> None:
        """Replace the file by what is known now."""
        said = {
            "version": VERSION,
            "numbers": self.numbers,
            "mounts": {name: asdict(known) for name, known in self.mounts.items()},
            "targets": {target: asdict(bound) for target, bound in self.targets.items()},
        }
        try:
            _write(self._path, json.dumps(said).encode())
        except OSError as error:
            _log.error("cannot write %s: %s; the next holder will not know the targets", self._path, error)


def _read(path: str) -> Message:
    """The agent's user may make files in that directory: only root's own is believed."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
            raise ValueError("it is not root's own file")
        said = json.load(file)
    if not isinstance(said, dict):
        raise ValueError("not a holder's state")
    return said


def _write(path: str, data: bytes) -> None:
    fresh = f"{path}.new"
    try:
        os.unlink(fresh)
    except FileNotFoundError:
        pass
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    os.rename(fresh, path)
