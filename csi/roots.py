"""Target paths: below a target root, reached by no symbolic link, opened without asking what is mounted.

A pod can rename and link what is in its own directories, so a path is never trusted twice: what is checked
is a descriptor (openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), and the descriptor is what counts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from csi.failures import InvalidArgument
from csi.holder import kernel
from csi.holder.mountinfo import inside_ours, mount_entries

MAX_PATH = 4096  # bytes, PATH_MAX of include/uapi/linux/limits.h
_FAULTS = {
    errno.ENOENT: "its parent directory is missing; make it first",
    errno.ENOTDIR: "it, or a part of it, is not a directory",
    errno.ELOOP: "a part of it is a symbolic link",
    errno.EXDEV: "it leaves its target root",
    errno.ENAMETOOLONG: "a name in it is too long",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A target: `path` is its name for the holder, `root` (resolved) the target root, `below` the rest."""

    path: str
    root: str
    below: str


class TargetRoots:
    """The directories that targets may lie below; their own symbolic links are resolved once, here."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = [(os.path.abspath(root), os.path.realpath(root)) for root in roots]

    def place(self, target: str) -> Place:
        """Where a target_path lies; a root may be named by its real path too. Raises InvalidArgument."""
        if not target:
            raise InvalidArgument("target_path: is missing")
        if not target.startswith("/") or "\0" in target or ".." in target.split("/"):
            raise InvalidArgument("target_path: must be an absolute path without '..'")
        if len(os.fsencode(target)) > MAX_PATH:
            raise InvalidArgument(f"target_path: has more than {MAX_PATH} bytes")
        clean = "/" + os.path.normpath(target).lstrip("/")
        for given, real in self._roots:
            for root in (given, real):
                below = clean.removeprefix(root.rstrip("/") + "/")
                if below != clean and below:
                    return Place(os.path.join(real, below), real, below)
        wanted = os.path.dirname(clean)
        raise InvalidArgument(
            f"target_path: {clean} lies outside the target roots;"
            f" start `headrace-csi serve` with --target-root {wanted}"
        )


def check_parent(place: Place) -> None:
    """Raise InvalidArgument where the target's parent directory is not fit, OSError."""
    with _opened_parent(place):
        pass


@contextmanager
def opened_target(place: Place, *, create: bool) -> Iterator[tuple[int, bool]]:
    """An O_PATH descriptor of the target, and whether its directory was made just now (mode 0750).

    Raises InvalidArgument where the path is not fit, OSError.
    """
    with _opened_parent(place) as parent:
        name = os.path.basename(place.below)
        try:
            made = create and _made(parent, name)
            target = kernel.open_directory(name, parent, beneath=True)
        except OSError as error:
            raise _unfit(place, error) from error
        try:
            yield target, made
        finally:
            os.close(target)


def remove_target(place: Place) -> None:
    """Remove the target's directory where it is empty and nothing is mounted there; fine where it is gone."""
    try:
        with _opened_parent(place) as parent:
            os.rmdir(os.path.basename(place.below), dir_fd=parent)
    except InvalidArgument:  # the parent is gone
        return
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY, errno.ENOTDIR):
            raise


@contextmanager
def _opened_parent(place: Place) -> Iterator[int]:
    if inside_ours(place.path, mount_entries()) is not None:
        raise InvalidArgument(f"target_path: {place.path} lies inside a Headrace mount")
    try:
        parent = _open_parent(place)
    except OSError as error:
        raise _unfit(place, error) from error
    try:
        yield parent
    finally:
        os.close(parent)


def _open_parent(place: Place) -> int:
    root = kernel.open_directory(place.root)
    try:
        return kernel.open_directory(os.path.dirname(place.below) or ".", root, beneath=True)
    finally:
        os.close(root)


def _made(parent: int, name: str) -> bool:
    try:
        os.mkdir(name, 0o750, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def _unfit(place: Place, error: OSError) -> Exception:
    fault = _FAULTS.get(error.errno or 0)
    return InvalidArgument(f"target_path: {place.path}: {fault}") if fault else error
