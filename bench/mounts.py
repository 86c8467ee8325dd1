"""Those who can mount a bucket: Headrace, and each rival that is installed, with its best settings.

Each mounts with an empty cache and takes everything away when the block ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.child import BenchError, cpu_seconds, running
from bench.site import Site
from deploy.local.layout import AgentSettings
from deploy.local.process import StackError
from deploy.local.stack import LocalStack

READY_SECONDS = 30.0
S3FS_OPTIONS = (
    "use_path_request_style",
    "parallel_count=8",
    "multipart_size=16",
    "max_stat_cache_size=100000",
    "stat_cache_expire=3600",
)
RCLONE_OPTIONS = (
    "--vfs-cache-mode=full",
    "--vfs-read-chunk-size=16M",
    "--vfs-read-chunk-streams=8",
    "--buffer-size=64M",
    "--vfs-fast-fingerprint",
    "--no-modtime",
    "--no-checksum",
    "--dir-cache-time=1h",
    "--attr-timeout=1h",
    "--max-read-ahead=1M",
    "--read-only",
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted bucket, and the processes that serve it."""

    path: Path
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """What its processes have used until now."""
        return cpu_seconds(self.pids)


class Mounter(Protocol):
    """Somebody who can mount a bucket of the site's S3 server."""

    @property
    def name(self) -> str: ...

    def installed(self) -> bool: ...

    def mounted(self, site: Site, bucket: str) -> contextlib.AbstractContextManager[Mount]:
        """The bucket, mounted with an empty cache until the block ends. Raises BenchError."""


@contextlib.contextmanager
def local_stack(site: Site, settings: AgentSettings | None = None) -> Iterator[LocalStack]:
    """Headrace over the site's S3 server, until the block ends. What fails in it is a BenchError."""
    try:
        with LocalStack(settings, s3=site.s3) as stack:
            yield stack
    except StackError as error:
        raise BenchError(f"headrace: {error}".replace("\n", "; ")) from error


class Headrace:
    """Holder, CSI service and agent as they run on one machine (deploy/local)."""

    name = "headrace"

    def installed(self) -> bool:
        return True

    @contextlib.contextmanager
    def mounted(self, site: Site, bucket: str) -> Iterator[Mount]:
        """Start everything with an empty store and mount the bucket."""
        with local_stack(site) as stack:
            pids = tuple(stack.process(name).pid for name in ("holder", "agent"))
            yield Mount(stack.mount(f"s3://{bucket}"), pids)


class S3fs:
    """s3fs-fuse with its local file cache."""

    name = "s3fs"

    def installed(self) -> bool:
        return shutil.which("s3fs") is not None

    @contextlib.contextmanager
    def mounted(self, site: Site, bucket: str) -> Iterator[Mount]:
        """Run it in the foreground; its password file is readable by root alone."""
        work = site.fresh("s3fs")
        target, cache, secret = work / "mount", work / "cache", work / "password"
        target.mkdir()
        cache.mkdir()
        secret.touch(0o600)
        secret.write_text(f"{site.s3.access_key}:{site.s3.secret_key}")
        options = (f"url={site.s3.endpoint}", f"passwd_file={secret}", f"use_cache={cache}", *S3FS_OPTIONS)
        command = ["s3fs", bucket, str(target), "-f", "-o", ",".join(options)]
        with _served(command, target, work, dict(os.environ)) as mount:
            yield mount


class Rclone:
    """rclone mount with its full VFS cache."""

    name = "rclone"

    def installed(self) -> bool:
        # It mounts by this program, which comes with another package (fuse3).
        return _rclone() is not None and shutil.which("fusermount3") is not None

    @contextlib.contextmanager
    def mounted(self, site: Site, bucket: str) -> Iterator[Mount]:
        """Run it in the foreground; the credentials are in its environment."""
        work = site.fresh("rclone")
        target = work / "mount"
        target.mkdir()
        environment = {
            **os.environ,
            "RCLONE_CONFIG": str(work / "none"),
            "RCLONE_CONFIG_BENCH_TYPE": "s3",
            "RCLONE_CONFIG_BENCH_PROVIDER": "SeaweedFS",
            "RCLONE_CONFIG_BENCH_ENDPOINT": site.s3.endpoint,
            "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": site.s3.access_key,
            "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": site.s3.secret_key,
        }
        options = (f"--cache-dir={work / 'cache'}", *RCLONE_OPTIONS)
        command = [str(_rclone()), "mount", f"bench:{bucket}", str(target), *options]
        with _served(command, target, work, environment) as mount:
            yield mount


def installed(site: Site) -> list[tuple[str, Mounter | None]]:
    """Headrace and every rival by name; None for one that is not installed."""
    rivals: list[Mounter] = [S3fs(), Rclone()] if site.rivals else []
    mounters: list[Mounter] = [Headrace(), *rivals]
    return [(mounter.name, mounter if mounter.installed() else None) for mounter in mounters]


@contextlib.contextmanager
def _served(command: Sequence[str], target: Path, work: Path, env: dict[str, str]) -> Iterator[Mount]:
    try:
        with running(command, work / "log", env) as process:
            try:
                _await_mount(target, process, work / "log")
                yield Mount(target, (process.pid,))
            finally:
                subprocess.run(
                    ["umount", "-l", str(target)], check=False, stderr=subprocess.DEVNULL, timeout=30
                )
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _await_mount(target: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _is_mounted(target):
        if process.poll() is not None:
            said = log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise BenchError(f"it ended with {process.returncode}: {said}")
        if time.monotonic() > deadline:
            raise BenchError(f"no mount after {READY_SECONDS:g} s")
        time.sleep(0.02)


def _is_mounted(target: Path) -> bool:
    """By the kernel's own list: a stat of the target would wait for whoever serves it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(target) for line in lines)


def _rclone() -> Path | None:
    beside = Path(sys.executable).parent / "rclone"
    if beside.exists():
        return beside
    found = shutil.which("rclone")
    return Path(found) if found else None
