"""kubelet's calls, made by a test at a real `headrace-csi serve`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc

from csi import services
from csi.proto import csi_pb2

WITHIN = 30.0  # seconds for a call; a publish fails in 10
Mode = csi_pb2.VolumeCapability.AccessMode


class Refusal(Exception):
    """How a call failed."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


class Kubelet:
    """The calls, each on a connection of its own."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def publish(
        self,
        target: Path | str,
        attributes: Mapping[str, str],
        *,
        secrets: Mapping[str, str] | None = None,
        volume: str = "volume-1",
    ) -> None:
        """Raises Refusal."""
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume,
            target_path=str(target),
            volume_capability=csi_pb2.VolumeCapability(
                mount=csi_pb2.VolumeCapability.MountVolume(),
                access_mode=Mode(mode=Mode.MULTI_NODE_READER_ONLY),
            ),
            readonly=True,
            volume_context=attributes,
            secrets=secrets,
        )
        with self._channel() as channel:
            services.NODE_PUBLISH_VOLUME.call(channel, request, WITHIN)

    def unpublish(self, target: Path | str, volume: str = "volume-1") -> None:
        """Raises Refusal."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target))
        with self._channel() as channel:
            services.NODE_UNPUBLISH_VOLUME.call(channel, request, WITHIN)

    def stats(self, target: Path | str, volume: str = "volume-1") -> csi_pb2.NodeGetVolumeStatsResponse:
        """Raises Refusal."""
        request = csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target))
        with self._channel() as channel:
            return services.NODE_GET_VOLUME_STATS.call(channel, request, WITHIN)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[grpc.Channel]:
        options = [("grpc.default_authority", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            try:
                yield channel
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                raise Refusal(error.code(), error.details() or "") from None
