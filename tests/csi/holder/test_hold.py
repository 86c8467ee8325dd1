"""Life and death of the holder: what it leaves, what it finds, what it refuses to start with."""

from __future__ import annotations

import ast
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.mount import splicing
from agent.mount.holder import Holder
from csi.holder.hold import PIPE_SIZE, stop_signal
from csi.holder.mountinfo import mount_entries
from tests.csi.holding import (
    AGENT_USER,
    REPOSITORY,
    THIRD_UID,
    HolderProcess,
    answer_one,
    ask,
    entries_below,
    path_descriptor,
    running_holder,
    scratch,
)

TIMEOUT = 20.0  # seconds for another process


def hold(*arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "csi", "hold", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT, check=False, user=user
    )


def test_the_holder_imports_the_standard_library_only() -> None:
    for path in (REPOSITORY / "csi" / "holder").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                ours = name == "csi.holder" or name.startswith("csi.holder.")
                assert ours or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_without_an_agent_it_leaves_nothing_behind(number: signal.Signals) -> None:
    with running_holder() as holder:
        target = holder.base / "target"
        target.mkdir()
        agent, table, _ = Holder.claim(holder.socket, "test")
        held = agent.mount("m", {})
        serve = holder.connect()
        with path_descriptor(target) as descriptor:
            ask(serve, "bind", {"mount": "m", "target": str(target)}, [descriptor])
        agent.close()
        holder.popen.send_signal(number)
        assert holder._wait() == 0
        assert entries_below(holder.base) == []
        assert os.listdir(holder.base / "run" / "mounts") == []
        assert not Path(holder.socket).exists()
        os.close(table.fd)
        os.close(held.fd)
        serve.close()


def test_after_sigkill_the_next_holder_removes_the_dead_and_leaves_the_living_alone() -> None:
    with scratch() as base:
        first = HolderProcess(base)
        agent, table, _ = Holder.claim(first.socket, "test")
        dead, living = agent.mount("dead", {}), agent.mount("living", {})
        answer_one(dead.fd)
        answer_one(living.fd)
        first.kill()
        agent.close()
        os.close(table.fd)
        os.close(dead.fd)
        second = HolderProcess(base)
        try:
            assert second.mounted_at("dead") is None
            assert second.mounted_at("living") is not None
            assert os.listdir(base / "run" / "mounts") == ["living"]
            taken_over(second, living.fd)
        finally:
            second.close()


def taken_over(holder: HolderProcess, living: int) -> None:
    """A mount of an earlier holder keeps its id as long as it lives."""
    agent, table, held = Holder.claim(holder.socket, "test")
    assert held == []
    with pytest.raises(Exception, match="still served"):
        agent.mount("living", {})
    os.close(living)
    again = agent.mount("living", {})
    assert holder.mounted_at("living") is not None
    assert sum(entry.point.endswith("/mounts/living") for entry in mount_entries()) == 1
    os.close(again.fd)
    os.close(table.fd)
    agent.close()


def test_empty_directories_of_earlier_mounts_are_removed() -> None:
    with scratch() as base:
        (base / "run" / "mounts" / "old").mkdir(parents=True)
        (base / "run" / "mounts").chmod(0o700)
        holder = HolderProcess(base)
        assert os.listdir(base / "run" / "mounts") == []
        holder.close()


def test_a_socket_is_one_holders(holder: HolderProcess) -> None:
    result = hold("--holder-socket", holder.socket)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "another process serves there" in result.stderr
    holder.connect().close()


def test_a_killed_holders_socket_is_replaced() -> None:
    with scratch() as base:
        HolderProcess(base).kill()
        holder = HolderProcess(base)
        holder.connect().close()
        holder.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--store", "/nonexistent/store"], "--store: /nonexistent/store: No such file or directory"),
        (["--store", "/etc/passwd"], "--store: /etc/passwd is not a directory"),
        (["--agent-user", "no-such-user"], "--agent-user: there is no user 'no-such-user'"),
        (["--holder-socket", "/proc/x/holder.sock"], "/proc/x"),
    ],
)
def test_what_it_cannot_start_with_is_one_line(arguments: list[str], words: str) -> None:
    with scratch() as base:
        result = hold("--holder-socket", str(base / "holder.sock"), *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("headrace-csi hold: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_in_the_sockets_place_is_not_removed() -> None:
    with scratch() as base:
        (base / "holder.sock").write_text("precious")
        result = hold("--holder-socket", str(base / "holder.sock"))
        assert (base / "holder.sock").read_text() == "precious"
    assert result.returncode == 1
    assert "no socket" in result.stderr


def test_a_mounts_directory_that_is_not_roots_alone_is_refused() -> None:
    with scratch() as base:
        (base / "mounts").symlink_to("/tmp")
        result = hold("--holder-socket", str(base / "holder.sock"))
    assert result.returncode == 1
    assert "must be a directory of root, mode 0700" in result.stderr


def test_without_root_it_says_so() -> None:
    result = hold("--holder-socket", "/tmp/unused.sock", user=THIRD_UID)
    assert (result.returncode, result.stderr) == (
        1,
        "headrace-csi hold: mounting needs root; run it with sudo\n",
    )


def test_wrong_usage_is_exit_status_2() -> None:
    assert hold("--no-such-option").returncode == 2


def test_the_agent_may_make_its_socket_beside_the_holders_but_touch_no_other(holder: HolderProcess) -> None:
    script = (
        "import os, sys; os.chdir(sys.argv[1]); os.close(os.open('admin.sock', os.O_CREAT))\n"
        "for name in ('holder.sock', 'holder.sock.lock', 'mounts'):\n"
        "    try: os.rename(name, 'x')\n"
        "    except PermissionError: continue\n"
        "    sys.exit(name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, os.path.dirname(holder.socket)],
        user=AGENT_USER,
        group="nogroup",
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_pipes_may_be_as_large_as_a_reply_of_the_agent() -> None:
    limit = Path("/proc/sys/fs/pipe-max-size")
    limit.write_text("1048576")
    with running_holder():
        assert int(limit.read_text()) == PIPE_SIZE
        assert splicing.PIPE_SIZE == PIPE_SIZE


def test_a_higher_limit_of_pipes_stays() -> None:
    limit = Path("/proc/sys/fs/pipe-max-size")
    limit.write_text("4194304")
    with running_holder():
        assert int(limit.read_text()) == 4194304
    limit.write_text("2097152")


def test_a_signal_wakes_the_holder_though_no_handler_in_python_has_run() -> None:
    """As where it comes between the last instruction and the wait: here another thread takes it, and the
    main thread, the only one that runs handlers, goes on waiting."""
    with stop_signal() as wake:
        later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        later.start()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            readable, _, _ = select.select([wake], [], [], TIMEOUT / 4)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        later.join()
    assert readable == [wake]
