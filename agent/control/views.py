"""What the admin API says, typed: the agent renders these, its client reads them.

Unknown fields are passed over by readers, so an agent may be newer than its client.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class StoreView(View):
    """One store directory; sizes in bytes."""

    directory: str
    bytes: int
    chunks: int
    objects: int
    capacity: int
    reserve: int


class StatusView(View):
    """The agent as a whole."""

    name: str
    build: str
    uptime_seconds: float
    store: list[StoreView]
    mounts: int
    ready: bool
    reasons: list[str] = Field(default_factory=list)


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
    """A mount that the agent serves.

    `mode` is `fuse`, `passthrough` where the kernel opens some of its files without the agent, or `promoted`:
    a bind mount of the dataset's files, with no FUSE.
    """

    mount: str
    uri: str
    revision: str
    mode: str = "fuse"


class MountRequest(BaseModel):
    """The body of POST /v1/mounts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    uri: str = Field(min_length=1, max_length=4096)


class ErrorView(View):
    """Every answer that is not 2xx."""

    error: str
    message: str
