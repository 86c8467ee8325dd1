"""Headrace on one machine: an S3 server, the holder, the agent and the CSI service, and a clean end.

Each is a process of its own, as in a cluster, and can be stopped, killed and started by itself. The agent
is an ordinary user without a capability (unprivileged.py); its credentials are in its environment, which
only that user and root can read. The end always leaves no mount, no process and no directory: signals wait
while it runs, what does not stop is killed, and what hangs on a mount is freed by aborting its connection.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from csi.mounting import CallFailed, mount, umount
from deploy.local.layout import AgentSettings, Layout
from deploy.local.mounts import abort_connections, detach_below, mounts_below
from deploy.local.peering import AGENT_USER
from deploy.local.probes import accepts, answers, samples
from deploy.local.process import Process, StackError
from deploy.local.s3 import SeaweedS3, free_ports
from deploy.local.signals import deferred_signals, sigterm_raises

CHECKOUT = Path(__file__).resolve().parents[2]
READY_WITHIN = 30.0  # seconds; each process takes one or two
STOPPED_WITHIN = 15.0  # seconds after SIGTERM
COMMAND_WITHIN = 60.0  # seconds for one mount or umount


class LocalStack:
    """The processes. A context manager that starts all of them; or start each, and call `close`."""

    def __init__(
        self,
        settings: AgentSettings | None = None,
        *,
        s3: SeaweedS3 | None = None,
        agent_user: str = AGENT_USER,
        environment: Mapping[str, str] | None = None,
        cgroup: Path | None = None,
        descriptors: int | None = None,
        stopped_within: float = STOPPED_WITHIN,
    ) -> None:
        """Make the directory; nothing runs yet. `s3` is a server to use and leave running, else an own one.

        `environment` is added to the agent's, and it is started in `cgroup` where one is given, with at most
        `descriptors` open files; after `stopped_within` seconds SIGTERM gives way to SIGKILL.
        Raises StackError without root.
        """
        if os.geteuid() != 0:
            raise StackError("mounting needs root; run it with sudo")
        self.settings = settings or AgentSettings()
        self._agent_user = agent_user
        self._agent_environment = dict(environment or {})
        self._agent_cgroup = cgroup
        self._agent_descriptors = descriptors
        self._stopped_within = stopped_within
        self._given_s3 = s3
        self.code = CHECKOUT  # where holder, agent and serve are started from: another build is another tree
        self._own_s3: SeaweedS3 | None = None
        self._processes: dict[str, Process] = {}
        self._devices: set[str] = set()
        self._signals = ExitStack()
        self._named = 0
        self._closed = False
        (self.metrics_port,) = free_ports(1)
        with deferred_signals():
            self.layout = Layout.create(agent_user)
            self.layout.make_stores(self.settings.stores(self.layout))

    def __enter__(self) -> LocalStack:
        try:
            self._signals.enter_context(sigterm_raises())
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def s3(self) -> SeaweedS3:
        """The S3 server. Raises StackError where it is not started."""
        server = self._given_s3 or self._own_s3
        if server is None:
            raise StackError("the S3 server is not started")
        return server

    def start(self) -> None:
        """Start all four, one after the other, each once the one before is ready."""
        self.start_s3()
        self.start_holder()
        self.start_agent()
        self.start_serve()

    def start_s3(self) -> None:
        """Start the own S3 server; nothing happens where one was given."""
        if self._given_s3 is None and self._own_s3 is None:
            with deferred_signals():
                self._own_s3 = SeaweedS3(self.layout.s3)

    def start_holder(self) -> None:
        """Start `headrace-csi hold`."""
        path = self.layout.holder_socket
        arguments = ["--agent-user", self._agent_user]
        for store in self.settings.stores(self.layout):
            arguments += ["--store", str(store)]
        command = [*_csi("hold"), "--holder-socket", str(path), *arguments]
        self._start("holder", command, self._environment(), lambda: accepts(path, socket.SOCK_SEQPACKET))

    def start_agent(self) -> None:
        """Write the configuration file and start `headrace-agent`."""
        layout = self.layout
        layout.config.write_text(self.config())
        layout.config.chmod(0o644)
        environment = self._environment() | self.s3.environment() | self._agent_environment
        agent = [sys.executable, "-m", "agent", "--config", str(layout.config)]
        command = [*self._in_cgroup(), *self._limited(), *self._unprivileged(), "--", *agent]
        self._start("agent", command, environment, lambda: answers(layout.admin_socket, "/v1/status"))

    def start_serve(self) -> None:
        """Start `headrace-csi serve`."""
        layout = self.layout
        command = [
            *_csi("serve"),
            *("--csi-socket", str(layout.csi_socket)),
            *("--holder-socket", str(layout.holder_socket)),
            *("--admin-socket", str(layout.admin_socket)),
            *("--target-root", str(layout.targets)),
        ]
        self._start("serve", command, self._environment(), lambda: accepts(layout.csi_socket))

    def _in_cgroup(self) -> list[str]:
        if self._agent_cgroup is None:
            return []
        join = 'echo $$ > "$0" && exec "$@"'
        return ["sh", "-c", join, str(self._agent_cgroup / "cgroup.procs")]

    def _limited(self) -> list[str]:
        if self._agent_descriptors is None:
            return []
        return ["prlimit", f"--nofile={self._agent_descriptors}", "--"]

    def config(self) -> str:
        """The agent's configuration file."""
        reached: dict[str, str | int | bool] = {
            "endpoint_url": self.s3.endpoint,
            "region": self.s3.region,
            "path_style": True,
        }
        return self.settings.toml(self.layout, self.metrics_port, reached)

    def stop_holder(self) -> None:
        """Stop it by SIGTERM. Raises StackError where it had to be killed."""
        self._end("holder", kill=False)

    def kill_holder(self) -> None:
        """End it by SIGKILL."""
        self._end("holder", kill=True)

    def stop_agent(self) -> None:
        """Stop it by SIGTERM. Raises StackError where it had to be killed."""
        self._end("agent", kill=False)

    def kill_agent(self) -> None:
        """End it by SIGKILL."""
        self._end("agent", kill=True)

    def restart_agent(self) -> None:
        """Stop it by SIGTERM and start it again."""
        self.stop_agent()
        self.start_agent()

    def stop_serve(self) -> None:
        """Stop it by SIGTERM. Raises StackError where it had to be killed."""
        self._end("serve", kill=False)

    def kill_serve(self) -> None:
        """End it by SIGKILL."""
        self._end("serve", kill=True)

    def process(self, name: str) -> Process:
        """The running `holder`, `agent` or `serve`. Raises StackError where it does not run."""
        if name not in self._processes:
            raise StackError(f"the {name} is not started")
        return self._processes[name]

    def process_runs(self, name: str) -> bool:
        """Whether the `holder`, `agent` or `serve` is started, and has not been ended."""
        return name in self._processes

    def target(self) -> Path:
        """A new directory to mount on."""
        self._named += 1
        target = self.layout.targets / f"{self._named}"
        target.mkdir()
        return target

    def mount(self, uri: str) -> Path:
        """Mount a dataset as `headrace-csi mount` does, and give its directory. Raises StackError."""
        target = self.target()
        try:
            mount(str(self.layout.csi_socket), {"uri": uri}, str(target), deadline=COMMAND_WITHIN)
        except CallFailed as error:
            raise StackError(f"{uri}: {error}") from error
        self._note_devices()
        return target

    def umount(self, target: Path) -> None:
        """Unmount as `headrace-csi umount` does, and remove the directory. Raises StackError."""
        try:
            umount(str(self.layout.csi_socket), str(target))
        except CallFailed as error:
            raise StackError(f"{target}: {error}") from error
        target.rmdir()

    def csi(self, name: str, *arguments: str, within: float = COMMAND_WITHIN) -> str:
        """What `headrace-csi NAME` prints, told where the CSI socket is. Raises StackError as `run` does."""
        socket_option = ("--csi-socket", str(self.layout.csi_socket))
        return self.run([*_csi(name), *socket_option, *arguments], within)

    def run(self, command: Sequence[str], within: float) -> str:
        """Run a command to its end and give its output. Raises StackError where it fails or takes longer.

        Whatever reads a mount runs like this: in another process, with a time limit.
        """
        self._named += 1
        name = f"command {self._named}"
        log = self.layout.logs / f"command-{self._named}.log"
        with deferred_signals():
            process = Process(
                name,
                command,
                log,
                directory=CHECKOUT,
                environment=self._environment(),
                output=subprocess.PIPE,
            )
            self._processes[name] = process
        try:
            output = process.output(within)
            if status := process.wait(within):
                raise process.error(f"({' '.join(command)}) ended with status {status}")
            return output
        finally:
            if not process.running:
                del self._processes[name]

    def metrics(self) -> dict[str, float]:
        """The agent's metrics, by name and labels as the text format writes them. Raises OSError."""
        return samples(self.metrics_port)

    def close(self) -> None:
        """End everything, whatever state it is in; a second call does nothing.

        Raises StackError, at the end, for what had to be killed or could not be taken away.
        """
        if self._closed:
            return
        with self._signals, deferred_signals():  # the handlers go back inside out
            self._closed = True
            problems = self._clean()
        if problems:
            raise StackError("\n".join(problems))

    def _clean(self) -> list[str]:
        """Commands and `serve` first; the agent before the holder, which leaves mounts that an agent has."""
        self._note_devices()
        problems: list[str] = []
        order = [name for name in self._processes if name.startswith("command")]
        for name in [*order, "serve", "agent", "holder"]:
            if name in self._processes:
                _noting(problems, lambda name=name: self._end(name, kill=name in order))  # type: ignore[misc]
        _noting(problems, lambda: detach_below(self.layout.root))
        if self._processes:
            _noting(problems, self._free)
        if self._own_s3 is not None:
            _noting(problems, self._own_s3.stop)
        if mounts_below(self.layout.root):
            problems.append(f"{self.layout.root} has mounts that cannot be taken away; it is left")
        else:
            _noting(problems, self.layout.remove)
        return problems

    def _free(self) -> None:
        """The last resort: what SIGKILL did not end waits for a mount of ours."""
        abort_connections(self._devices, self.layout.control)
        for name in list(self._processes):
            self._end(name, kill=True)

    def _note_devices(self) -> None:
        self._devices |= {entry.device for entry in mounts_below(self.layout.root) if entry.ours}

    def _start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], ready: Callable[[], bool]
    ) -> None:
        if name in self._processes:
            raise StackError(f"the {name} is started already")
        log = self.layout.logs / f"{name}.log"
        with deferred_signals():
            process = Process(name, command, log, directory=self.code, environment=environment)
            self._processes[name] = process
        process.await_ready(ready, READY_WITHIN)

    def _end(self, name: str, *, kill: bool) -> None:
        process = self.process(name)
        try:
            if kill:
                process.kill()
            else:
                process.stop(self._stopped_within)
        finally:
            if not process.running:
                del self._processes[name]

    def _unprivileged(self) -> list[str]:
        """The command that becomes the agent's user, with all that Python needs within its reach."""
        needed = dict.fromkeys(
            [self.code / "agent", self.code / "csi", Path(sys.prefix), Path(sys.base_prefix)]
        )
        return [
            *("unshare", "--mount", "--propagation", "private", "--"),
            *(sys.executable, "-m", "deploy.local.unprivileged", self._agent_user, str(self.layout.stage)),
            *map(str, needed),
        ]

    def _environment(self) -> dict[str, str]:
        """A small one, the same whoever calls: no proxies, no credentials, no settings of Python's."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.layout.admin),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            # All is on loopback, without TLS, and to load the world's certificates is a tenth of a start.
            "SSL_CERT_FILE": os.devnull,
        }


def _csi(command: str) -> list[str]:
    return [sys.executable, "-m", "csi", command]


def _noting(problems: list[str], step: Callable[[], None]) -> None:
    """Do one step of the cleaning; the next must be done whatever comes of it."""
    try:
        step()
    except (StackError, OSError, subprocess.SubprocessError) as error:
        problems.append(str(error))
