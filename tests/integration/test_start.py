"""What the agent says of a configuration or a machine that it cannot work with: one line and the remedy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
[store]
directories = ["{directory}/store"]
[holder]
socket = "{directory}/holder.sock"
[admin]
socket = "{directory}/admin.sock"
[metrics]
listen = "127.0.0.1:{port}"
"""


def start(config: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the agent until it gives up."""
    path = directory / "agent.toml"
    path.write_text(config)
    command = [sys.executable, "-m", "agent", "--config", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def only_line(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in ended.stderr.splitlines() if line.startswith("headrace-agent: ")]
    assert len(lines) == 1 and "Traceback" not in ended.stderr, ended.stderr
    return lines[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def good(tmp_path: Path) -> str:
    return GOOD.format(directory=tmp_path, port=free_port())


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ("[stor]\n", "stor"),
        ("[mount]\npatiense = '5min'\n", "mount.patiense"),
        ("[mount]\npatience = 300\n", "mount.patience"),
        ("[mount]\npatience = 'soon'\n", "mount.patience"),
        ("[origin.'s3']\n", "origin"),
        ("[origin.'s3://']\nsecret_access_key = 'AKIA'\n", "secret_access_key"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_its_name(
    good: str, tmp_path: Path, extra: str, key: str
) -> None:
    ended = start(good + extra, tmp_path)
    assert ended.returncode == 2
    assert key in only_line(ended)


def test_a_bad_size_is_named(good: str, tmp_path: Path) -> None:
    ended = start(good.replace("[store]", "[store]\nchunk_size = '8 elephants'"), tmp_path)
    assert ended.returncode == 2
    assert "store.chunk_size" in only_line(ended)


def test_a_store_that_cannot_be_made_is_named(good: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = start(good.replace(f"{tmp_path}/store", f"{tmp_path}/file/store"), tmp_path)
    assert ended.returncode == 2
    assert "store.directories" in only_line(ended)


def test_a_taken_port_is_named(good: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = "\n".join(
            f'listen = "127.0.0.1:{port}"' if line.startswith("listen") else line
            for line in good.splitlines()
        )
        ended = start(config, tmp_path)
    assert ended.returncode == 2
    assert "metrics.listen" in only_line(ended)


def test_a_missing_holder_is_said_with_the_remedy(good: str, tmp_path: Path) -> None:
    ended = start(good, tmp_path)
    assert ended.returncode == 1
    assert "headrace-csi hold" in only_line(ended)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "--config", str(tmp_path / "none.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert "none.toml" in only_line(ended)


def test_no_permission_for_the_store_is_said(good: str, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        raise AssertionError("this test changes its user, which needs root")
    ended = start(good.replace(f"{tmp_path}/store", "/proc/headrace"), tmp_path)
    assert ended.returncode == 2
    assert "store.directories" in only_line(ended)
