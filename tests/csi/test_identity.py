"""The identity service and the node's facts, by gRPC."""

from __future__ import annotations

from csi import services
from csi.proto import csi_pb2
from tests.csi.holding import WITHIN, HolderProcess
from tests.csi.serving import ServeProcess


def test_the_driver_says_who_it_is(serve: ServeProcess) -> None:
    with serve.channel() as channel:
        info = services.GET_PLUGIN_INFO.call(channel, csi_pb2.GetPluginInfoRequest(), WITHIN)
        request = csi_pb2.GetPluginCapabilitiesRequest()
        capabilities = services.GET_PLUGIN_CAPABILITIES.call(channel, request, WITHIN)
    assert info.name == "csi.headrace.io"
    assert info.vendor_version
    assert not capabilities.capabilities


def test_it_is_ready_while_the_holder_answers(holder: HolderProcess, serve: ServeProcess) -> None:
    with serve.channel() as channel:
        assert services.PROBE.call(channel, csi_pb2.ProbeRequest(), WITHIN).ready.value is True
        holder.terminate()
        assert services.PROBE.call(channel, csi_pb2.ProbeRequest(), WITHIN).ready.value is False


def test_the_node_says_its_name_and_that_it_has_statistics(serve: ServeProcess) -> None:
    with serve.channel() as channel:
        assert services.NODE_GET_INFO.call(channel, csi_pb2.NodeGetInfoRequest(), WITHIN).node_id == "node-1"
        request = csi_pb2.NodeGetCapabilitiesRequest()
        answer = services.NODE_GET_CAPABILITIES.call(channel, request, WITHIN)
    kinds = csi_pb2.NodeServiceCapability.RPC.Type
    names = [kinds.Name(one.rpc.type) for one in answer.capabilities]
    assert names == ["GET_VOLUME_STATS", "VOLUME_CONDITION"]
