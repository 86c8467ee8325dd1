"""Blocking work of an origin in threads of its own, so that a file system that hangs harms nobody else.

A thread that hangs in the kernel cannot be ended. So what it writes goes through a guard that is shut when
its caller leaves: from then on the thread may still hang, but touches the sink no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agent.source import Sink, Urgency

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody waits for the bytes any more; only ever seen by the thread that brings them."""


class GuardedSink:
    """A sink that can be taken away from the thread that writes it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._shut = False

    @property
    def urgency(self) -> Urgency:
        return self._sink.urgency

    @property
    def position(self) -> int:
        return self._sink.position

    @property
    def end(self) -> int:
        return self._sink.end

    @property
    def unproven(self) -> bool:
        return self._sink.unproven

    def doubt(self) -> None:
        self._sink.doubt()

    def write(self, data: memoryview) -> None:
        """Pass the bytes on. Raises Abandoned once the guard is shut."""
        with self._lock:
            if self._shut:
                raise Abandoned
            self._sink.write(data)

    def shut(self) -> None:
        """Wait for the write under way, at most, and let no other through."""
        self._shut = True
        with self._lock:
            pass


class WorkPool:
    """A bounded pool of threads for one origin."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._asked: dict[str, asyncio.Future[Any]] = {}

    async def run(self, work: Callable[[], T], deadline: float) -> T:
        """The result of `work` within `deadline` seconds. Raises TimeoutError and what `work` raises."""
        async with asyncio.timeout(deadline):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def share(self, question: str, work: Callable[[], T], deadline: float) -> T:
        """As `run`, but whoever asks the same while it is being answered waits for that answer: a question
        that was given up holds one thread, however often it is asked again."""
        answer: asyncio.Future[T] | None = self._asked.get(question)
        if answer is None:
            answer = asyncio.get_running_loop().run_in_executor(self._threads, work)
            self._asked[question] = answer
            answer.add_done_callback(lambda done: self._answered(question, done))
        async with asyncio.timeout(deadline):
            return await asyncio.shield(answer)

    def _answered(self, question: str, answer: asyncio.Future[T]) -> None:
        del self._asked[question]
        _forget(answer)

    async def bring(self, work: Callable[[Sink], None], sink: Sink) -> None:
        """Let `work` write into the sink; when this ends, in whatever way, it writes no more."""
        guard = GuardedSink(sink)
        future = asyncio.get_running_loop().run_in_executor(self._threads, work, guard)
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            future.cancel()
            future.add_done_callback(_forget)
            await _shut(guard)
            raise

    def close(self) -> None:
        """Let the threads go; those that hang are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _shut(guard: GuardedSink) -> None:
    shutting = asyncio.ensure_future(asyncio.to_thread(guard.shut))
    while not shutting.done():
        with contextlib.suppress(asyncio.CancelledError):  # the caller raises the first one
            await asyncio.shield(shutting)


def _forget(future: asyncio.Future[T]) -> None:
    if not future.cancelled():
        future.exception()
