"""What the running agent answers for: the `Controlled` behind its admin API and its readiness."""

from __future__ import annotations

from collections.abc import Sequence

from agent.cache.directory import State
from agent.cache.pins import Pin, Pins
from agent.cache.store import Store
from agent.clock import Clock
from agent.config import Config
from agent.content import Dataset, View
from agent.control.views import (
    DatasetView,
    MountRequest,
    MountView,
    ObjectView,
    PinRequest,
    PinView,
    StatusView,
    StoreView,
    UnmappedView,
    WarmingView,
    WarmRequest,
)
from agent.errors import BadRequest, HolderError, ObjectMissing
from agent.identity import credentials_of
from agent.metrics import Metrics, build_version
from agent.mount.holder import Holder
from agent.mount.mounted import Mounted
from agent.mount.mounts import Mounts
from agent.mount.order import MountOrder, MountRecord
from agent.mount.promotion import Promoted
from agent.origin.http_query import named
from agent.peers.warmings import SwarmWarming, SwarmWarmings


class Node:
    """The running agent (a `Controlled` of agent/control/api.py)."""

    def __init__(self, config: Config, clock: Clock, store: Store, metrics: Metrics, pins: Pins) -> None:
        self._config = config
        self._clock = clock
        self._started = clock.monotonic()
        self._store = store
        self._metrics = metrics
        self._pins = pins
        self._warmings: SwarmWarmings | None = None
        self._mounts: Mounts | None = None
        self._holder: Holder | None = None

    async def serve(self, mounts: Mounts, holder: Holder, warmings: SwarmWarmings | None) -> None:
        """From now on mounts are served, and datasets warmed where there is a swarm."""
        self._mounts = mounts
        self._holder = holder
        self._warmings = warmings

    def unready(self) -> list[str]:
        """Why the agent cannot serve; nothing where it can."""
        if self._mounts is None or self._holder is None:
            return ["the mounts are not claimed from the holder yet"]
        return [] if self._holder.connected else ["the holder is away: what is mounted is served, no more"]

    def degraded(self) -> list[str]:
        """What is wrong although the agent serves."""
        return self._store.conditions.faults()

    async def status(self) -> StatusView:
        return StatusView(
            name=self._config.node.name,
            build=build_version(),
            uptime_seconds=self._clock.monotonic() - self._started,
            store=[
                StoreView(
                    directory=str(directory.path),
                    bytes=directory.used,
                    chunks=directory.chunks,
                    objects=directory.objects,
                    capacity=directory.capacity,
                    reserve=directory.reserve,
                    state=directory.state.value,
                    reason=directory.reason,
                )
                for directory in self._store.directories
            ]
            + [
                StoreView(
                    directory=str(path),
                    bytes=0,
                    chunks=0,
                    objects=0,
                    capacity=0,
                    reserve=0,
                    state=State.FAILED.value,
                    reason=reason,
                )
                for path, reason in self._store.conditions.absent.items()
            ],
            mounts=len(self.mounts()),
            ready=not self.unready(),
            reasons=self.unready(),
            degraded=self.degraded(),
        )

    async def datasets(self) -> list[DatasetView]:
        mounted = {(mount.uri, mount.revision) for mount in self.mounts()}
        views = []
        for uri, revision in await self._store.datasets():
            dataset = await self._store.load_dataset(uri, revision)
            if dataset is not None:
                views.append(await self._dataset_view(dataset, (uri, revision) in mounted))
        return views

    async def objects(self, revision: str, after: str, limit: int) -> list[ObjectView]:
        dataset = await self._find(revision)
        entries = [entry for entry in dataset.entries if entry.path > after][:limit]
        present = await self._store.present_bytes([entry.ref.key for entry in entries])
        return [
            ObjectView(
                path=entry.path,
                uri=entry.ref.uri,
                version=entry.ref.version,
                size=entry.ref.size,
                bytes_present=present.get(entry.ref.key, 0),
            )
            for entry in entries
        ]

    async def mount(self, request: MountRequest) -> MountView:
        mounts = self._claimed()
        return _view(await mounts.mount(_order(request)), mounts)

    async def unmount(self, mount: str) -> None:
        await self._claimed().unmount(mount)

    def mounts(self) -> Sequence[MountView]:
        mounts = self._mounts
        listing = [] if mounts is None else mounts.listing()
        return [_view(one, mounts) for one in listing if mounts is not None]

    async def pin(self, request: PinRequest) -> PinView:
        dataset = await self._find(request.revision)
        keys = [entry.ref.key for entry in dataset.entries]
        return _pin_view(
            await self._pins.add(dataset.uri, request.revision, keys, request.until, request.reason)
        )

    async def unpin(self, pin: str) -> None:
        await self._pins.remove(pin)

    def pins(self) -> Sequence[PinView]:
        return [_pin_view(pin) for pin in self._pins.active()]

    async def warm(self, request: WarmRequest) -> WarmingView:
        if self._warmings is None:
            raise BadRequest("warming needs the swarm: [peers] with swarm = true, and a ready agent")
        return await self._warming_view(await self._warmings.begin(request.uri))

    async def warmings(self) -> Sequence[WarmingView]:
        warmings = () if self._warmings is None else self._warmings.all()
        return [await self._warming_view(one) for one in warmings]

    async def warmed(self, warming: str) -> WarmingView:
        if self._warmings is None:
            raise ObjectMissing(f"there is no warming {warming!r}")
        return await self._warming_view(await self._warmings.ended(warming))

    def counters(self) -> dict[str, float]:
        return self._metrics.counters()

    def _claimed(self) -> Mounts:
        if self._mounts is None:
            raise HolderError("the mounts are not claimed from the holder yet; try again")
        return self._mounts

    async def _find(self, revision: str) -> Dataset:
        for uri, known in await self._store.datasets():
            if known == revision and (dataset := await self._store.load_dataset(uri, revision)) is not None:
                return dataset
        raise ObjectMissing(f"no dataset here has the revision {revision!r}")

    async def _warming_view(self, warming: SwarmWarming) -> WarmingView:
        dataset = warming.dataset
        return WarmingView(
            id=warming.id,
            uri=dataset.uri,
            revision=dataset.revision,
            state=warming.state,
            bytes=dataset.size,
            bytes_present=await self._bytes_present(dataset),
            message=warming.error,
        )

    async def _dataset_view(self, dataset: Dataset, mounted: bool) -> DatasetView:
        return DatasetView(
            uri=dataset.uri,
            revision=dataset.revision,
            files=len(dataset.entries),
            bytes=dataset.size,
            bytes_present=await self._bytes_present(dataset),
            mounted=mounted,
            unmapped=[UnmappedView(key=item.key, reason=item.reason) for item in dataset.unmapped],
        )

    async def _bytes_present(self, dataset: Dataset) -> int:
        present = await self._store.present_bytes([entry.ref.key for entry in dataset.entries])
        return sum(present.values())


def _order(request: MountRequest) -> MountOrder:
    secrets = {name: secret.get_secret_value() for name, secret in request.secrets.items()}
    uri, query = named(request.uri)
    return MountOrder(
        uri=uri,
        revision=request.revision,
        view=View(request.sub_path, request.include, request.exclude),
        prefetch=request.prefetch,
        on_origin_down=request.on_origin_down,
        credentials=credentials_of(uri, secrets, query),
    )


def _pin_view(pin: Pin) -> PinView:
    return PinView(
        id=pin.id,
        uri=pin.uri,
        revision=pin.revision,
        until=pin.until,
        reason=pin.reason,
        objects=len(pin.keys),
    )


def _view(mounted: Mounted | Promoted, mounts: Mounts) -> MountView:
    if isinstance(mounted, Promoted):
        return _promoted_view(mounted)
    return _mount_view(mounted, mounts.record(mounted.name))


def _promoted_view(promoted: Promoted) -> MountView:
    shown = promoted.shown
    return MountView(
        mount=promoted.name,
        uri=shown.uri,
        revision=shown.revision,
        mode="promoted",
        sub_path=shown.view.sub_path,
        include=shown.view.include,
        exclude=shown.view.exclude,
        files=promoted.files,
        bytes=promoted.bytes,
    )


def _mount_view(mounted: Mounted, record: MountRecord) -> MountView:
    shown, served = record.shown, mounted.tally.served()
    return MountView(
        mount=mounted.name,
        uri=shown.uri,
        revision=shown.revision,
        mode="passthrough" if served.opens_passthrough else "fuse",
        sub_path=shown.view.sub_path,
        include=shown.view.include,
        exclude=shown.view.exclude,
        prefetch=record.prefetch,
        files=len(mounted.dataset.entries),
        bytes=mounted.dataset.size,
        origin_bytes=served.origin_bytes,
        store_bytes=served.store_bytes,
        opens_cached=served.opens_cached,
        opens_passthrough=served.opens_passthrough,
        last_error=served.last_error,
    )
