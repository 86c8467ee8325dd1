"""What a mount is asked to be, what it is known by, and the record of it that outlives the agent.

Two orders that show the same revision, in the same view, to the same identity share one mount. A mount record
is the agent's own; the holder keeps it in memory and gives it back to a restarted agent, with the credentials
in it. It is printed nowhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from agent.content import WHOLE, View
from agent.errors import HolderError
from agent.identity import OWN, Credentials
from agent.mount.negotiation import InitResult
from agent.mount.wire import WireError

Prefetch = Literal["none", "file", "all"]
OnOriginDown = Literal["fail", "last"]

EAGERNESS: Final[tuple[Prefetch, ...]] = ("none", "file", "all")
MODES: Final[tuple[OnOriginDown, ...]] = ("fail", "last")


@dataclass(frozen=True, slots=True)
class MountOrder:
    """One request for a mount; `revision` "" is what the origin has now."""

    uri: str
    revision: str = ""
    view: View = WHOLE
    prefetch: Prefetch = "file"
    on_origin_down: OnOriginDown = "fail"
    credentials: Credentials = OWN


@dataclass(frozen=True, slots=True)
class Shown:
    """What names a mount: it is the same for every agent, another for each URI, revision, view, identity."""

    uri: str
    revision: str
    view: View = WHOLE
    identity: str = ""

    @property
    def name(self) -> str:
        parts = [self.uri, self.revision]
        if self.view != WHOLE or self.identity:
            view = self.view
            parts.append(json.dumps([view.sub_path, view.include, view.exclude, self.identity]))
        digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=12)
        return f"m-{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class MountRecord:
    """What the holder keeps of a mount for the next agent."""

    shown: Shown
    prefetch: Prefetch = "file"
    credentials: Credentials = OWN
    init: InitResult | None = None
    kind: str = "fuse"
    other: Mapping[str, object] = field(default_factory=dict, repr=False)  # of another release

    def to_dict(self) -> dict[str, object]:
        shown = self.shown
        return {
            **self.other,
            "uri": shown.uri,
            "revision": shown.revision,
            "view": [shown.view.sub_path, list(shown.view.include), list(shown.view.exclude)],
            "identity": shown.identity,
            "prefetch": self.prefetch,
            "credentials": [self.credentials.scheme, dict(self.credentials.values)],
            "init": None if self.init is None else self.init.to_dict(),
            "kind": self.kind,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, object]) -> MountRecord:
        """Read a record, one of an older release too. Raises HolderError, which shows nothing of it."""
        try:
            view, identity = _view(record.get("view")), str(record.get("identity", ""))
            return cls(
                Shown(str(record["uri"]), str(record["revision"]), view, identity),
                next((one for one in EAGERNESS if one == record.get("prefetch")), "file"),
                _credentials(record.get("credentials")),
                _init(record.get("init")),
                str(record.get("kind", "fuse")),
                {name: value for name, value in record.items() if name not in _FIELDS},
            )
        except (WireError, ValueError, TypeError, KeyError) as error:
            raise HolderError(f"a mount record is not readable ({type(error).__name__})") from None


_FIELDS: Final = {"uri", "revision", "view", "identity", "prefetch", "credentials", "init", "kind"}


def _view(found: object) -> View:
    if not isinstance(found, list):
        return WHOLE
    sub_path, include, exclude = found
    return View(str(sub_path), tuple(map(str, include)), tuple(map(str, exclude)))


def _credentials(found: object) -> Credentials:
    if not isinstance(found, list):
        return OWN
    scheme, values = found
    return Credentials(str(scheme), tuple(sorted((str(k), str(v)) for k, v in dict(values).items())))


def _init(found: object) -> InitResult | None:
    return InitResult.from_dict(found) if isinstance(found, dict) else None
