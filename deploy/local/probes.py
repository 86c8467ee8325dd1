"""Whether a process answers: its socket accepts, or an HTTP request on it succeeds."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

ANSWER_WITHIN = 5.0  # seconds


class _UnixHTTPConnection(http.client.HTTPConnection):
    """HTTP on a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_WITHIN)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_WITHIN)
        self.sock.connect(str(self._path))


def accepts(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a UNIX socket of this kind accepts a connection now."""
    with socket.socket(socket.AF_UNIX, kind) as connection:
        connection.settimeout(ANSWER_WITHIN)
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True


def answers(path: Path, url: str) -> bool:
    """Whether GET `url` on a UNIX socket is answered with status 200 now."""
    connection = _UnixHTTPConnection(path)
    try:
        connection.request("GET", url)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def samples(port: int) -> dict[str, float]:
    """The metrics that an agent serves on a loopback port, by the name that the text format writes.

    The format is Prometheus's (exposition formats, version 0.0.4): one sample a line, its value last.
    Raises OSError and http.client.HTTPException.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_WITHIN)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs if not name.partition("{")[0].endswith("_created")}
