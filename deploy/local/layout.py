"""Where a stack keeps its files, all below one directory, and the agent's configuration file."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.unprivileged import closed_above

OriginSettings = Mapping[str, str | int | bool]
LONGEST_PARENT = 60  # bytes; a socket's path has at most 107 (unix(7)), and ours add some 40


def parent_directory() -> Path:
    """Where a stack's directory is made: TMPDIR, or /tmp where others cannot enter that or it is too long."""
    chosen = Path(tempfile.gettempdir()).absolute()
    usable = closed_above(chosen / "stack") is None and len(os.fsencode(chosen)) <= LONGEST_PARENT
    return chosen if usable else Path("/tmp")


@dataclass(frozen=True)
class Layout:
    """Paths below `root`. They are short: a socket's path has at most 107 bytes (unix(7))."""

    root: Path

    @classmethod
    def create(cls, agent_user: str) -> Layout:
        """Make the directories in a new one: the store and the admin socket's are the agent's."""
        layout = cls(Path(tempfile.mkdtemp(prefix="headrace-", dir=parent_directory())))
        layout.root.chmod(0o711)
        for private in (layout.s3, layout.stage, layout.control):
            private.mkdir(mode=0o700)
        for public in (layout.run, layout.targets, layout.logs):
            public.mkdir()
            public.chmod(0o755)
        identity = pwd.getpwnam(agent_user)
        for own, mode in ((layout.store, 0o700), (layout.admin, 0o755)):
            own.mkdir()
            own.chmod(mode)
            os.chown(own, identity.pw_uid, identity.pw_gid)
        return layout

    def make_stores(self, paths: Iterable[Path]) -> None:
        """Make store directories below the store, of its owner and mode."""
        status = self.store.stat()
        for path in paths:
            path.mkdir(mode=0o700, exist_ok=True)
            os.chown(path, status.st_uid, status.st_gid)

    def remove(self) -> None:
        """Remove everything; nothing may be mounted there."""
        shutil.rmtree(self.root)

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def holder_socket(self) -> Path:
        return self.run / "holder.sock"

    @property
    def csi_socket(self) -> Path:
        return self.run / "csi.sock"

    @property
    def admin(self) -> Path:
        """The agent's own directory."""
        return self.root / "admin"

    @property
    def admin_socket(self) -> Path:
        return self.admin / "admin.sock"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def targets(self) -> Path:
        return self.root / "targets"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def config(self) -> Path:
        return self.root / "agent.toml"

    @property
    def s3(self) -> Path:
        return self.root / "s3"

    @property
    def stage(self) -> Path:
        """For unprivileged.py."""
        return self.root / "stage"

    @property
    def control(self) -> Path:
        """For mounts.abort_connections."""
        return self.root / "control"


@dataclass(frozen=True)
class AgentSettings:
    """What a stack's user may choose; sizes and durations as the file writes them."""

    patience: str = "30s"
    promote: str = "auto"
    chunk_size: str = "8MiB"
    reserve: str = "256MiB"
    capacity: str | None = None
    name: str = "local"  # of the node
    zone: str = ""
    scrub_rate: str | None = None
    directories: tuple[str, ...] = ()  # of the store, below the layout's; none: that one itself
    origins: Mapping[str, OriginSettings] | None = None  # prefix -> settings, over the stack's own of "s3://"
    extra: str = ""  # TOML tables that go to the end of the file

    def stores(self, layout: Layout) -> list[Path]:
        """The store's directories."""
        return [layout.store / name for name in self.directories] or [layout.store]

    def toml(self, layout: Layout, metrics_port: int, s3: OriginSettings) -> str:
        """The agent's configuration file; `s3` is how the stack's own S3 server is reached."""
        tables: dict[str, Mapping[str, object]] = {
            "node": {"name": self.name, "zone": self.zone},
            "store": {
                "directories": list(map(str, self.stores(layout))),
                "chunk_size": self.chunk_size,
                "reserve": self.reserve,
                **({"capacity": self.capacity} if self.capacity else {}),
                **({"scrub_rate": self.scrub_rate} if self.scrub_rate else {}),
            },
            "mount": {"patience": self.patience, "promote": self.promote},
            "holder": {"socket": str(layout.holder_socket)},
            "admin": {"socket": str(layout.admin_socket)},
            "metrics": {"listen": f"127.0.0.1:{metrics_port}"},
        }
        origins = {"s3://": s3} | dict(self.origins or {})
        origins["s3://"] = {**s3, **origins["s3://"]}
        tables |= {f"origin.{json.dumps(prefix)}": given for prefix, given in origins.items()}
        return "\n".join(_table(name, given) for name, given in tables.items()) + self.extra


def _table(name: str, settings: Mapping[str, object]) -> str:
    """JSON's texts, numbers, booleans and lists of them are TOML's too."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join([f"[{name}]", *lines, ""])
