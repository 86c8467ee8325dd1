"""The FUSE threads: one pool over all mounts. They read requests, answer what needs no waiting, and no more.

All threads wait on one epoll for the descriptors of all mounts and for an eventfd that brings the jobs of
the loop: reads whose bytes have come, which the loop must not copy itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from agent.mount.channel import Channel, Request

log = logging.getLogger(__name__)

THREADS = 4  # measured: more brought nothing on few cores; each has a resident buffer of 1 MiB


class Server(Protocol):
    """Who answers a channel's requests; called from the pool's threads."""

    @property
    def channel(self) -> Channel: ...

    def serve(self, request: Request) -> None: ...

    def gone(self) -> None:
        """The mount is gone: called once, by the thread that saw it, after the channel left the pool."""


class Pool:
    """The threads; started by the constructor, ended by `close`."""

    def __init__(self, threads: int = THREADS) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._servers: dict[int, Server] = {}
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fuse-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, server: Server) -> None:
        """Serve a channel from now on."""
        self._servers[server.channel.fd] = server
        # Edge-triggered: a new request wakes one thread and not all of them (measured: +10 % on a cold read).
        # Whoever is woken must therefore go on until there is no request left.
        self._epoll.register(server.channel.fd, select.EPOLLIN | select.EPOLLET)

    def submit(self, job: Callable[[], None]) -> None:
        """Have a thread of the pool run a job."""
        self._jobs.append(job)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the threads; requests that come from now on wait in the kernel for a successor."""
        self._closing = True
        os.eventfd_write(self._wake, len(self._threads))
        for thread in self._threads:
            thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _work(self) -> None:
        while not self._closing:
            for fd, _ in self._epoll.poll(maxevents=1):
                if fd == self._wake:
                    self._run_job()
                else:
                    self._drain(fd)

    def _run_job(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        if self._jobs:
            with contextlib.suppress(IndexError):
                self._jobs.popleft()()

    def _drain(self, fd: int) -> None:
        server = self._servers.get(fd)
        if server is None:
            return
        while not self._closing:
            try:
                request = server.channel.receive()
            except OSError as error:
                if error.errno not in (errno.ENODEV, errno.EBADF):
                    log.error("cannot read from a mount: %s", error.strerror)
                self._remove(server)
                return
            if request is None:
                return
            try:
                server.serve(request)
            except Exception:
                # The thread serves every mount: it must outlive a fault that one request found.
                log.exception("a request could not be answered")
                request.refuse(errno.EIO)

    def _remove(self, server: Server) -> None:
        with self._lock:
            if self._servers.pop(server.channel.fd, None) is None:
                return
            with contextlib.suppress(OSError):
                self._epoll.unregister(server.channel.fd)
        server.gone()
