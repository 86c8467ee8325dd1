"""Replies by reference: what a pipe takes from a file comes out whole, and never into the next reply."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.content import Extent
from agent.mount import splicing
from agent.mount.splicing import Pipe, Pipes

HEAD = b"sixteen bytes -> "
CONTENT = os.urandom(300_000)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "object"
    path.write_bytes(CONTENT)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr(splicing, "PIPE_SIZE", 1 << 20)  # what anybody may have
    made = Pipe()
    yield made
    made.close()


def sent(pipe: Pipe, directory: Path) -> bytes:
    """What a pipe gives to a descriptor."""
    with (directory / "reply").open("w+b") as reply:
        pipe.send(reply.fileno())
        reply.seek(0)
        return reply.read()


@pytest.mark.parametrize(("offset", "length"), [(0, 300_000), (4096, 131072), (1001, 200_003)])
def test_a_reply_is_its_head_and_the_bytes_of_the_file(
    pipe: Pipe, file: int, tmp_path: Path, offset: int, length: int
) -> None:
    pipe.load(HEAD, file, Extent(offset, length))
    assert sent(pipe, tmp_path) == HEAD + CONTENT[offset : offset + length]


def test_a_file_that_is_shorter_leaves_nothing_in_the_pipe(pipe: Pipe, file: int, tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        pipe.load(HEAD, file, Extent(299_000, 2000))
    pipe.load(HEAD, file, Extent(0, 1000))
    assert sent(pipe, tmp_path) == HEAD + CONTENT[:1000]


def test_a_file_that_cannot_be_read_leaves_nothing_in_the_pipe(pipe: Pipe, file: int, tmp_path: Path) -> None:
    writing = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError):
        pipe.load(HEAD, writing, Extent(0, 1000))
    os.close(writing)
    pipe.load(HEAD, file, Extent(0, 1000))
    assert sent(pipe, tmp_path) == HEAD + CONTENT[:1000]


def test_a_reply_that_nobody_takes_leaves_nothing_in_the_pipe(pipe: Pipe, file: int, tmp_path: Path) -> None:
    pipe.load(HEAD, file, Extent(0, 200_000))
    with pytest.raises(OSError) as caught:
        pipe.send(file)  # opened for reading
    assert caught.value.errno == errno.EBADF
    pipe.load(HEAD, file, Extent(0, 1000))
    assert sent(pipe, tmp_path) == HEAD + CONTENT[:1000]


def test_where_pipes_may_not_be_so_large_there_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(splicing, "PIPE_SIZE", (1 << 31) + 1)  # more than a pipe can have
    before = len(os.listdir("/proc/self/fd"))
    with caplog.at_level("INFO"):
        pipes = Pipes(4)
    assert pipes.take() is None
    assert len(os.listdir("/proc/self/fd")) == before
    assert "fs.pipe-max-size" in caplog.text


def test_a_pipe_is_used_by_one_reply_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splicing, "PIPE_SIZE", 1 << 16)
    pipes = Pipes(2)
    first, second = pipes.take(), pipes.take()
    assert first is not None
    assert second is not None
    assert first is not second
    assert pipes.take() is None
    pipes.give_back(first)
    assert pipes.take() is first
    pipes.give_back(first)
    pipes.give_back(second)
    pipes.close()
    assert pipes.take() is None
