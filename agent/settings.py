"""The types of the agent's settings: what is written in the file, and what is refused with which advice.

Each type carries a `Unit`, the word by which the settings table says how a value is written. The models
in `agent/config.py` are made of these.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from agent.units import parse_duration, parse_size

MIB = 1 << 20
SOCKET_PATH_MAX = 107  # sockaddr_un.sun_path less its NUL, unix(7)
CREDENTIALS_REMEDY = (
    "credentials come from the environment, the SDK's own files or a web identity, never from here"
)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


class Unit:
    """Marks a type for the settings table: what is written, and how a default is shown."""

    def __init__(self, name: str) -> None:
        self.name = name


def _in_file(info: ValidationInfo) -> bool:
    return bool(info.context)


def _size(value: object, info: ValidationInfo) -> object:
    return parse_size(value) if _in_file(info) or isinstance(value, str) else value


def _duration(value: object, info: ValidationInfo) -> object:
    return parse_duration(value) if _in_file(info) or isinstance(value, str) else value


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f"{value} is not an absolute path: begin it with /")
    if "\0" in str(value):
        raise ValueError("a path has no NUL byte")
    return value


def _socket_path(value: Path) -> Path:
    if len(str(value).encode()) > SOCKET_PATH_MAX:
        raise ValueError(f"a socket's path has at most {SOCKET_PATH_MAX} bytes: choose a shorter one")
    return value


def split_listen(value: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:9464" or "[::1]:9464". Raises ValueError with the right form."""
    host, colon, port = value.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and re.fullmatch("[0-9]{1,5}", port, re.ASCII) and int(port) < 1 << 16):
        raise ValueError('an address is a host and a port, like "127.0.0.1:9464"')
    return host_name(host), int(port)


def host_name(value: str) -> str:
    """A name or an address that can be looked up."""
    try:
        usable = b"\0" not in value.encode("idna")
    except UnicodeError:
        usable = False
    if not usable:
        raise ValueError("this can be no host's name: write one whose parts have 1 to 63 characters")
    return value


def _listen(value: str) -> str:
    split_listen(value)
    return value


def own_address(value: str) -> str:
    """An address that others can reach: an IP address, not all of them, and a port."""
    host, port = split_listen(value)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError('peers know an agent by its IP address and port, like "10.1.0.17:7411"') from None
    if address.is_unspecified or not port:
        raise ValueError('peers must know where: name one address and a port, like "10.1.0.17:7411"')
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than nothing")
    return value


def chunk_size(value: int) -> int:
    """A power of two between 1 MiB and 256 MiB."""
    if not MIB <= value <= 256 * MIB or value & (value - 1):
        raise ValueError('must be a power of two from "1MiB" to "256MiB"')
    return value


def at_least_mib(value: int) -> int:
    """A budget of bytes."""
    if value < MIB:
        raise ValueError('must be "1MiB" or more')
    return value


def directories(value: list[Path]) -> list[Path]:
    """The store's directories: one at least, none inside another."""
    if not value:
        raise ValueError('name one directory at least, like ["/var/lib/headrace"]')
    for number, path in enumerate(value):
        for other in value[:number]:
            if path.is_relative_to(other) or other.is_relative_to(path):
                raise ValueError(f"{path} and {other} lie in one another: give each disk its own directory")
    return value


def endpoint_url(value: str) -> str:
    """An HTTP endpoint, with no credential in it."""
    form = 'must be a URL like "http://127.0.0.1:8333"'
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not re.search(r"\s", value)
    except ValueError:
        raise ValueError(form) from None
    if not usable:
        raise ValueError(form)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{form}, with no user, query or fragment; {CREDENTIALS_REMEDY}")
    if not _sdk_takes(parts.hostname or ""):
        raise ValueError(
            "the S3 SDK takes a host's name of letters, digits, '-' and '.' only: give the host another name "
            "or write its IP address"
        )
    return value


def _sdk_takes(host: str) -> bool:
    """Whether botocore makes a client for this host (is_valid_endpoint_url of its utils.py)."""
    if ":" in host:
        return True  # an IPv6 address
    labels = host.removesuffix(".").split(".")
    return len(host) <= 255 and all(_LABEL.fullmatch(label) for label in labels)


def origin_prefix(value: str) -> str:
    """A prefix of URIs that names an origin."""
    if "://" not in value:
        raise ValueError('an origin is named by a prefix with "://", as in [origin."s3://"]')
    if "@" in value.partition("://")[2].partition("/")[0]:
        raise ValueError(f"leave the user out of the prefix; {CREDENTIALS_REMEDY}")
    return value


Size = Annotated[int, BeforeValidator(_size), Unit("size")]
Duration = Annotated[float, BeforeValidator(_duration), AfterValidator(_positive), Unit("duration")]
AbsolutePath = Annotated[Path, BeforeValidator(_path), AfterValidator(_absolute), Unit("path")]
SocketPath = Annotated[AbsolutePath, AfterValidator(_socket_path), Unit("path")]
Listen = Annotated[str, AfterValidator(_listen), Unit("host:port")]
Name = Annotated[str, Field(min_length=1), Unit("text")]
Flag = Annotated[bool, Unit("true or false")]
