"""The cluster's secret: read from its file, and replaced without a moment in which agents refuse each other.

The file holds one secret a line (usually one line in all), and is read again when it has changed. It does not
change on all nodes at once, and an agent that starts anew never knew what was in it before. So for `KEEP`
seconds after a secret has gone from the file it is still accepted, and tokens are proven with it beside the
new one: whoever knows one of them understands. Replacing the one line is enough, as long as all nodes have
the new file within that time.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from agent.clock import Clock
from agent.errors import ConfigError

log = logging.getLogger(__name__)

SETTING = "peers.secret_file"
SHORTEST = 32  # bytes: 256 bits, written in base64 or hex, are more
LONGEST_FILE = 64 * 1024
LOOK_EVERY = 1.0  # seconds between two looks at the file's times
KEEP = 600.0  # seconds; a kubelet brings a changed Secret into its volume within two minutes
MOST = 4  # secrets in use at a time: a token has a proof with each

_Times = tuple[int, int, int, int]


@dataclass(slots=True)
class _Secret:
    value: bytes
    gone: float | None = None  # monotonic, when it was first missed in the file


class Secrets:
    """The secrets of the cluster, as the file has them and had them. Used on one thread."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Read the file. Raises ConfigError where it cannot be used."""
        self._path = path
        self._clock = clock
        self._times, values = _read(path)
        self._looked = clock.monotonic()
        self._secrets = [_Secret(value) for value in values]

    def __repr__(self) -> str:
        return f"Secrets({str(self._path)!r})"

    def accepted(self) -> tuple[bytes, ...]:
        """The secrets that tokens are proven and checked with, those in the file first."""
        self._refresh()
        return tuple(secret.value for secret in self._secrets[:MOST])

    def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._take_changes(now)
        self._secrets = [one for one in self._secrets if one.gone is None or now - one.gone < KEEP]

    def _take_changes(self, now: float) -> None:
        """A file that cannot be used now changes nothing: it is told, and looked at again when it changes."""
        try:
            times = _times(os.stat(self._path))
            if times == self._times:
                return
            self._times = times
            self._times, values = _read(self._path)
        except (OSError, ConfigError) as error:
            if self._times != (0, 0, 0, 0):
                log.warning("the peers' secret stays as it was: %s", error)
            if isinstance(error, OSError):
                self._times = (0, 0, 0, 0)
            return
        self._replace(values, now)
        log.info("read the peers' secret again: %d in the file", len(values))

    def _replace(self, values: list[bytes], now: float) -> None:
        known = {secret.value: secret for secret in self._secrets}
        for value, secret in known.items():
            if value in values:
                secret.gone = None
            elif secret.gone is None:
                secret.gone = now
        current = [known.get(value) or _Secret(value) for value in values]
        self._secrets = current + [secret for secret in self._secrets if secret.gone is not None]


def _times(status: os.stat_result) -> _Times:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> tuple[_Times, list[bytes]]:
    """What tells this file from the next, and its secrets. Raises ConfigError, which shows none of them."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            _check(stat.S_ISREG(status.st_mode), path, "is no regular file: name a file")
            _check(
                not status.st_mode & stat.S_IRWXO,
                path,
                f"everybody may read it: chmod {status.st_mode & 0o770:04o} it and replace the secret",
            )
            text = file.read(LONGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(
            SETTING, f"{path}: there is no such file: write the cluster's secret into it"
        ) from None
    except PermissionError:
        raise ConfigError(SETTING, f"{path}: no permission: let the agent's user read it") from None
    except OSError as error:
        raise ConfigError(SETTING, f"{path}: cannot be read: {error.strerror}") from None
    _check(len(text) <= LONGEST_FILE, path, "is larger than 64 KiB: one secret a line is meant")
    return _times(status), _secrets_in(text, path)


def _secrets_in(text: bytes, path: Path) -> list[bytes]:
    values = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    advice = f"at least {SHORTEST} random characters are needed, as `openssl rand -hex 32` prints them"
    _check(
        len(values) <= MOST, path, f"has more than {MOST} secrets: one is meant, or the old and the new one"
    )
    _check(bool(values), path, f"is empty: {advice}")
    _check(all(len(value) >= SHORTEST for value in values), path, f"has a secret that is too short: {advice}")
    return values


def _check(holds: bool, path: Path, complaint: str) -> None:
    if not holds:
        raise ConfigError(SETTING, f"{path}: {complaint}")
