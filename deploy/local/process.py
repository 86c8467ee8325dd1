"""One process with its log in a file: started, waited for with a deadline, stopped or killed."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.local.signals import deferred_signals

KILLED_WITHIN = 5.0  # seconds after SIGKILL; a process that is still there waits for its own mount
PROBE_EVERY = 0.02  # seconds between two probes of a process that is starting
SHOWN_LINES = 25  # of a log, in an error


class StackError(RuntimeError):
    """A process did not do what it should; the first line says what, the end of its log follows."""


class Process:
    """A running process. It has a session of its own, so Ctrl-C on a terminal reaches only its owner."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        directory: Path,
        environment: Mapping[str, str],
        output: int | None = None,
    ) -> None:
        """Start `command` in `directory`; what it prints is appended to `log`, but for `output` (a pipe)."""
        self.name = name
        self.log = log
        with log.open("ab") as sink, deferred_signals():
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=sink if output is None else output,
                stderr=sink,
                cwd=directory,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def await_ready(self, probe: Callable[[], bool], within: float) -> None:
        """Return once `probe` says True. Raises StackError where the process ends first or takes longer."""
        deadline = time.monotonic() + within
        while not probe():
            if time.monotonic() > deadline:
                raise self.error(f"was not ready within {within:.0f} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._popen.wait(timeout=PROBE_EVERY)
                raise self.error(f"ended with status {status} before it was ready")

    def wait(self, within: float) -> int:
        """The exit status, negative for a signal. Raises StackError where it still runs after `within`."""
        try:
            return self._popen.wait(timeout=within)
        except subprocess.TimeoutExpired:
            raise self.error(f"did not end within {within:.0f} s") from None

    def output(self, within: float) -> str:
        """What it printed to its end, where `output` was a pipe; killed and StackError after `within`."""
        try:
            return str(self._popen.communicate(timeout=within)[0].decode())
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.error(f"did not end within {within:.0f} s and was killed") from None

    def stop(self, within: float) -> None:
        """SIGTERM; after `within` SIGKILL and StackError. Nothing happens where it has ended."""
        if not self.running:
            return
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(timeout=within)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.error(f"did not stop within {within:.0f} s of SIGTERM and was killed") from None

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Raises StackError where the kernel cannot end it."""
        self._popen.kill()
        self.wait(KILLED_WITHIN)
        if self._popen.stdout is not None:
            self._popen.stdout.close()

    def error(self, what: str) -> StackError:
        """An error about this process, with the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        return StackError("\n".join([f"{self.name} {what}; the end of {self.log}:", *lines]))
