"""The commands as processes: exit statuses, one line on stderr, and mount and umount beside a real serve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.csi.holding import REPOSITORY, THIRD_UID, HolderProcess, entries_below, scratch
from tests.csi.serving import ServeProcess, SmallAgent

TIMEOUT = 30.0  # seconds for another process


def run(
    *arguments: str | Path, user: int | None = None, cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "csi", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        user=user,
    )


def fails(words: str, *arguments: str | Path, user: int | None = None) -> None:
    result = run(*arguments, user=user)
    assert result.returncode == 1, result
    assert result.stderr.startswith(f"headrace-csi {arguments[0]}: "), result.stderr
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_mount_and_umount_do_what_they_say(holder: HolderProcess, serve: ServeProcess) -> None:
    agent = SmallAgent(holder, serve.admin_socket)
    with agent.serving():
        result = run("mount", "--csi-socket", serve.socket, "s3://b/d", "a", cwd=serve.pods)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"s3://b/d is on {serve.pods}/a\n"
        assert [entry.point for entry in entries_below(serve.pods)] == [f"{serve.pods}/a"]
        for _ in range(2):
            result = run("umount", "--csi-socket", serve.socket, serve.pods / "a")
            assert (result.returncode, result.stderr) == (0, "")
        assert entries_below(serve.pods) == []
        assert not (serve.pods / "a").exists()
    agent.close()


def test_options_and_a_secrets_file_reach_the_agent(
    holder: HolderProcess, serve: ServeProcess, tmp_path: Path
) -> None:
    secrets, agent = tmp_path / "secrets", SmallAgent(holder, serve.admin_socket)
    secrets.write_text("# ours\n\naccess_key_id = hush=1\n")
    options = ("--sub-path", "a/b", "--prefetch", "none", "--secrets-file", secrets)
    with agent.serving():
        mount = ("mount", "--csi-socket", serve.socket, *options, "s3://b/d", serve.pods / "a")
        secrets.chmod(0o640)
        fails(f"chmod 600 {secrets}", *mount)
        secrets.chmod(0o600)
        assert run(*mount).returncode == 0
        run("umount", "--csi-socket", serve.socket, serve.pods / "a")
        secrets.write_text("hush-hush\n")
        fails("each line must be name=value", *mount)
    agent.close()
    (order,) = agent.orders
    assert order["secrets"] == {"access_key_id": "hush=1"}
    assert (order["sub_path"], order["prefetch"]) == ("a/b", "none")


def test_a_wrong_option_is_named_by_its_attribute(serve: ServeProcess) -> None:
    command = ("mount", "--csi-socket", serve.socket, "--prefetch", "yes", "s3://b/d", serve.pods / "a")
    fails("volume_context.prefetch: ", *command)


@pytest.mark.parametrize("name", ["", "n" * 193])
def test_a_node_id_that_kubernetes_would_refuse_is_refused(name: str) -> None:
    fails("--node-id: must have 1 to 192 bytes", "serve", "--node-id", name)


def test_registration_needs_the_directory_of_kubelet(serve: ServeProcess) -> None:
    fails("is kubelet running here?", "serve", "--registration-socket", "/no/such/reg.sock")


def test_a_symbolic_link_in_the_users_path_is_resolved(holder: HolderProcess, serve: ServeProcess) -> None:
    (holder.base / "shortcut").symlink_to(serve.pods)
    agent = SmallAgent(holder, serve.admin_socket)
    with agent.serving():
        run("mount", "--csi-socket", serve.socket, "s3://b/d", holder.base / "shortcut" / "a")
        assert [entry.point for entry in entries_below(serve.pods)] == [f"{serve.pods}/a"]
        run("umount", "--csi-socket", serve.socket, holder.base / "shortcut" / "a")
        assert entries_below(serve.pods) == []
    agent.close()


def test_a_target_outside_the_roots_names_the_option_to_add(
    holder: HolderProcess, serve: ServeProcess
) -> None:
    target = holder.base / "elsewhere" / "x"
    fails(f"--target-root {target.parent}", "mount", "--csi-socket", serve.socket, "s3://b/d", target)


def test_without_an_agent_mount_says_what_is_missing(serve: ServeProcess) -> None:
    fails("is headrace-agent running?", "mount", "--csi-socket", serve.socket, "s3://b/d", serve.pods / "a")


@pytest.mark.parametrize("command", [["mount", "s3://b/d", "/x"], ["umount", "/x"]])
def test_without_a_server_mount_and_umount_say_so(command: list[str]) -> None:
    with scratch() as base:
        fails("start `headrace-csi serve`", command[0], "--csi-socket", base / "csi.sock", *command[1:])


@pytest.mark.parametrize("command", [["mount", "s3://b/d", "/x"], ["umount", "/x"], ["serve"], ["hold"]])
def test_without_root_the_commands_say_so(command: list[str]) -> None:
    fails("mounting needs root", *command, user=THIRD_UID)


def test_the_csi_socket_is_roots_alone(serve: ServeProcess) -> None:
    assert os.stat(serve.socket).st_mode & 0o777 == 0o600


def test_a_second_serve_is_refused_and_the_first_goes_on(holder: HolderProcess, serve: ServeProcess) -> None:
    fails("another process serves there", "serve", "--csi-socket", serve.socket)
    agent = SmallAgent(holder, serve.admin_socket)
    with agent.serving():
        assert run("mount", "--csi-socket", serve.socket, "s3://b/d", serve.pods / "a").returncode == 0
        assert run("umount", "--csi-socket", serve.socket, serve.pods / "a").returncode == 0
    agent.close()


def test_told_to_stop_serve_ends_well_and_takes_its_socket_away(serve: ServeProcess) -> None:
    assert serve.terminate() == 0
    assert not Path(serve.socket).exists()


def test_serve_names_what_it_cannot_start_with() -> None:
    with scratch() as base:
        missing = base / "missing"
        fails(f"--target-root: {missing} is not a directory", "serve", "--target-root", missing)
        fails(f"--csi-socket: {missing} is not there", "serve", "--csi-socket", missing / "csi.sock")


@pytest.mark.parametrize("arguments", [[], ["mount"], ["mount", "a"], ["manifest", "s3://b/d"], ["none"]])
def test_wrong_usage_is_exit_status_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: headrace-csi" in result.stderr


def test_manifest_needs_no_root_and_no_server() -> None:
    result = run("manifest", "s3://b/d", "--name", "llama", user=THIRD_UID)
    assert (result.returncode, result.stderr) == (0, "")
    assert "kind: PersistentVolumeClaim" in result.stdout
    fails("--name: 'Not_A_Name' is no DNS-1123 name", "manifest", "s3://b/d", "--name", "Not_A_Name")
