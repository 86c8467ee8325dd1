"""All processes of Headrace on one machine, and what is left of them after the worst ends."""

from __future__ import annotations

import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import load
from csi.holder.mountinfo import mount_entries
from csi.mounting import umount
from deploy.local.layout import AgentSettings
from deploy.local.peering import AGENT_USER
from deploy.local.process import Process, StackError
from deploy.local.s3 import SeaweedS3
from deploy.local.stack import LocalStack

CAT_WITHIN = 20.0  # seconds


@pytest.fixture
def stack(seaweed: SeaweedS3) -> Iterator[LocalStack]:
    """A stack that runs, with one small dataset at s3://stack/tree."""
    seaweed.put("stack", "tree/file", b"right bytes")
    with LocalStack(s3=seaweed) as made:
        yield made


def cat(stack: LocalStack, mounted: Path) -> str:
    return stack.run(["cat", str(mounted / "file")], CAT_WITHIN)


def assert_gone(root: Path, *pids: int) -> None:
    assert not root.exists()
    assert [entry.point for entry in mount_entries() if entry.point.startswith(str(root))] == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_dataset_is_mounted_read_and_unmounted(stack: LocalStack) -> None:
    mounted = stack.mount("s3://stack/tree")
    assert cat(stack, mounted) == "right bytes"
    assert stack.metrics()["headrace_mounts"] == 1
    stack.umount(mounted)
    assert not mounted.exists()


def test_each_process_can_be_stopped_killed_and_started_by_itself(stack: LocalStack) -> None:
    mounted = stack.mount("s3://stack/tree")
    stack.restart_agent()
    stack.stop_serve()
    stack.start_serve()
    assert cat(stack, mounted) == "right bytes"
    stack.kill_agent()
    stack.start_agent()
    assert cat(stack, mounted) == "right bytes"
    with pytest.raises(StackError, match="is started already"):
        stack.start_agent()


def test_a_mount_that_fails_says_why(stack: LocalStack) -> None:
    uri = "s3://no-such-bucket-anywhere/tree"
    with pytest.raises(StackError, match=f"{uri}.*there is no such bucket"):
        stack.mount(uri)
    with pytest.raises(StackError, match=r"ended with status 1[^\0]*headrace-csi mount"):
        stack.csi("mount", uri, str(stack.target()))


def test_programs_can_be_started_as_another_user_beside_mounts(stack: LocalStack) -> None:
    nothing_on_it = str(stack.target())
    for _ in range(100):
        umount(str(stack.layout.csi_socket), nothing_on_it)
        subprocess.run(["true"], user=AGENT_USER, extra_groups=[], check=True)  # by fork, and not by vfork


def test_a_process_that_cannot_start_shows_the_end_of_its_log(seaweed: SeaweedS3) -> None:
    stack = LocalStack(AgentSettings(patience="soon"), s3=seaweed)
    root = stack.layout.root
    with pytest.raises(StackError, match=r"agent ended with status 2[^\0]*mount\.patience"), stack:
        pass
    assert_gone(root)


def test_the_end_takes_away_what_killed_processes_left(seaweed: SeaweedS3) -> None:
    seaweed.put("stack", "tree/file", b"right bytes")
    with LocalStack(s3=seaweed) as stack:
        stack.mount("s3://stack/tree")
        pids = [stack.process(name).pid for name in ("holder", "agent", "serve")]
        stack.kill_holder()
        stack.kill_agent()
    assert_gone(stack.layout.root, *pids)


def test_the_end_frees_a_reader_whose_agent_hangs(seaweed: SeaweedS3, tmp_path: Path) -> None:
    seaweed.put("stack", "tree/file", b"right bytes")
    stack = LocalStack(s3=seaweed, stopped_within=1.0)
    with pytest.raises(StackError, match="agent did not stop within 1 s of SIGTERM and was killed"), stack:
        mounted = stack.mount("s3://stack/tree")
        pid = stack.process("agent").pid
        os.kill(pid, signal.SIGSTOP)
        reader = Process(
            "reader",
            ["cat", str(mounted / "file")],
            tmp_path / "log",
            directory=tmp_path,
            environment={"PATH": os.defpath},
        )
        reader.await_ready(lambda: "fuse" in Path(f"/proc/{reader.pid}/stack").read_text(), CAT_WITHIN)
    assert reader.wait(CAT_WITHIN) != 0
    assert_gone(stack.layout.root, pid)


def test_the_end_leaves_the_callers_signal_handlers(seaweed: SeaweedS3) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with LocalStack(s3=seaweed):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_command_that_takes_too_long_is_killed(stack: LocalStack) -> None:
    with pytest.raises(StackError, match="did not end within 1 s and was killed"):
        stack.run(["sleep", "60"], 1.0)


def test_credentials_are_in_no_process_list_and_no_file(stack: LocalStack) -> None:
    secret = stack.s3.secret_key
    for name in ("holder", "agent", "serve"):
        assert secret not in Path(f"/proc/{stack.process(name).pid}/cmdline").read_text()
    assert secret not in stack.layout.config.read_text()
    environment = Path(f"/proc/{stack.process('agent').pid}/environ").read_text()
    assert secret in environment


def test_the_configuration_is_the_parameters_over_the_stacks_own(seaweed: SeaweedS3, tmp_path: Path) -> None:
    settings = AgentSettings(
        patience="3s",
        chunk_size="1MiB",
        origins={"s3://": {"deadline": "2s"}, "s3://b/": {"region": "elsewhere"}},
        extra='[origin."file://"]\nallow_unversioned = true\n',
    )
    stack = LocalStack(settings, s3=seaweed)
    try:
        text = stack.config()
        path = tmp_path / "agent.toml"
        path.write_text(text)
        config = load(path)
    finally:
        stack.close()
    assert (config.mount.patience, config.store.chunk_size) == (3.0, 1 << 20)
    assert config.origin["s3://"].endpoint_url == seaweed.endpoint
    assert config.origin["s3://"].deadline == 2.0
    assert config.origin["s3://b/"].region == "elsewhere"
    assert tomllib.loads(text)["origin"]["file://"] == {"allow_unversioned": True}
