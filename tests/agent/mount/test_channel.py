"""A mount's descriptor: what uses it once it is given back meets no other file."""

from __future__ import annotations

import errno
import os

import pytest

from agent.mount.channel import Channel
from tests.harness.inflight import request_table


def test_a_thread_that_comes_late_meets_no_file_that_has_the_descriptor_s_number_now() -> None:
    table = request_table(16)
    ours, theirs = os.pipe()
    channel = Channel(ours, 1, table)
    number = channel.retire()
    os.close(number)
    other, fill = os.pipe()  # the lowest free number: the channel's
    assert other == number
    os.write(fill, b"an object's bytes")
    with pytest.raises(OSError) as refused:
        channel.receive()
    assert refused.value.errno == errno.EBADF
    assert not channel.send(b"a reply")
    assert os.read(other, 100) == b"an object's bytes"
    assert not table.left_over()
    for fd in (other, fill, theirs):
        os.close(fd)
