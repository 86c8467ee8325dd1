from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from agent.control.api import application
from agent.control.client import AdminClient, AdminError
from agent.control.server import serve_admin, serve_metrics
from agent.errors import ConfigError
from tests.harness.controlled import InMemoryAgent

OTHER = 65533  # a third user: neither root nor the agent's
GET_AS_ANOTHER = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(10)
    try:
        connection.connect(sys.argv[1])
    except PermissionError:
        print("no permission"); sys.exit()
    connection.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\n\\r\\n")
    print(connection.makefile().read())
"""


async def as_user(uid: int, path: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        GET_AS_ANOTHER,
        str(path),
        str(uid),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    return output.decode()


def test_the_socket_is_for_its_owner_alone(admin_socket: Path) -> None:
    assert stat.S_IMODE(admin_socket.stat().st_mode) == 0o600
    assert stat.S_ISSOCK(admin_socket.stat().st_mode)


async def test_a_third_user_cannot_even_connect(admin_socket: Path) -> None:
    assert await as_user(OTHER, admin_socket) == "no permission\n"


async def test_a_third_user_is_refused_by_his_identity_should_the_mode_ever_be_wrong(
    admin_socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chmod(admin_socket, 0o666)
    answer = await as_user(OTHER, admin_socket)
    assert answer.startswith("HTTP/1.1 403 ")
    assert '"error": "Forbidden"' in answer
    assert "uptime" not in answer
    assert f"refused uid {OTHER}" in caplog.text


async def test_root_is_served(admin_socket: Path) -> None:
    assert (await as_user(0, admin_socket)).startswith("HTTP/1.1 200 ")


async def test_a_socket_that_a_dead_agent_left_is_replaced(agent: InMemoryAgent, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    runner = await serve_admin(application(agent), path)
    try:
        async with AdminClient(str(path)) as client:
            assert (await client.status()).name == "n"
    finally:
        await runner.cleanup()
    assert not path.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
async def test_a_socket_that_another_process_serves_is_left_alone(
    agent: InMemoryAgent, tmp_path: Path, kind: socket.SocketKind
) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX, kind) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(ConfigError, match="another process listens there") as caught:
            await serve_admin(application(agent), path)
        assert caught.value.key == "admin.socket"
        assert path.exists()


async def test_a_file_that_is_no_socket_is_left_alone(agent: InMemoryAgent, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="no socket: remove it"):
        await serve_admin(application(agent), path)
    assert path.read_text() == "precious"


async def test_a_link_in_the_socket_s_place_is_not_followed(agent: InMemoryAgent, tmp_path: Path) -> None:
    (tmp_path / "admin.sock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no socket: remove it"):
        await serve_admin(application(agent), tmp_path / "admin.sock")


async def test_a_directory_that_is_missing_is_named_with_the_remedy(
    agent: InMemoryAgent, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no such directory: make it"):
        await serve_admin(application(agent), tmp_path / "none" / "admin.sock")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="its directory is none"):
        await serve_admin(application(agent), tmp_path / "file" / "admin.sock")


async def test_two_agents_do_not_start_in_one_directory_at_once(agent: InMemoryAgent, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another agent is starting"):
            await serve_admin(application(agent), tmp_path / "admin.sock")
    finally:
        os.close(directory)


def test_a_directory_without_permission_is_named_with_the_remedy(traversable: Path) -> None:
    script = (
        "import asyncio, os, sys\nfrom pathlib import Path\nfrom aiohttp import web\n"
        "from agent.control.server import serve_admin\nfrom agent.errors import ConfigError\n"
        "os.setgroups([]); os.setgid(65533); os.setuid(65533)\n"
        "try: asyncio.run(serve_admin(web.Application(), Path(sys.argv[1])))\n"
        "except ConfigError as error: print(error)"
    )
    traversable.chmod(0o755)
    path = traversable / "admin.sock"
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    advice = "no permission: give its directory to the agent's user"
    assert result.stdout == f"admin.socket: cannot listen on {path}: {advice}\n"


async def test_the_socket_of_a_successor_outlives_its_predecessor(
    agent: InMemoryAgent, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    first = await serve_admin(application(agent), path)
    path.unlink()
    second = await serve_admin(application(agent), path)
    await first.cleanup()
    try:
        async with AdminClient(str(path)) as client:
            assert (await client.status()).name == "n"
    finally:
        await second.cleanup()


async def test_a_request_under_way_does_not_hold_up_the_end(tmp_path: Path) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        begun.set()
        await never.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/v1/status", hang)
    runner = await serve_admin(app, tmp_path / "admin.sock")
    async with AdminClient(str(tmp_path / "admin.sock"), timeout=30) as client:
        asked = asyncio.ensure_future(client.status())
        await asyncio.wait_for(begun.wait(), 10)
        await asyncio.wait_for(runner.cleanup(), 20)
        with pytest.raises(AdminError):
            await asked


async def test_a_metrics_port_that_is_taken_is_named_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            await serve_metrics(web.Application(), ("127.0.0.1", port))
    assert str(caught.value) == (
        f"metrics.listen: cannot listen on 127.0.0.1:{port}: the port is taken; choose another"
    )


async def test_a_metrics_address_of_another_machine_is_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^metrics\.listen: cannot listen on 192\.0\.2\.1:9464: .*; choose another$"
    ):
        await serve_metrics(web.Application(), ("192.0.2.1", 9464))


async def test_hundreds_of_clients_may_come_at_once(admin_socket: Path) -> None:
    clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) for _ in range(500)]
    try:
        for one in clients:  # the loop, which would accept them, has no turn meanwhile
            one.connect(str(admin_socket))
    finally:
        for one in clients:
            one.close()
