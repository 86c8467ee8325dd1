"""Volumes as pods ask for them: views, revisions, secrets, prefetch, and origins that are not there."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from deploy.local.layout import AgentSettings
from deploy.local.mounts import mounts_below
from deploy.local.process import StackError
from deploy.local.stack import LocalStack
from tests.fakes.faults import Status
from tests.fakes.scripted_proxy import ScriptedProxy
from tests.harness.publishing import Kubelet, Refusal
from tests.harness.reading import run
from tests.harness.s3 import SeaweedS3

Code = grpc.StatusCode
FAILS_WITHIN = 10.0  # seconds, the promise
CHUNK = 1 << 20


@dataclass(frozen=True)
class Node:
    """One node: the agent's own credentials are wrong, and its origin is behind a proxy."""

    stack: LocalStack
    proxy: ScriptedProxy
    kubelet: Kubelet
    numbers: Iterator[int]

    @property
    def secrets(self) -> dict[str, str]:
        return {
            "access_key_id": self.stack.s3.access_key,
            "secret_access_key": self.stack.s3.secret_key,
        }

    def target(self) -> Path:
        return self.stack.layout.targets / f"pod-{next(self.numbers)}"

    def publish(self, uri: str, secrets: Mapping[str, str] | None = None, **attributes: str) -> Path:
        """Publish on a new target, with the right secrets unless others are given."""
        target = self.target()
        given = self.secrets if secrets is None else secrets
        self.kubelet.publish(target, {"uri": uri, **attributes}, secrets=given)
        return target

    def refusal(self, uri: str, secrets: Mapping[str, str] | None = None, **attributes: str) -> Refusal:
        """How a publish fails, which takes 10 s at most and leaves nothing."""
        before, started = sorted(self.stack.layout.targets.iterdir()), time.monotonic()
        with pytest.raises(Refusal) as raised:
            self.publish(uri, secrets, **attributes)
        assert time.monotonic() - started < FAILS_WITHIN
        assert sorted(self.stack.layout.targets.iterdir()) == before
        return raised.value


@pytest.fixture(scope="module")
def running(seaweed: SeaweedS3) -> Iterator[Node]:
    with ScriptedProxy(seaweed.endpoint) as proxy:
        settings = AgentSettings(
            patience="5s", chunk_size="1MiB", origins={"s3://": {"endpoint_url": proxy.endpoint}}
        )
        wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "wrong"}
        with LocalStack(settings, s3=seaweed, environment=wrong) as stack:
            yield Node(stack, proxy, Kubelet(stack.layout.csi_socket), itertools.count())


@pytest.fixture
def node(running: Node) -> Iterator[Node]:
    """The same with a proxy that has no rules; nothing stays published."""
    yield running
    running.proxy.up()
    running.proxy.clear()
    running.proxy.forget()
    for target in running.stack.layout.targets.iterdir():
        running.kubelet.unpublish(target)


def listed(target: Path) -> list[str]:
    found = run(["find", str(target), "-type", "f", "-printf", "%P\n"])
    assert found.returncode == 0, found.stderr
    return sorted(found.stdout.splitlines())


def content(path: Path) -> str:
    found = run(["cat", str(path)])
    assert found.returncode == 0, found.stderr
    return found.stdout


def revision_of(node: Node, target: Path) -> str:
    """As the holder's note has it, which `stats` does not tell: by the agent's listing."""
    answer = run(
        ["curl", "-s", "--unix-socket", str(node.stack.layout.admin_socket), "http://agent/v1/datasets"]
    )
    assert answer.returncode == 0
    return str(json.loads(answer.stdout)[0]["revision"])


def put_tree(node: Node, bucket: str) -> str:
    """A small tree; its URI."""
    for key in ("a/config.json", "a/w.bin", "a/deep/w.bin", "b/x.txt"):
        node.stack.s3.put(bucket, f"tree/{key}", key.encode())
    return f"s3://{bucket}/tree"


def test_a_sub_path_and_patterns_choose_what_a_pod_sees(node: Node) -> None:
    uri = put_tree(node, "views")
    part = node.publish(uri, subPath="a", include="*.bin, *.json", exclude="deep/")
    assert listed(part) == ["config.json", "w.bin"]
    assert listed(node.publish(uri)) == ["a/config.json", "a/deep/w.bin", "a/w.bin", "b/x.txt"]
    assert content(part / "w.bin") == "a/w.bin"
    assert [one.used for one in node.kubelet.stats(part).usage] == [20, 2]
    missing = node.refusal(uri, subPath="no/such")
    assert missing.code is Code.NOT_FOUND
    assert "subPath" in missing.message
    assert node.refusal(uri, include="*.nothing").code is Code.NOT_FOUND


def test_the_same_view_for_the_same_identity_is_one_mount(node: Node) -> None:
    uri = put_tree(node, "shared")
    targets = [node.publish(uri, include=include) for include in ("*.bin,*.json", "*.json, *.bin", "*.bin")]
    devices = [entry.device for entry in mounts_below(node.stack.layout.targets)]
    assert len(targets) == len(devices) == 3
    assert len(set(devices)) == 2


def test_a_revision_that_is_named_is_shown_for_good(node: Node) -> None:
    s3 = node.stack.s3
    s3.put("revisions", "d/f", b"first")
    first = node.publish("s3://revisions/d")
    revision = revision_of(node, first)
    assert content(first / "f") == "first"
    s3.put("revisions", "d/f", b"second one")
    assert content(node.publish("s3://revisions/d") / "f") == "second one"
    assert content(node.publish("s3://revisions/d", revision=revision) / "f") == "first"
    unknown = node.refusal("s3://revisions/d", revision="0" * 32)
    assert unknown.code is Code.FAILED_PRECONDITION
    assert "0" * 32 in unknown.message
    assert unknown.message.count("revision") >= 2


def test_secrets_prove_the_right_to_read_and_nothing_tells_them(node: Node) -> None:
    s3 = node.stack.s3
    s3.put("secrets", "d/f", b"for some only")
    wrong = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": "hush-hush-wrong"}
    target = node.publish("s3://secrets/d")
    assert content(target / "f") == "for some only"
    for secrets in ({}, wrong, {**node.secrets, "access_key_id": "somebody-else"}):
        refused = node.refusal("s3://secrets/d", secrets)
        assert refused.code is Code.PERMISSION_DENIED
        assert "credentials" in refused.message
    odd = node.refusal("s3://secrets/d", {**node.secrets, "pass_phrase": "hush-hush"})
    assert odd.code is Code.INVALID_ARGUMENT
    assert "unknown secret pass_phrase; there are access_key_id" in odd.message
    told = "".join(log.read_text() for log in node.stack.layout.logs.iterdir()) + odd.message
    assert "hush-hush" not in told
    assert s3.secret_key not in told


def test_a_restarted_agent_fills_with_the_credentials_that_the_holder_kept(node: Node) -> None:
    node.stack.s3.put("kept", "d/f", b"read later")
    target = node.publish("s3://kept/d")
    node.stack.restart_agent()
    assert content(target / "f") == "read later"


def test_prefetch_all_fills_the_dataset_and_none_only_what_is_read(node: Node) -> None:
    for name in ("all", "none"):
        for number in range(4):
            node.stack.s3.put("prefetch", f"{name}/{number}", bytes(3 * CHUNK))
    node.publish("s3://prefetch/all", prefetch="all")
    node.proxy.await_object_gets(12, "prefetch/all/*")
    lazy = node.publish("s3://prefetch/none", prefetch="none")
    done = run(["dd", f"if={lazy}/0", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"])
    assert done.returncode == 0, done.stderr
    assert len(node.proxy.object_gets("prefetch/none/*")) == 1


class TestAnOriginThatIsNotThere:
    """Each fails in 10 s, with the right code and a message that says what to do, until it is mended."""

    def test_an_unreachable_one(self, node: Node) -> None:
        uri = put_tree(node, "unreachable")
        node.proxy.down()
        refused = node.refusal(uri)
        assert refused.code is Code.UNAVAILABLE
        assert "does not answer" in refused.message
        node.proxy.up()
        assert listed(node.publish(uri))

    @pytest.mark.long
    def test_a_silent_one(self, node: Node) -> None:
        uri = put_tree(node, "silent")
        gate = node.proxy.hold(on="all")
        refused = node.refusal(uri)
        assert refused.code is Code.UNAVAILABLE
        gate.release()
        node.proxy.clear()
        assert listed(node.publish(uri))

    def test_one_that_cannot_now(self, node: Node) -> None:
        uri = put_tree(node, "busy")
        node.proxy.fault(Status(503), on="all", times=None)
        assert node.refusal(uri).code is Code.UNAVAILABLE
        node.proxy.clear()
        assert listed(node.publish(uri))

    def test_a_missing_bucket_and_a_wrong_path(self, node: Node) -> None:
        for uri in ("s3://not-yet-there/tree", "s3://missing/wrong"):
            node.stack.s3.put("missing", "right/f", b"x")
            refused = node.refusal(uri)
            assert refused.code is Code.NOT_FOUND
            assert "check" in refused.message
        assert listed(node.publish(put_tree(node, "not-yet-there")))
        node.stack.s3.put("missing", "wrong/f", b"x")
        assert listed(node.publish("s3://missing/wrong")) == ["f"]

    @pytest.mark.parametrize("uri", ["nonsense", "s3://", "s4://b/x", "gs://user:pass@b", "file://relative"])
    def test_a_uri_that_is_none(self, node: Node, uri: str) -> None:
        refused = node.refusal(uri, {})
        assert refused.code is Code.INVALID_ARGUMENT
        assert "pass@" not in refused.message

    def test_refused_credentials_that_are_granted_later(self, node: Node) -> None:
        uri = put_tree(node, "granted")
        node.proxy.fault(Status(403), on="all", times=None)
        refused = node.refusal(uri)
        assert refused.code is Code.PERMISSION_DENIED
        assert "check the credentials" in refused.message
        node.proxy.clear()
        assert listed(node.publish(uri))

    def test_a_volume_may_fall_back_on_what_was_there_last(self, node: Node) -> None:
        uri = put_tree(node, "fallback")
        first = node.publish(uri)
        assert content(first / "b/x.txt") == "b/x.txt"
        revision = revision_of(node, first)
        node.proxy.down()
        assert node.refusal(uri).code is Code.UNAVAILABLE
        assert content(node.publish(uri, onOriginDown="last") / "b/x.txt") == "b/x.txt"
        assert content(node.publish(uri, revision=revision) / "b/x.txt") == "b/x.txt"
        other = {**node.secrets, "session_token": "of another identity"}
        for attributes in ({"onOriginDown": "last"}, {"revision": revision}):
            assert node.refusal(uri, other, **attributes).code is Code.UNAVAILABLE

    def test_a_volume_that_is_published_stays_so_without_asking(self, node: Node) -> None:
        uri = put_tree(node, "repeat")
        target = node.target()
        node.kubelet.publish(target, {"uri": uri}, secrets=node.secrets)
        node.proxy.down()
        node.kubelet.publish(target, {"uri": uri}, secrets=node.secrets)


def test_the_mount_command_takes_attributes_and_secrets(node: Node, tmp_path: Path) -> None:
    uri = put_tree(node, "command")
    secrets, target = tmp_path / "secrets", node.target()
    secrets.write_text("# of the team\n" + "".join(f"{k}={v}\n" for k, v in node.secrets.items()))
    target.mkdir()
    arguments = ("--sub-path", "a", "--include", "*.bin", "--secrets-file", str(secrets), uri, str(target))
    secrets.chmod(0o644)
    with pytest.raises(StackError, match="chmod 600"):
        node.stack.csi("mount", *arguments, within=20)
    secrets.chmod(0o600)
    node.stack.csi("mount", *arguments, within=20)
    assert listed(target) == ["deep/w.bin", "w.bin"]
    node.stack.umount(target)
