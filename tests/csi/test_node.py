"""Publishing and unpublishing through gRPC, with a real serve, a real holder and real mounts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from csi.holder import kernel
from tests.csi.holding import HolderProcess, entries_below
from tests.csi.serving import ServeProcess, SmallAgent, mountinfo, points, publication

Code = grpc.StatusCode


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


def test_one_volume_published_ten_times_and_ten_times_at_once_is_one_mount(
    serve: ServeProcess, agent: SmallAgent
) -> None:
    before, target = mountinfo(serve), serve.pods / "a"
    for _ in range(10):
        serve.publish(publication(target))
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda _: serve.publish(publication(target)), range(10)))
    assert points(serve) == ["a"]
    assert len(agent.mounts) == 1
    for _ in range(10):
        serve.unpublish(target)
    assert (points(serve), agent.mounts, mountinfo(serve)) == ([], {}, before)
    assert not target.exists()
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda _: serve.publish(publication(target)), range(10)))
        assert points(serve) == ["a"]
        list(pool.map(lambda _: serve.unpublish(target), range(10)))
    assert (points(serve), agent.mounts, mountinfo(serve)) == ([], {}, before)


def test_other_attributes_on_the_same_target_are_another_volume(
    serve: ServeProcess, agent: SmallAgent
) -> None:
    serve.publish(publication(serve.pods / "a"))
    request = publication(serve.pods / "a")
    request.volume_context["subPath"] = "below"
    assert serve.refusal(request)[0] is Code.ALREADY_EXISTS


def test_attributes_and_secrets_reach_the_agent(serve: ServeProcess, agent: SmallAgent) -> None:
    request = publication(serve.pods / "a")
    request.volume_context["include"] = "*.b,*.a"
    request.volume_context["prefetch"] = "none"
    request.secrets["access_key_id"] = "hush"
    serve.publish(request)
    (order,) = agent.orders
    assert order == {
        "uri": "s3://b/d",
        "include": ["*.a", "*.b"],
        "prefetch": "none",
        "secrets": {"access_key_id": "hush"},
    }
    assert "hush" not in "".join(serve.lines)


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
