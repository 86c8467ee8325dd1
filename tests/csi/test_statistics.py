"""NodeGetVolumeStats: from records only, with real mounts."""

from __future__ import annotations

import grpc
import pytest

from csi.proto import csi_pb2
from tests.csi.holding import HolderProcess
from tests.csi.serving import ServeProcess, SmallAgent, publication

Code = grpc.StatusCode
Usage = csi_pb2.VolumeUsage


def sizes(answer: csi_pb2.NodeGetVolumeStatsResponse) -> dict[int, tuple[int, int, int]]:
    return {one.unit: (one.total, one.used, one.available) for one in answer.usage}


def refused(serve: ServeProcess, target: str, volume: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        serve.stats(target, volume)
    assert isinstance(raised.value, grpc.Call)
    return raised.value.code()


def test_a_volume_tells_its_size_and_that_it_is_served(holder: HolderProcess, serve: ServeProcess) -> None:
    agent = SmallAgent(holder, serve.admin_socket)
    with agent.serving():
        serve.publish(publication(serve.pods / "a"))
        answer = serve.stats(serve.pods / "a")
    agent.close()
    assert sizes(answer) == {Usage.BYTES: (30, 30, 0), Usage.INODES: (2, 2, 0)}
    assert not answer.volume_condition.abnormal


def test_with_the_agent_down_the_size_is_told_and_the_condition_is_abnormal(
    holder: HolderProcess, serve: ServeProcess
) -> None:
    agent = SmallAgent(holder, serve.admin_socket)
    with agent.serving():
        serve.publish(publication(serve.pods / "a"))
    answer = serve.stats(serve.pods / "a")  # the target would hang now: nobody answers it
    assert sizes(answer)[Usage.BYTES] == (30, 30, 0)
    assert answer.volume_condition.abnormal
    assert "headrace-agent" in answer.volume_condition.message
    agent.close()


def test_an_agent_that_does_not_serve_the_mount_makes_it_abnormal(
    holder: HolderProcess, serve: ServeProcess
) -> None:
    agent = SmallAgent(holder, serve.admin_socket)
    with agent.serving():
        serve.publish(publication(serve.pods / "a"))
        (name, held), *_ = agent.mounts.items()
        agent.mounts.clear()
        answer = serve.stats(serve.pods / "a")
        agent.mounts[name] = held
    agent.close()
    assert answer.volume_condition.abnormal
    assert "does not serve" in answer.volume_condition.message


@pytest.mark.parametrize(
    ("target", "volume", "code"),
    [
        ("{pods}/a", "another", Code.NOT_FOUND),
        ("{pods}/b", "volume-1", Code.NOT_FOUND),
        ("/outside", "volume-1", Code.NOT_FOUND),
        ("relative", "volume-1", Code.NOT_FOUND),
        ("", "volume-1", Code.INVALID_ARGUMENT),
        ("{pods}/a", "", Code.INVALID_ARGUMENT),
    ],
)
def test_what_is_not_published_there_is_not_found(
    serve: ServeProcess, agent: SmallAgent, target: str, volume: str, code: grpc.StatusCode
) -> None:
    serve.publish(publication(serve.pods / "a"))
    assert refused(serve, target.format(pods=serve.pods), volume) is code
