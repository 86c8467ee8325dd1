"""The node service: puts a dataset that the agent serves on a target, where the holder binds it.

No state is kept here but who is at which target right now. Two calls for one target wait for each other; a
mount that the agent gives up between its answer and the bind is asked for once more.
"""

from __future__ import annotations

import logging

import grpc

from agent.control.client import AdminClient, AdminError
from agent.control.views import MountView
from csi import services
from csi.answering import handler
from csi.binder import Binder
from csi.failures import TargetTaken
from csi.holder.protocol import Message, Refused
from csi.proto import csi_pb2
from csi.publication import Publication, publication, volume_id
from csi.roots import Place, TargetRoots, check_parent
from csi.statistics import Statistics
from csi.turns import Turns, to_the_end

_log = logging.getLogger("headrace.csi")

MOUNT_DEADLINE = 300.0  # seconds: a long listing; an origin that does not answer is given up after 8
GIVE_UP_DEADLINE = 10.0  # seconds: an agent that hangs must not hold up the end of a pod
_Rpc = csi_pb2.NodeServiceCapability.RPC
CAPABILITIES = (_Rpc.GET_VOLUME_STATS, _Rpc.VOLUME_CONDITION)


class NodeService:
    """csi.v1.Node."""

    def __init__(self, node_id: str, roots: TargetRoots, binder: Binder, admin_socket: str) -> None:
        self._node_id = node_id
        self._roots = roots
        self._binder = binder
        self._admin_socket = admin_socket
        self._statistics = Statistics(roots, binder, admin_socket)
        self._turns = Turns()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.aio server is given."""
        return [
            handler(services.NODE_GET_INFO, self.info),
            handler(services.NODE_GET_CAPABILITIES, self.capabilities),
            handler(services.NODE_PUBLISH_VOLUME, self.publish),
            handler(services.NODE_UNPUBLISH_VOLUME, self.unpublish),
            handler(services.NODE_GET_VOLUME_STATS, self._statistics.answer),
        ]

    async def info(self, _request: csi_pb2.NodeGetInfoRequest) -> csi_pb2.NodeGetInfoResponse:
        return csi_pb2.NodeGetInfoResponse(node_id=self._node_id)

    async def capabilities(
        self, _request: csi_pb2.NodeGetCapabilitiesRequest
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """No staging, no expansion; volumes are read-only, so nothing of writers either."""
        kinds = [csi_pb2.NodeServiceCapability(rpc=_Rpc(type=kind)) for kind in CAPABILITIES]
        return csi_pb2.NodeGetCapabilitiesResponse(capabilities=kinds)

    async def publish(self, request: csi_pb2.NodePublishVolumeRequest) -> csi_pb2.NodePublishVolumeResponse:
        """Mount the dataset on the target; nothing to do where this volume is there already."""
        wanted = publication(request)
        place = self._roots.place(wanted.target)
        async with self._turns.at(place.path):
            await to_the_end(lambda: check_parent(place))
            if not await self._is_published(place, wanted):
                await self._mount_and_bind(place, wanted)
        return csi_pb2.NodePublishVolumeResponse()

    async def unpublish(
        self, request: csi_pb2.NodeUnpublishVolumeRequest
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take what is on the target off, whatever state it is in; the agent hears of mounts nobody shows.

        An agent that is down does not hold up the end of a pod: it finds unbound mounts when it is back.
        """
        volume_id(request.volume_id)
        place = self._roots.place(request.target_path)
        async with self._turns.at(place.path):
            unbound = await to_the_end(lambda: self._binder.unbind(place))
            if unbound is not None and unbound.remaining == 0:
                await self._give_up(unbound.mount)
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def _is_published(self, place: Place, wanted: Publication) -> bool:
        there = await to_the_end(lambda: self._binder.published(place))
        if there is None:
            return False
        if there.volume != wanted.volume or not there.shows(wanted):
            raise TargetTaken(
                f"target_path: volume {there.volume} with {there.uri} is published on {place.path};"
                " unpublish it first"
            )
        return True

    async def _mount_and_bind(self, place: Place, wanted: Publication) -> None:
        mount = await self._mount(wanted)
        try:
            try:
                await self._bind(place, mount, wanted)
            except Refused as error:
                if error.code != "no-mount":
                    raise
                mount = await self._mount(wanted)
                await self._bind(place, mount, wanted)
        except BaseException:  # a cancelled call too leaves no mount that nobody shows
            await self._give_up(mount.mount)
            raise

    async def _mount(self, wanted: Publication) -> MountView:
        async with AdminClient(self._admin_socket, MOUNT_DEADLINE) as agent:
            return await agent.mount(wanted.request)

    async def _bind(self, place: Place, mount: MountView, wanted: Publication) -> None:
        note: Message = {
            "volume": wanted.volume,
            "uri": mount.uri,  # its name, without the credentials of a presigned one
            "wanted": wanted.wanted,
            "revision": mount.revision,
            "files": mount.files,
            "bytes": mount.bytes,
        }
        await to_the_end(lambda: self._binder.bind(place, mount.mount, note))
        _log.info("volume %s published on %s", wanted.volume, place.path)

    async def _give_up(self, mount: str) -> None:
        """The agent decides: it keeps a mount that is bound elsewhere."""
        try:
            async with AdminClient(self._admin_socket, GIVE_UP_DEADLINE) as agent:
                await agent.unmount(mount)
        except (AdminError, OSError) as error:
            _log.warning("the agent was not told that mount %s is not needed any more: %s", mount, error)
