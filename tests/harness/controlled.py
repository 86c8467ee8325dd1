"""An agent's `Controlled` in memory, for the admin API's tests: it answers, or fails as it is told."""

from __future__ import annotations

from collections.abc import Sequence

from agent.control.views import (
    DatasetView,
    MountRequest,
    MountView,
    ObjectView,
    PinRequest,
    PinView,
    StatusView,
    UnmappedView,
    WarmingView,
    WarmRequest,
)
from agent.errors import BadRequest, HeadraceError, ObjectMissing

DATASET = DatasetView(
    uri="s3://models/x",
    revision="ab" * 16,
    files=5,
    bytes=50,
    bytes_present=20,
    mounted=True,
    unmapped=[UnmappedView(key="a//b", reason="an empty segment ('//')")],
)
PATHS = ("a&b=c", "a/b c", "b+%", "z\udcff", "ü\n")  # sorted; the fourth is no UTF-8


class InMemoryAgent:
    """Keeps mounts in a dict; `failure` is raised by whatever is asked."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.known: dict[str, MountView] = {}
        self.pinned: dict[str, PinView] = {}
        self.begun: list[WarmingView] = []
        self.requests: list[MountRequest] = []

    async def status(self) -> StatusView:
        self._fail()
        return StatusView(
            name="n", build="1", uptime_seconds=1.5, store=[], mounts=len(self.known), ready=True
        )

    async def datasets(self) -> list[DatasetView]:
        self._fail()
        return [DATASET]

    async def objects(self, revision: str, after: str, limit: int) -> list[ObjectView]:
        if revision != DATASET.revision:
            raise ObjectMissing(f"no dataset has the revision {revision!r}")
        behind = [path for path in PATHS if path > after][:limit]
        return [ObjectView(path=p, uri="s3://x/" + p, version="v", size=10, bytes_present=4) for p in behind]

    async def mount(self, request: MountRequest) -> MountView:
        self._fail()
        self.requests.append(request)
        view = MountView(mount=f"m-{len(self.known)}", uri=request.uri, revision=DATASET.revision)
        self.known[view.mount] = view
        return view

    async def unmount(self, mount: str) -> None:
        if self.known.pop(mount, None) is None:
            raise ObjectMissing(f"no mount {mount!r}")

    def mounts(self) -> Sequence[MountView]:
        return list(self.known.values())

    async def pin(self, request: PinRequest) -> PinView:
        self._fail()
        view = PinView(
            id=f"p{len(self.pinned)}",
            uri=DATASET.uri,
            revision=request.revision,
            until=request.until,
            reason=request.reason,
            objects=5,
        )
        self.pinned[view.id] = view
        return view

    async def unpin(self, pin: str) -> None:
        if self.pinned.pop(pin, None) is None:
            raise BadRequest(f"there is no pin {pin!r}")

    def pins(self) -> Sequence[PinView]:
        return list(self.pinned.values())

    async def warm(self, request: WarmRequest) -> WarmingView:
        self._fail()
        name = f"w{len(self.begun)}"
        view = WarmingView(
            id=name, uri=request.uri, revision=DATASET.revision, state="running", bytes=50, bytes_present=20
        )
        self.begun.append(view)
        return view

    async def warmings(self) -> Sequence[WarmingView]:
        return self.begun

    async def warmed(self, warming: str) -> WarmingView:
        self._fail()
        view = next((one for one in self.begun if one.id == warming), None)
        if view is None:
            raise ObjectMissing(f"no warming {warming!r}")
        return view.model_copy(update={"state": "done", "bytes_present": view.bytes})

    def counters(self) -> dict[str, float]:
        return {"headrace_mounts": 1.0}

    def _fail(self) -> None:
        if isinstance(self.failure, (HeadraceError, ValueError)):
            raise self.failure
