"""A controller for csi-sanity, whose volumes are of a real dataset, and a front that announces it.

csi-sanity calls CreateVolume at `--csi.controllerendpoint` where a Node spec needs a volume. Two of its Node
specs run only where the driver itself says that it has a Controller service: for those there is `Front`,
which says so and passes every other call on to the real driver, byte for byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from tests.csi.holding import WITHIN

messages: Any = grpc.protos("tests/csi/controller.proto")
Call = Callable[[bytes, grpc.ServicerContext], bytes]
CONTROLLER_SERVICE = 1


class Controller(grpc.GenericRpcHandler):
    """csi.v1.Identity and csi.v1.Controller, as much of them as csi-sanity's Node specs call."""

    def __init__(self, attributes: Mapping[str, str]) -> None:
        self._attributes = dict(attributes)
        self.created: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = details.method.rpartition("/")[2]
        answers: dict[str, Call] = {
            "CreateVolume": self._create,
            "DeleteVolume": _nothing,
            "ControllerGetCapabilities": _nothing,
            "GetPluginInfo": lambda *_: _packed("GetPluginInfoResponse", name="csi.headrace.io"),
            "GetPluginCapabilities": _capabilities,
            "Probe": _nothing,
        }
        return grpc.unary_unary_rpc_method_handler(answers[method]) if method in answers else None

    def _create(self, request: bytes, _context: grpc.ServicerContext) -> bytes:
        name = messages.CreateVolumeRequest.FromString(request).name
        self.created.append(name)
        volume = messages.Volume(volume_id=name, volume_context=self._attributes)
        return _packed("CreateVolumeResponse", volume=volume)


class Front(grpc.GenericRpcHandler):
    """The driver behind `socket`, with a Controller service announced."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        if details.method.endswith("/GetPluginCapabilities"):
            return grpc.unary_unary_rpc_method_handler(_capabilities)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(details.method)

        def passed_on(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return bytes(call(request, timeout=WITHIN))
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                return context.abort(error.code(), error.details() or "")

        return grpc.unary_unary_rpc_method_handler(passed_on)


@contextlib.contextmanager
def serving(handler: grpc.GenericRpcHandler, socket: Path) -> Iterator[str]:
    """Serve at a socket; its address."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([handler])
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield f"unix:{socket}"
    finally:
        server.stop(None).wait(WITHIN)


def _packed(kind: str, **fields: object) -> bytes:
    return bytes(getattr(messages, kind)(**fields).SerializeToString())


def _nothing(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    return b""


def _capabilities(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    one = messages.PluginCapability(service=messages.Service(type=CONTROLLER_SERVICE))
    return _packed("GetPluginCapabilitiesResponse", capabilities=[one])
