"""Proof of membership: one HMAC-SHA256 token a request, made with the cluster's secret.

    Authorization: Headrace 1.<sender>.<issued>.<nonce>.<mac>[.<mac>...]      (RFC 9110, 11.6.2)

`sender` is the sending agent's name and `mac` an HMAC-SHA256 (RFC 2104), one with each secret that is in
use (more than one while a secret is replaced), all in base64url without padding,
`issued` whole seconds since 1970, `nonce` 24 hex digits. The MAC covers all of these, and what the receiver
knows without being told: its own address (so that a token for one agent is of no use at another), the method,
the request target, and the digest of the body. A token is good for `LIFETIME` seconds on either side of the
receiver's time. Within it, who reads the wire could repeat the very same request to the same agent; all
requests between peers can be repeated without harm, and their answers went over the same wire.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets as randomness
from dataclasses import dataclass

from agent.clock import Clock
from agent.errors import HeadraceError
from agent.peers.secrets import Secrets

SCHEME = "Headrace"
VERSION = "1"
LIFETIME = 60  # seconds, before and after: the clocks of a cluster differ by less
LONGEST = 1024  # characters of a token
LABEL = b"headrace peer token"  # what else is made of the same secret says something else here
_FORM = re.compile(
    r"1\.(?P<sender>[A-Za-z0-9_-]{1,400})\.(?P<issued>[0-9]{1,12})\.(?P<nonce>[0-9a-f]{24})\.(?P<macs>[A-Za-z0-9_-]{43}(\.[A-Za-z0-9_-]{43}){0,3})",
    re.ASCII,
)


class TokenRefused(HeadraceError):
    """A request did not prove membership; the text says why, for the receiver's log only."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The request that a token is good for: method, request target as it is sent, and SHA-256 of the body."""

    method: str
    target: str
    body: str = ""

    @classmethod
    def of(cls, method: str, target: str, body: bytes = b"") -> Bound:
        """A request with this body."""
        return cls(method, target, body_digest(body) if body else "")


def body_digest(body: bytes) -> str:
    """64 hex digits of SHA-256, as `Bound` and the header of a request with a body have them."""
    return hashlib.sha256(body).hexdigest()


class Tokens:
    """Makes and checks the tokens of one agent."""

    def __init__(self, secrets: Secrets, clock: Clock, name: str) -> None:
        """`name` is what this agent is called as a sender."""
        self._secrets = secrets
        self._clock = clock
        self._sender = _encoded(name.encode("utf-8", "surrogateescape"))

    def issue(self, audience: str, request: Bound) -> str:
        """The value of the Authorization header for a request to the agent at the address `audience`."""
        issued = str(int(self._clock.time()))
        nonce = randomness.token_hex(12)
        parts = (self._sender, issued, nonce)
        macs = (_encoded(_mac(secret, parts, audience, request)) for secret in self._secrets.accepted())
        return f"{SCHEME} {'.'.join((VERSION, *parts, *macs))}"

    def check(self, value: str | None, audience: str, request: Bound) -> str:
        """The sender's name, where the token in an Authorization header is good. Raises TokenRefused."""
        if value is None:
            raise TokenRefused("without a token")
        scheme, _, token = value.partition(" ")
        found = _FORM.fullmatch(token) if scheme == SCHEME and len(token) <= LONGEST else None
        if found is None:
            raise TokenRefused("with what is no token")
        parts = (found["sender"], found["issued"], found["nonce"])
        given = [_decoded(mac) for mac in found["macs"].split(".")]
        # Every secret is tried, so that the time says nothing of which one was near.
        good = [
            hmac.compare_digest(expected, mac)
            for expected in [_mac(one, parts, audience, request) for one in self._secrets.accepted()]
            for mac in given
        ]
        if not any(good):
            raise TokenRefused("with a token that is forged, or was made for another agent or request")
        self._check_age(int(found["issued"]))
        return _decoded(found["sender"]).decode("utf-8", "surrogateescape")

    def _check_age(self, issued: int) -> None:
        age = self._clock.time() - issued
        if age > LIFETIME:
            raise TokenRefused(f"with a token that is {age:.0f} s old; is a clock wrong?")
        if age < -LIFETIME:
            raise TokenRefused(f"with a token from {-age:.0f} s ahead; is a clock wrong?")


def _mac(secret: bytes, parts: tuple[str, str, str], audience: str, request: Bound) -> bytes:
    fields = (VERSION, *parts, audience, request.method, request.target, request.body)
    message = bytearray(LABEL)
    for text in fields:
        raw = text.encode("utf-8", "surrogateescape")
        message += len(raw).to_bytes(8, "little") + raw
    return hmac.digest(secret, message, "sha256")


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    """Any text of the alphabet decodes to something: what is no right encoding has no right MAC."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""
