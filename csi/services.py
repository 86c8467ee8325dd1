"""CSI's and kubelet's services as tables: which methods there are, and how one is called.

Written by hand, as the generated service stubs would tie the product to one release of grpcio. How one is
answered is in csi/answering.py: `mount` and `umount`, which only call, start without the agent's client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message

from csi.proto import csi_pb2, registration_pb2

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True)
class Method(Generic[RequestT, ResponseT]):
    """One unary method."""

    service: str
    name: str
    request: type[RequestT]
    response: type[ResponseT]

    def call(self, channel: grpc.Channel, request: RequestT, deadline: float) -> ResponseT:
        """Call it, in seconds at most `deadline`. Raises grpc.RpcError."""
        unary = channel.unary_unary(
            f"/{self.service}/{self.name}",
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )
        response: ResponseT = unary(request, timeout=deadline)
        return response


_IDENTITY, _NODE = "csi.v1.Identity", "csi.v1.Node"
_REGISTRATION = "pluginregistration.Registration"

GET_PLUGIN_INFO = Method(
    _IDENTITY, "GetPluginInfo", csi_pb2.GetPluginInfoRequest, csi_pb2.GetPluginInfoResponse
)
GET_PLUGIN_CAPABILITIES = Method(
    _IDENTITY,
    "GetPluginCapabilities",
    csi_pb2.GetPluginCapabilitiesRequest,
    csi_pb2.GetPluginCapabilitiesResponse,
)
PROBE = Method(_IDENTITY, "Probe", csi_pb2.ProbeRequest, csi_pb2.ProbeResponse)
NODE_PUBLISH_VOLUME = Method(
    _NODE, "NodePublishVolume", csi_pb2.NodePublishVolumeRequest, csi_pb2.NodePublishVolumeResponse
)
NODE_UNPUBLISH_VOLUME = Method(
    _NODE, "NodeUnpublishVolume", csi_pb2.NodeUnpublishVolumeRequest, csi_pb2.NodeUnpublishVolumeResponse
)
NODE_GET_VOLUME_STATS = Method(
    _NODE, "NodeGetVolumeStats", csi_pb2.NodeGetVolumeStatsRequest, csi_pb2.NodeGetVolumeStatsResponse
)
NODE_GET_CAPABILITIES = Method(
    _NODE, "NodeGetCapabilities", csi_pb2.NodeGetCapabilitiesRequest, csi_pb2.NodeGetCapabilitiesResponse
)
NODE_GET_INFO = Method(_NODE, "NodeGetInfo", csi_pb2.NodeGetInfoRequest, csi_pb2.NodeGetInfoResponse)
GET_INFO = Method(_REGISTRATION, "GetInfo", registration_pb2.InfoRequest, registration_pb2.PluginInfo)
NOTIFY_REGISTRATION_STATUS = Method(
    _REGISTRATION,
    "NotifyRegistrationStatus",
    registration_pb2.RegistrationStatus,
    registration_pb2.RegistrationStatusResponse,
)
