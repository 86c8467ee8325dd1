"""What the admin API says, typed: the agent renders these, its client reads them.

Unknown fields are passed over by readers, so an agent may be newer than its client.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from agent.content import MAX_PATTERNS, pattern_fault, sub_path_fault
from agent.logs import redact


def _one_line(message: str) -> str:
    return " ".join(redact(message).splitlines())


class View(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)  # built at first use: programs start sooner


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, defer_build=True
    )


class StoreView(View):
    """One store directory; sizes in bytes."""

    directory: str
    bytes: int
    chunks: int
    objects: int
    capacity: int
    reserve: int
    state: str = "ok"  # or `full`, `failed`: it takes no fills then, and `reason` says why
    reason: Annotated[str, AfterValidator(_one_line)] = ""


class StatusView(View):
    """The agent as a whole."""

    name: str
    build: str
    uptime_seconds: float
    store: list[StoreView]
    mounts: int
    ready: bool
    reasons: list[str] = Field(default_factory=list)
    degraded: list[str] = Field(default_factory=list)  # what is wrong although the agent serves


class UnmappedView(View):
    """A key that no file name can stand for."""

    key: str
    reason: str


class DatasetView(View):
    """A dataset whose listing is in the store; sizes in bytes."""

    uri: str
    revision: str
    files: int
    bytes: int
    bytes_present: int
    mounted: bool
    unmapped: list[UnmappedView] = Field(default_factory=list)


class ObjectView(View):
    """One file of a dataset and what of its object is present; sizes in bytes."""

    path: str
    uri: str
    version: str
    size: int
    bytes_present: int


class MountView(View):
    """A mount that the agent serves; what it served since this agent took it up.

    `origin_bytes` are those that readers had to wait for, `store_bytes` those that were here already; nobody
    sees what the kernel's page cache, passthrough opens and promoted trees give to readers. `mode` is `fuse`,
    `passthrough` where the kernel opens some of its files without the agent, or `promoted`:
    a bind mount of the dataset's files, with no FUSE.
    """

    mount: str
    uri: str
    revision: str
    mode: str = "fuse"
    sub_path: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prefetch: str = "file"
    files: int | None = None  # shown by this mount, and their bytes; None from an agent that does not tell
    bytes: int | None = None
    origin_bytes: int = 0
    store_bytes: int = 0
    opens_cached: int = 0
    opens_passthrough: int = 0
    last_error: Annotated[str, AfterValidator(_one_line)] = ""


def _sub_path(path: str) -> str:
    if fault := sub_path_fault(path):
        raise ValueError(f"must be a path below the dataset's root, and has {fault}")
    return path


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """In one order, each once: the same choice is the same mount."""
    for pattern in patterns:
        if fault := pattern_fault(pattern):
            raise ValueError(f"has {fault}")
    return tuple(sorted(set(patterns)))


Patterns = Annotated[tuple[str, ...], Field(max_length=MAX_PATTERNS), AfterValidator(_patterns)]


class MountRequest(Body):
    """The body of POST /v1/mounts. Its `repr` and its errors show no secret."""

    uri: str = Field(min_length=1, max_length=4096)
    revision: str = Field(default="", pattern=r"^(?:[0-9a-f]{32})?$")
    sub_path: Annotated[str, Field(max_length=4096), AfterValidator(_sub_path)] = ""
    include: Patterns = ()
    exclude: Patterns = ()
    prefetch: Literal["none", "file", "all"] = "file"
    on_origin_down: Literal["fail", "last"] = "fail"
    secrets: dict[str, SecretStr] = Field(default_factory=dict, max_length=8)

    def body(self) -> dict[str, object]:
        """What goes over the socket, secrets included."""
        plain = {name: secret.get_secret_value() for name, secret in self.secrets.items()}
        return {**self.model_dump(exclude={"secrets"}, exclude_defaults=True), "secrets": plain}


class PinRequest(Body):
    """The body of POST /v1/pins: a dataset's revision, until when (seconds since 1970), and why."""

    revision: str = Field(pattern=r"^[0-9a-f]{32}$")
    until: float = Field(allow_inf_nan=False)
    reason: str = Field(default="", max_length=1000)


class PinView(View):
    """A pin that is in force; `until` is in seconds since 1970."""

    id: str
    uri: str
    revision: str
    until: float
    reason: str
    objects: int


class WarmRequest(Body):
    """The body of POST /v1/warmings: a dataset's URI, which is listed with the agent's own credentials."""

    uri: str = Field(min_length=1, max_length=4096)


class WarmingView(View):
    """A dataset that is brought by the swarm: `running`, `done`, or `failed` for the reason in `message`."""

    id: str
    uri: str
    revision: str
    state: str
    bytes: int
    bytes_present: int
    message: Annotated[str, AfterValidator(_one_line)] = ""


class ErrorView(View):
    """Every answer that is not 2xx."""

    error: str
    message: str
