from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.control.client import AdminClient, AdminError

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(path: Path, answer: Answer) -> AsyncIterator[None]:
    """Something at the socket that is no agent of ours."""
    listener = await asyncio.start_unix_server(answer, path)
    async with listener:
        yield


def saying(data: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    return answer


async def ask(path: Path, timeout: float = 10) -> AdminError:
    with pytest.raises(AdminError) as caught:
        async with AdminClient(str(path), timeout=timeout) as client:
            await client.status()
    return caught.value


async def test_no_agent_is_told_with_the_socket_and_what_to_do(tmp_path: Path) -> None:
    error = await ask(tmp_path / "none.sock")
    assert (error.status, error.code) == (0, "unreachable")
    assert str(error) == f"no agent at {tmp_path / 'none.sock'}: is headrace-agent running?"


async def test_an_agent_that_is_silent_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.set()

    async with server(tmp_path / "s", silent):
        error = await ask(tmp_path / "s", timeout=0.1)
        await asyncio.wait_for(ended.wait(), 10)
    assert (error.status, error.code) == (0, "timeout")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "unclear"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnope", "unclear"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe", "unclear"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60000, "unclear"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "unreachable"),
        (b"no HTTP at all\r\n\r\n", "unreachable"),
        (b"", "unreachable"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\n<h1>", "unknown"),
        (b"HTTP/1.1 503 Oh\r\nContent-Length: 15\r\n\r\n" + b'{"error": "no"}', "unknown"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_an_error_like_any_other(
    tmp_path: Path, body: bytes, code: str
) -> None:
    async with server(tmp_path / "s", saying(body)):
        assert (await ask(tmp_path / "s")).code == code


async def test_fields_of_a_newer_agent_are_passed_over(tmp_path: Path) -> None:
    body = (
        b'{"name": "n", "build": "9", "uptime_seconds":1, "store": [], "mounts": 0, "ready": true, "new": 1}'
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with server(tmp_path / "s", saying(head + body)), AdminClient(str(tmp_path / "s")) as client:
        assert (await client.status()).build == "9"


async def test_a_client_outside_its_context_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(RuntimeError, match="context"):
        await AdminClient("/nowhere").status()
