"""Run a command as an ordinary user without any capability, from a place that only root may enter.

    unshare --mount --propagation private python -m deploy.local.unprivileged USER STAGE DIR... -- COMMAND...

The checkout and its virtual environment may lie below /root or in a directory of `mktemp -d`. Nobody's
modes are changed for that: in the mount namespace that this process has for itself, a directory that is
closed to others is covered by an empty one, in which the DIRs (and nothing else) appear read-only at their
own paths. Headrace mounts are detached here first, so that the namespace keeps none of them alive, and the
command cannot come across one.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from csi.holder.kernel import MNT_DETACH, UMOUNT_NOFOLLOW, unmount
from csi.holder.mountinfo import mount_entries


def closed_above(path: Path) -> Path | None:
    """The outermost directory above `path` that others than its owner and group cannot enter."""
    for above in reversed(path.parents):
        if not above.stat().st_mode & stat.S_IXOTH:
            return above
    return None


def open_up(paths: Iterable[Path], stage: Path) -> None:
    """Make directories reachable for everybody in this mount namespace; `stage` is empty and root's.

    All are staged before the first directory is covered, for they disappear with it.
    """
    os.umask(0o022)
    covers = {path: closed for path in paths if (closed := closed_above(path)) is not None}
    staged = {path: stage / str(number) for number, path in enumerate(covers)}
    for path, place in staged.items():
        place.mkdir(exist_ok=True)
        _mount("--bind", path, place)
        _mount("-o", "remount,bind,ro", place)
    for closed in set(covers.values()):
        _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", closed)
    for path, place in staged.items():
        path.mkdir(parents=True, exist_ok=True)
        _mount("--move", place, path)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, timeout=10, cwd="/")


def _forget_headrace_mounts() -> None:
    for entry in reversed(mount_entries()):
        if entry.ours:
            try:
                unmount(entry.point, MNT_DETACH | UMOUNT_NOFOLLOW)
            except OSError as error:
                # Whoever removes a mount point elsewhere takes what is mounted on it from every namespace.
                if error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise


def _become(user: str, command: Sequence[str]) -> None:
    identity = pwd.getpwnam(user)
    setpriv = [
        "setpriv",
        f"--reuid={identity.pw_uid}",
        f"--regid={identity.pw_gid}",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        "--",
    ]
    os.execvp(setpriv[0], [*setpriv, *command])


def main() -> None:
    """Arrange the namespace and become the command."""
    end = sys.argv.index("--")
    user, stage, *paths = sys.argv[1:end]
    directory = Path.cwd()
    _forget_headrace_mounts()
    open_up(map(Path, paths), Path(stage))
    os.chdir(directory)  # the one at the same path may be another now
    _become(user, sys.argv[end + 1 :])


if __name__ == "__main__":
    main()
