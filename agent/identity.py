"""Credentials that came with a publish, and the identity that stands for them.

They live in memory only: here, in the origin that uses them, and in the mount record that the holder keeps
in memory. Nothing prints a value: `repr` shows none, and an identity is a digest. Messages put no colon
behind a secret's name, because what follows one is taken out of every line (agent/logs.py).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.errors import BadRequest

MAX_NAMES = 8
MAX_VALUE = 4096  # characters of one secret; a session token of AWS has about 1,000
MAX_TOTAL = 8192  # characters of all: a mount record has to take them

_S3: Final = {
    "access_key_id": "access_key_id",
    "secret_access_key": "secret_access_key",
    "session_token": "session_token",
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
}
_HTTP: Final = {name: name for name in ("authorization", "username", "password", "bearer_token")}
_NAMES: Final = {"s3": _S3, "http": _HTTP, "https": _HTTP}


@dataclass(frozen=True, slots=True)
class Credentials:
    """The secrets of one publish by their names; none stands for the agent's own credentials."""

    scheme: str = ""
    values: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def identity(self) -> str:
        """24 hex digits of BLAKE2b over scheme and secrets; "" where there are none."""
        if not self.values:
            return ""
        digest = hashlib.blake2b(digest_size=12)
        for text in (self.scheme, *(part for pair in self.values for part in pair)):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
        return digest.hexdigest()

    def get(self, name: str) -> str | None:
        return dict(self.values).get(name)

    @property
    def authorization(self) -> str:
        """The value of HTTP's Authorization header (RFC 9110, 11.6.2; RFC 7617; RFC 6750), or ""."""
        given = dict(self.values)
        if "authorization" in given:
            return given["authorization"]
        if "bearer_token" in given:
            return f"Bearer {given['bearer_token']}"
        if "username" not in given:
            return ""
        pair = f"{given['username']}:{given['password']}"
        return "Basic " + base64.b64encode(pair.encode()).decode("ascii")


OWN: Final = Credentials()


def credentials_of(uri: str, secrets: Mapping[str, str], query: str = "") -> Credentials:
    """The credentials that a publish of `uri` brings; `query` is that of a presigned URL, which it names.

    Raises BadRequest, which names names only.
    """
    scheme = uri.partition("://")[0]
    presigned = (("query", query),) if query else ()
    if not secrets:
        return Credentials("http", presigned) if query else OWN
    known = _NAMES.get(scheme)
    if known is None:
        raise BadRequest(f"no secrets are taken for {scheme}://, only for {', '.join(_NAMES)}")
    values = _named(secrets, known)
    _check_complete(values, "s3" if known is _S3 else "http")
    return Credentials("s3" if known is _S3 else "http", tuple(sorted((*values.items(), *presigned))))


def _named(secrets: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in secrets.items():
        if name not in known:
            raise BadRequest(f"unknown secret {_shown(name)}; there are {', '.join(known)}")
        if known[name] in values:
            raise BadRequest(f"the secret {name} is given twice, by two of its names")
        if not 0 < len(value) <= MAX_VALUE or not value.isascii() or not value.isprintable():
            raise BadRequest(f"the secret {name} must be 1 to {MAX_VALUE} printable ASCII characters")
        values[known[name]] = value
    if sum(map(len, values.values())) > MAX_TOTAL:
        raise BadRequest(f"the secrets have more than {MAX_TOTAL} characters in all")
    return values


def _check_complete(values: Mapping[str, str], kind: str) -> None:
    if kind == "s3":
        for name in ("access_key_id", "secret_access_key"):
            if name not in values:
                raise BadRequest(f"the secret {name} is missing")
    elif values.keys() not in ({"authorization"}, {"bearer_token"}, {"username", "password"}):
        raise BadRequest("one of the secrets authorization, bearer_token, username with password is needed")


def _shown(name: str) -> str:
    """A name for a message: what was meant as a value may have come as one, so no long or odd ones."""
    return name if len(name) <= 40 and name.replace("_", "").replace("-", "").isalnum() else "(a name)"
