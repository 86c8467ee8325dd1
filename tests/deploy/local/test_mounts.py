"""Taking mounts away that nobody answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from csi.holder.mountinfo import mount_entries
from deploy.local.mounts import abort_connections, detach_below, mounts_below
from deploy.local.process import Process
from deploy.local.s3 import SeaweedS3
from deploy.local.stack import LocalStack

ENDS_WITHIN = 20.0  # seconds


def test_an_aborted_connection_frees_its_reader_while_the_agent_hangs(
    seaweed: SeaweedS3, tmp_path: Path
) -> None:
    seaweed.put("mounts", "tree/file", b"right bytes")
    control = tmp_path / "control"
    control.mkdir()
    with LocalStack(s3=seaweed) as stack:
        mounted = stack.mount("s3://mounts/tree")
        devices = {entry.device for entry in mounts_below(stack.layout.root) if entry.ours}
        agent = stack.process("agent").pid
        os.kill(agent, signal.SIGSTOP)
        try:
            command = ["cat", str(mounted / "file")]
            reader = Process(
                "reader", command, tmp_path / "log", directory=tmp_path, environment={"PATH": os.defpath}
            )
            stuck = Path(f"/proc/{reader.pid}/stack")
            reader.await_ready(lambda: "fuse" in stuck.read_text(), ENDS_WITHIN)
            abort_connections(devices, control)
            assert reader.running, "a connection that is mounted is left alone"
            detach_below(stack.layout.root)
            abort_connections(devices, control)
            assert reader.wait(ENDS_WITHIN) == 1
        finally:
            os.kill(agent, signal.SIGCONT)
    assert "Software caused connection abort" in (tmp_path / "log").read_text()
    assert not [entry for entry in mount_entries() if entry.point == str(control)]
