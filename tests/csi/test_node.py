"""Publishing and unpublishing through gRPC, with a real serve, a real holder and real mounts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from csi import services
from csi.holder import kernel
from csi.holder.mountinfo import mount_entries
from csi.proto import csi_pb2
from tests.csi.holding import WITHIN, HolderProcess, entries_below
from tests.csi.serving import ServeProcess, SmallAgent, publication

Code = grpc.StatusCode


@pytest.fixture
def serve(holder: HolderProcess) -> Iterator[ServeProcess]:
    process = ServeProcess(holder.base)
    yield process
    process.close()


@pytest.fixture
def agent(holder: HolderProcess, serve: ServeProcess) -> Iterator[SmallAgent]:
    small = SmallAgent(holder, serve.admin_socket)
    with small.serving():
        yield small
    small.close()


def points(serve: ServeProcess) -> list[str]:
    return sorted(os.path.basename(entry.point) for entry in entries_below(serve.pods))


def test_a_published_volume_is_on_its_target_until_it_is_unpublished(
    serve: ServeProcess, agent: SmallAgent
) -> None:
    target = serve.pods / "a"
    serve.publish(publication(target))
    serve.publish(publication(target))
    assert points(serve) == ["a"]
    assert agent.calls == ["mount s3://b/d"]
    serve.unpublish(target)
    serve.unpublish(target)
    assert (points(serve), agent.mounts) == ([], {})
    assert agent.calls == ["mount s3://b/d", "unmount"]
    assert not target.exists()


def test_a_directory_that_serve_did_not_make_stays(serve: ServeProcess, agent: SmallAgent) -> None:
    target = serve.pods / "a"
    target.mkdir()
    serve.publish(publication(target))
    serve.unpublish(target)
    assert target.is_dir()


def test_targets_share_one_mount_and_the_agent_hears_of_the_last(
    serve: ServeProcess, agent: SmallAgent
) -> None:
    for name in ("a", "b"):
        serve.publish(publication(serve.pods / name, volume=name))
    assert len({entry.device for entry in entries_below(serve.pods)}) == 1
    serve.unpublish(serve.pods / "a", "a")
    assert "unmount" not in agent.calls
    serve.unpublish(serve.pods / "b", "b")
    assert agent.calls[-1] == "unmount"


@pytest.mark.parametrize(("uri", "volume"), [("s3://b/other", "volume-1"), ("s3://b/d", "volume-2")])
def test_another_volume_on_the_target_is_refused(
    serve: ServeProcess, agent: SmallAgent, uri: str, volume: str
) -> None:
    serve.publish(publication(serve.pods / "a"))
    code, message = serve.refusal(publication(serve.pods / "a", uri, volume))
    assert code is Code.ALREADY_EXISTS
    assert "volume volume-1 with s3://b/d is published" in message


def test_a_mount_given_up_before_the_bind_is_asked_for_again(serve: ServeProcess, agent: SmallAgent) -> None:
    agent.lose_next = True
    serve.publish(publication(serve.pods / "a"))
    assert points(serve) == ["a"]
    assert agent.calls == ["mount s3://b/d"] * 2


def test_many_calls_at_once_end_with_one_mount_on_each_target(serve: ServeProcess, agent: SmallAgent) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = ["a", "b", "c", "d"] * 4
        list(pool.map(lambda name: serve.publish(publication(serve.pods / name)), names))
        assert points(serve) == ["a", "b", "c", "d"]
        list(pool.map(lambda name: serve.unpublish(serve.pods / name), names))
    assert (points(serve), agent.mounts) == ([], {})


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.INVALID_ARGUMENT),
        (403, Code.PERMISSION_DENIED),
        (404, Code.NOT_FOUND),
        (409, Code.ABORTED),
        (502, Code.FAILED_PRECONDITION),
        (503, Code.UNAVAILABLE),
        (507, Code.RESOURCE_EXHAUSTED),
        (412, Code.FAILED_PRECONDITION),
        (500, Code.UNAVAILABLE),
        (418, Code.UNAVAILABLE),
    ],
)
def test_what_the_agent_refuses_becomes_a_code_and_its_line(
    serve: ServeProcess, agent: SmallAgent, status: int, code: grpc.StatusCode
) -> None:
    agent.fail_next = status
    assert serve.refusal(publication(serve.pods / "a")) == (code, "agent: no luck")
    assert not (serve.pods / "a").exists()


def test_without_an_agent_nothing_is_published(serve: ServeProcess) -> None:
    code, message = serve.refusal(publication(serve.pods / "a"))
    assert code is Code.UNAVAILABLE
    assert "headrace-agent" in message
    assert not (serve.pods / "a").exists()


def test_an_agent_that_is_down_does_not_hold_up_the_end_of_a_pod(
    holder: HolderProcess, serve: ServeProcess
) -> None:
    small = SmallAgent(holder, serve.admin_socket)
    with small.serving():
        serve.publish(publication(serve.pods / "a"))
    serve.unpublish(serve.pods / "a")
    assert points(serve) == []
    small.close()


def test_without_a_holder_the_code_says_unavailable(holder: HolderProcess, serve: ServeProcess) -> None:
    holder.terminate()
    code, message = serve.refusal(publication(serve.pods / "a"))
    assert code is Code.UNAVAILABLE
    assert "headrace-csi hold" in message


def test_a_new_holder_is_found_and_what_the_old_one_left_is_taken_off(
    holder: HolderProcess, serve: ServeProcess
) -> None:
    first = SmallAgent(holder, serve.admin_socket)
    with first.serving():
        serve.publish(publication(serve.pods / "a"))
        serve.publish(publication(serve.pods / "b"))
    first.close()
    holder.kill()
    second = HolderProcess(holder.base)
    agent = SmallAgent(second, serve.admin_socket)
    try:
        with agent.serving():
            assert points(serve) == ["a", "b"]
            serve.publish(publication(serve.pods / "a"))
            serve.unpublish(serve.pods / "b")
            assert points(serve) == ["a"]
            mounted = second.mounted_at(next(iter(agent.mounts)))
            assert mounted is not None
            assert [entry.device for entry in entries_below(serve.pods)] == [mounted.device]
    finally:
        agent.close()
        second.close()


def test_serve_keeps_no_state(holder: HolderProcess, agent: SmallAgent, serve: ServeProcess) -> None:
    target = serve.pods / "a"
    serve.publish(publication(target))
    assert serve.kill() != 0
    second = ServeProcess(holder.base)
    try:
        second.publish(publication(target))
        assert agent.calls == ["mount s3://b/d"]
        second.unpublish(target)
        assert not target.exists()
    finally:
        second.close()


def missing(field: str) -> csi_pb2.NodePublishVolumeRequest:
    request = publication("/var/lib/kubelet/x")
    request.ClearField(field)
    return request


class TestArguments:
    """What is refused before anybody is asked."""

    @pytest.mark.parametrize("field", ["volume_id", "target_path", "volume_capability"])
    def test_a_missing_field_is_named(self, serve: ServeProcess, field: str) -> None:
        assert serve.refusal(missing(field)) == (Code.INVALID_ARGUMENT, f"{field}: is missing")

    def test_a_missing_uri_is_named(self, serve: ServeProcess) -> None:
        answer = serve.refusal(missing("volume_context"))
        assert answer == (Code.INVALID_ARGUMENT, "volume_context.uri: is missing")

    def test_an_unknown_attribute_is_named(self, serve: ServeProcess) -> None:
        request = publication(serve.pods / "a")
        request.volume_context["url"] = "s3://typo"
        code, message = serve.refusal(request)
        assert code is Code.INVALID_ARGUMENT
        assert message.startswith("volume_context.url: unknown attribute")

    def test_block_volumes_and_flags_are_refused(self, serve: ServeProcess) -> None:
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
        self, serve: ServeProcess, agent: SmallAgent, target: str, words: str
    ) -> None:
        (serve.pods / "dir").mkdir()
        (serve.pods / "link").symlink_to("dir")
        (serve.pods / "dir" / "link-out").symlink_to("/tmp")
        (serve.pods / "file").touch()
        before = len(mount_entries())
        code, message = serve.refusal(publication(target.format(pods=serve.pods)))
        assert code is Code.INVALID_ARGUMENT
        assert message.startswith("target_path: ")
        assert words in message
        assert len(mount_entries()) <= before + 1
        assert points(serve) == []

    def test_a_target_inside_a_mount_is_refused(self, serve: ServeProcess, agent: SmallAgent) -> None:
        serve.publish(publication(serve.pods / "a"))
        code, message = serve.refusal(publication(serve.pods / "a" / "b" / "c"))
        assert code is Code.INVALID_ARGUMENT
        assert "inside a Headrace mount" in message

    def test_unpublishing_what_never_was_is_fine(self, serve: ServeProcess) -> None:
        serve.unpublish(serve.pods / "a")
        serve.unpublish(serve.pods / "missing" / "a")

    @pytest.mark.parametrize("request_", [{"volume_id": "v"}, {"target_path": "/x"}])
    def test_unpublishing_needs_both_fields(self, serve: ServeProcess, request_: dict[str, str]) -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(**request_)
        with serve.channel() as channel, pytest.raises(grpc.RpcError, match="is missing"):
            services.NODE_UNPUBLISH_VOLUME.call(channel, request, WITHIN)


def test_a_root_that_is_a_symbolic_link_serves_by_either_name(holder: HolderProcess) -> None:
    real, link = holder.base / "real", holder.base / "pods"
    real.mkdir()
    link.symlink_to(real)
    serve = ServeProcess(holder.base)
    agent = SmallAgent(holder, serve.admin_socket)
    try:
        with agent.serving():
            serve.publish(publication(link / "a"))
            assert [entry.point for entry in entries_below(real)] == [str(real / "a")]
            serve.publish(publication(real / "a"))
            serve.unpublish(real / "a")
            assert entries_below(real) == []
    finally:
        agent.close()
        serve.close()


def test_a_foreign_mount_on_the_target_is_left_when_it_is_unpublished(
    serve: ServeProcess, agent: SmallAgent
) -> None:
    target: Path = serve.pods / "a"
    target.mkdir()
    kernel.mount("none", str(target), "tmpfs", 0, "size=64k")
    serve.unpublish(target)
    assert points(serve) == ["a"]
