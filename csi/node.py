"""The node service: puts a dataset that the agent serves on a target, where the holder binds it.

No state is kept here but who is at which target right now. Two calls for one target wait for each other; a
mount that the agent gives up between its answer and the bind is asked for once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from agent.control.client import AdminClient, AdminError
from csi import services
from csi.binder import Binder
from csi.failures import InvalidArgument, TargetTaken
from csi.holder.protocol import Refused
from csi.proto import csi_pb2
from csi.publication import Publication, publication
from csi.roots import Place, TargetRoots, check_parent

_log = logging.getLogger("headrace.csi")
_T = TypeVar("_T")

MOUNT_DEADLINE = 300.0  # seconds: the agent lists the origin, with the mount's patience


class NodeService:
    """csi.v1.Node."""

    def __init__(self, node_id: str, roots: TargetRoots, binder: Binder, admin_socket: str) -> None:
        self._node_id = node_id
        self._roots = roots
        self._binder = binder
        self._admin_socket = admin_socket
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.aio server is given."""
        return [
            services.NODE_GET_INFO.handler(self.info),
            services.NODE_GET_CAPABILITIES.handler(self.capabilities),
            services.NODE_PUBLISH_VOLUME.handler(self.publish),
            services.NODE_UNPUBLISH_VOLUME.handler(self.unpublish),
        ]

    async def info(self, _request: csi_pb2.NodeGetInfoRequest) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id=self._node_id)

    async def capabilities(
        self, _request: csi_pb2.NodeGetCapabilitiesRequest
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        return csi_pb2.NodeGetCapabilitiesResponse()

    async def publish(self, request: csi_pb2.NodePublishVolumeRequest) -> csi_pb2.NodePublishVolumeResponse:
        """Mount the dataset on the target; nothing to do where this volume is there already."""
        wanted = publication(request)
        place = self._roots.place(wanted.target)
        async with self._turn(place):
            await _to_the_end(lambda: check_parent(place))
            if not await self._is_published(place, wanted):
                await self._mount_and_bind(place, wanted)
        return csi_pb2.NodePublishVolumeResponse()

    async def unpublish(
        self, request: csi_pb2.NodeUnpublishVolumeRequest
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take what is on the target off, whatever state it is in; the agent hears of mounts nobody shows.

        An agent that is down does not hold up the end of a pod: it finds unbound mounts when it is back.
        """
        if not request.volume_id:
            raise InvalidArgument("volume_id: is missing")
        place = self._roots.place(request.target_path)
        async with self._turn(place):
            unbound = await _to_the_end(lambda: self._binder.unbind(place))
            if unbound is not None and unbound.remaining == 0:
                await self._give_up(unbound.mount)
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def _is_published(self, place: Place, wanted: Publication) -> bool:
        there = await _to_the_end(lambda: self._binder.published(place))
        if there is None:
            return False
        if (there.volume, there.uri) != (wanted.volume, wanted.uri):
            raise TargetTaken(f"target_path: volume {there.volume} is published on {place.path}")
        return True

    async def _mount_and_bind(self, place: Place, wanted: Publication) -> None:
        mount = await self._mount(wanted.uri)
        try:
            try:
                await self._bind(place, mount, wanted)
            except Refused as error:
                if error.code != "no-mount":
                    raise
                mount = await self._mount(wanted.uri)
                await self._bind(place, mount, wanted)
        except Exception:
            await self._give_up(mount)
            raise

    async def _mount(self, uri: str) -> str:
        async with AdminClient(self._admin_socket, MOUNT_DEADLINE) as agent:
            return (await agent.mount(uri)).mount

    async def _bind(self, place: Place, mount: str, wanted: Publication) -> None:
        await _to_the_end(lambda: self._binder.bind(place, mount, wanted.volume, wanted.uri))
        _log.info("volume %s published on %s", wanted.volume, place.path)

    async def _give_up(self, mount: str) -> None:
        """The agent decides: it keeps a mount that is bound elsewhere."""
        try:
            async with AdminClient(self._admin_socket) as agent:
                await agent.unmount(mount)
        except (AdminError, OSError) as error:
            _log.warning("the agent was not told that mount %s is not needed any more: %s", mount, error)

    @asynccontextmanager
    async def _turn(self, place: Place) -> AsyncIterator[None]:
        lock, users = self._turns.get(place.path, (asyncio.Lock(), 0))
        self._turns[place.path] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(place.path)
            if users > 1:
                self._turns[place.path] = (lock, users - 1)


async def _to_the_end(work: Callable[[], _T]) -> _T:
    """Run blocking work in a thread, to its end even where the caller's RPC is cancelled meanwhile.

    A target's turn must not pass on while a thread still binds there.
    """
    task: Awaitable[_T] = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([asyncio.ensure_future(task)])
        raise
