"""Publishing that is refused before anybody is asked: nothing is made and nothing taken away."""

from __future__ import annotations

import grpc
import pytest

from csi import services
from csi.proto import csi_pb2
from tests.csi.holding import WITHIN
from tests.csi.serving import ServeProcess, SmallAgent, mountinfo, points, publication

Code = grpc.StatusCode


def missing(field: str) -> csi_pb2.NodePublishVolumeRequest:
    request = publication("/var/lib/kubelet/x")
    request.ClearField(field)
    return request


@pytest.mark.parametrize("field", ["volume_id", "target_path", "volume_capability"])
def test_a_missing_field_is_named(serve: ServeProcess, field: str) -> None:
    assert serve.refusal(missing(field)) == (Code.INVALID_ARGUMENT, f"{field}: is missing")


def test_a_missing_uri_is_named(serve: ServeProcess) -> None:
    answer = serve.refusal(missing("volume_context"))
    assert answer == (Code.INVALID_ARGUMENT, "volume_context.uri: is missing")


def test_an_unknown_attribute_is_named(serve: ServeProcess) -> None:
    request = publication(serve.pods / "a")
    request.volume_context["url"] = "s3://typo"
    code, message = serve.refusal(request)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("volume_context.url: unknown attribute")


@pytest.mark.parametrize("volume", ["../x", "a\0b", "x" * 5000])
def test_a_volume_id_that_is_wrong_is_named_and_nothing_happens(
    serve: ServeProcess, agent: SmallAgent, volume: str
) -> None:
    before = mountinfo(serve)
    code, message = serve.refusal(publication(serve.pods / "a", volume=volume))
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("volume_id: ")
    with pytest.raises(grpc.RpcError, match="volume_id: "):
        serve.unpublish(serve.pods / "a", volume)
    assert (agent.calls, mountinfo(serve), list(serve.pods.iterdir())) == ([], before, [])


@pytest.mark.parametrize("target", ["/etc", "{pods}/\0", "{pods}/" + "x/" * 2500])
def test_a_target_that_is_wrong_is_named_by_unpublish_too(
    serve: ServeProcess, agent: SmallAgent, target: str
) -> None:
    for call in (serve.unpublish, lambda path: serve.publish(publication(path))):
        with pytest.raises(grpc.RpcError, match="target_path: ") as raised:
            call(target.format(pods=serve.pods))
        assert isinstance(raised.value, grpc.Call)
        assert raised.value.code() is Code.INVALID_ARGUMENT
    assert agent.calls == []


def test_unpublishing_behind_a_symbolic_link_takes_nothing_away(
    serve: ServeProcess, agent: SmallAgent
) -> None:
    serve.publish(publication(serve.pods / "a"))
    (serve.pods / "dir").mkdir()
    (serve.pods / "link").symlink_to(serve.pods)
    serve.unpublish(serve.pods / "link" / "a")
    serve.unpublish(serve.pods / "link" / "dir")
    assert points(serve) == ["a"]
    assert (serve.pods / "dir").is_dir()


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("prefetch", "7"), ("subPath", "../.."), ("onOriginDown", "never"), ("revision", "newest")],
)
def test_an_attribute_that_is_wrong_is_named_and_nothing_happens(
    serve: ServeProcess, agent: SmallAgent, attribute: str, value: str
) -> None:
    request = publication(serve.pods / "a")
    request.volume_context[attribute] = value
    code, message = serve.refusal(request)
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith(f"volume_context.{attribute}: ")
    assert (agent.calls, list(serve.pods.iterdir())) == ([], [])


def test_block_volumes_and_flags_are_refused(serve: ServeProcess) -> None:
    block, flags = (publication(serve.pods / "a") for _ in range(2))
    block.volume_capability.block.SetInParent()
    flags.volume_capability.mount.mount_flags.append("exec")
    for request, word in ((block, "block"), (flags, "'exec'")):
        code, message = serve.refusal(request)
        assert code is Code.INVALID_ARGUMENT
        assert word in message


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("relative", "absolute"),
        ("/tmp/outside", "start `headrace-csi serve` with --target-root /tmp"),
        ("{pods}/../x", "'..'"),
        ("{pods}", "outside the target roots"),
        ("{pods}/missing/x", "parent directory is missing"),
        ("{pods}/link/x", "symbolic link"),
        ("{pods}/dir/link-out", "symbolic link"),
        ("{pods}/file", "not a directory"),
        ("{pods}/file/x", "not a directory"),
        ("{pods}/" + "x" * 300, "too long"),
    ],
)
def test_a_target_that_is_not_fit_is_refused(
    serve: ServeProcess, agent: SmallAgent, target: str, words: str
) -> None:
    (serve.pods / "dir").mkdir()
    (serve.pods / "link").symlink_to("dir")
    (serve.pods / "dir" / "link-out").symlink_to("/tmp")
    (serve.pods / "file").touch()
    before = mountinfo(serve)
    code, message = serve.refusal(publication(target.format(pods=serve.pods)))
    assert code is Code.INVALID_ARGUMENT
    assert message.startswith("target_path: ")
    assert words in message
    assert mountinfo(serve) == before
    assert points(serve) == []


def test_a_target_inside_a_mount_is_refused(serve: ServeProcess, agent: SmallAgent) -> None:
    serve.publish(publication(serve.pods / "a"))
    code, message = serve.refusal(publication(serve.pods / "a" / "b" / "c"))
    assert code is Code.INVALID_ARGUMENT
    assert "inside a Headrace mount" in message


def test_unpublishing_what_never_was_is_fine(serve: ServeProcess) -> None:
    serve.unpublish(serve.pods / "a")
    serve.unpublish(serve.pods / "missing" / "a")


@pytest.mark.parametrize("request_", [{"volume_id": "v"}, {"target_path": "/x"}])
def test_unpublishing_needs_both_fields(serve: ServeProcess, request_: dict[str, str]) -> None:
    request = csi_pb2.NodeUnpublishVolumeRequest(**request_)
    with serve.channel() as channel, pytest.raises(grpc.RpcError, match="is missing"):
        services.NODE_UNPUBLISH_VOLUME.call(channel, request, WITHIN)
