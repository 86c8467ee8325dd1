"""Registration with kubelet's plugin watcher, version 1: it finds a socket, asks, and says how it went.

The driver does it itself, with no sidecar. The registration is kubelet's to repeat: after a failure it asks
again, and after its own restart it finds the socket anew.
"""

from __future__ import annotations

import logging

import grpc

from csi import services
from csi.answering import handler
from csi.identity import DRIVER
from csi.proto import registration_pb2

KIND = "CSIPlugin"  # k8s.io/kubelet, pluginregistration/v1/constants.go
VERSIONS = ("1.0.0",)  # of CSI, as kubelet compares them: the major version counts

_log = logging.getLogger("headrace.csi")


class RegistrationService:
    """pluginregistration.Registration."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint` is the path of the CSI socket as kubelet sees it."""
        self._endpoint = endpoint

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a grpc.aio server is given."""
        return [
            handler(services.GET_INFO, self.info),
            handler(services.NOTIFY_REGISTRATION_STATUS, self.outcome),
        ]

    async def info(self, _request: registration_pb2.InfoRequest) -> registration_pb2.PluginInfo:
        return registration_pb2.PluginInfo(
            type=KIND, name=DRIVER, endpoint=self._endpoint, supported_versions=VERSIONS
        )

    async def outcome(
        self, request: registration_pb2.RegistrationStatus
    ) -> registration_pb2.RegistrationStatusResponse:
        if request.plugin_registered:
            _log.info("registered with kubelet as %s at %s", DRIVER, self._endpoint)
        else:
            line = " ".join(request.error.split())
            _log.error("kubelet did not register %s at %s: %s", DRIVER, self._endpoint, line)
        return registration_pb2.RegistrationStatusResponse()
