"""Registration with kubelet, played by a gRPC client that does what kubelet's plugin watcher does."""

from __future__ import annotations

import grpc
import pytest

from csi import services
from csi.proto import csi_pb2, registration_pb2
from tests.csi.holding import WITHIN, HolderProcess
from tests.csi.serving import ServeProcess


def connect(socket: str) -> grpc.Channel:
    """As kubelet does: by the path, whatever authority that makes."""
    return grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])


def test_kubelet_finds_the_driver_and_says_how_it_went(holder: HolderProcess) -> None:
    socket = str(holder.base / "run" / "csi.headrace.io-reg.sock")
    serve = ServeProcess(holder.base, "--registration-socket", socket)
    try:
        with connect(socket) as channel:
            info = services.GET_INFO.call(channel, registration_pb2.InfoRequest(), WITHIN)
            assert (info.type, info.name) == ("CSIPlugin", "csi.headrace.io")
            assert list(info.supported_versions) == ["1.0.0"]
            with connect(info.endpoint) as driver:  # kubelet's next step
                answer = services.NODE_GET_INFO.call(driver, csi_pb2.NodeGetInfoRequest(), WITHIN)
            assert answer.node_id == "node-1"
            for status in (
                registration_pb2.RegistrationStatus(plugin_registered=True),
                registration_pb2.RegistrationStatus(plugin_registered=False, error="no\nluck"),
            ):
                services.NOTIFY_REGISTRATION_STATUS.call(channel, status, WITHIN)
    finally:
        assert serve.terminate() == 0
    told = [line for line in serve.lines if "kubelet" in line]
    assert "registered with kubelet as csi.headrace.io" in told[0]
    assert "no luck" in told[1]
    with connect(socket) as channel, pytest.raises(grpc.RpcError):
        services.GET_INFO.call(channel, registration_pb2.InfoRequest(), 1.0)


def test_the_csi_socket_may_have_another_name_for_kubelet(holder: HolderProcess) -> None:
    socket, name = str(holder.base / "run" / "reg.sock"), "/var/lib/kubelet/plugins/csi.headrace.io/csi.sock"
    serve = ServeProcess(holder.base, "--registration-socket", socket, "--kubelet-csi-socket", name)
    try:
        with connect(socket) as channel:
            info = services.GET_INFO.call(channel, registration_pb2.InfoRequest(), WITHIN)
        assert info.endpoint == name
    finally:
        serve.close()
