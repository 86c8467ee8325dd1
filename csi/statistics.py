"""NodeGetVolumeStats: how large a volume is and whether it is well, from records only.

A target is never asked (stat, statfs): it could hang. A dataset never changes, so the note that serve left
with the target at publish has its size for good; the agent is asked only whether it serves the mount.
"""

from __future__ import annotations

from agent.control.client import AdminClient, AdminError
from csi.binder import Binder, Published
from csi.failures import InvalidArgument, NotPublished
from csi.proto import csi_pb2
from csi.publication import volume_id
from csi.roots import Place, TargetRoots
from csi.turns import to_the_end

AGENT_DEADLINE = 2.0  # seconds; kubelet asks every volume of the node in turn
_Unit = csi_pb2.VolumeUsage


class Statistics:
    """Answers NodeGetVolumeStats."""

    def __init__(self, roots: TargetRoots, binder: Binder, admin_socket: str) -> None:
        self._roots = roots
        self._binder = binder
        self._admin_socket = admin_socket

    async def answer(self, request: csi_pb2.NodeGetVolumeStatsRequest) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Bytes and files, and the condition. Raises NotPublished, InvalidArgument, HolderGone."""
        volume = volume_id(request.volume_id)
        if not request.volume_path:
            raise InvalidArgument("volume_path: is missing")
        place = self._place(volume, request.volume_path)
        there = await to_the_end(lambda: self._binder.published(place))
        if there is None or there.volume != volume:
            raise NotPublished(f"volume_path: volume {volume} is not published on {place.path}")
        return csi_pb2.NodeGetVolumeStatsResponse(
            usage=_usage(there), volume_condition=await self._condition(there)
        )

    def _place(self, volume: str, path: str) -> Place:
        try:
            return self._roots.place(path)
        except InvalidArgument as error:  # where no volume can be, this one is not
            raise NotPublished(f"volume_path: volume {volume} is not published there: {error}") from error

    async def _condition(self, there: Published) -> csi_pb2.VolumeCondition:
        """Abnormal where the agent does not serve the mount: what is present may still be read."""
        try:
            async with AdminClient(self._admin_socket, AGENT_DEADLINE) as agent:
                served = {mount.mount for mount in await agent.mounts()}
        except AdminError as error:
            return csi_pb2.VolumeCondition(abnormal=True, message=f"reads may wait: {error.message}")
        if there.mount not in served:
            message = "the agent does not serve this mount; its log says why; unpublish and publish it again"
            return csi_pb2.VolumeCondition(abnormal=True, message=message)
        return csi_pb2.VolumeCondition(abnormal=False, message=f"{there.uri} is served")


def _usage(there: Published) -> list[csi_pb2.VolumeUsage]:
    """Everything is in use and nothing is free: the volume is read-only."""
    pairs = ((_Unit.BYTES, there.bytes), (_Unit.INODES, there.files))
    return [
        csi_pb2.VolumeUsage(unit=unit, total=count, used=count, available=0)
        for unit, count in pairs
        if count is not None
    ]
