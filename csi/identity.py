"""The identity service: who the driver is, and whether it can work."""

from __future__ import annotations

import asyncio

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from csi import services
from csi.answering import handler
from csi.binder import Binder
from csi.holder.client import HolderGone
from csi.holder.protocol import Refused
from csi.proto import csi_pb2

DRIVER = "csi.headrace.io"


class IdentityService:
    """csi.v1.Identity."""

    def __init__(self, binder: Binder, build: str) -> None:
        self._binder = binder
        self._build = build

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.aio server is given."""
        return [
            handler(services.GET_PLUGIN_INFO, self.info),
            handler(services.GET_PLUGIN_CAPABILITIES, self.capabilities),
            handler(services.PROBE, self.probe),
        ]

    async def info(self, _request: csi_pb2.GetPluginInfoRequest) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version=self._build)

    async def capabilities(
        self, _request: csi_pb2.GetPluginCapabilitiesRequest
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        return csi_pb2.GetPluginCapabilitiesResponse()

    async def probe(self, _request: csi_pb2.ProbeRequest) -> csi_pb2.ProbeResponse:
        """Ready where the holder answers; the agent may come and go."""
        try:
            await asyncio.to_thread(self._binder.check)
        except (HolderGone, Refused):
            return csi_pb2.ProbeResponse(ready=BoolValue(value=False))
        return csi_pb2.ProbeResponse(ready=BoolValue(value=True))
