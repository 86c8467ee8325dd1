"""moto's S3 server as a process of its own, for keys that SeaweedFS refuses (`..`, `a//b`, `/abs`).

It accepts any credentials, so what it answers says nothing about signatures.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from tests.harness.s3 import REGION, free_ports


class MotoS3:
    """The server, running from construction to `stop`; also a context manager."""

    def __init__(self, directory: Path | str, *, ready_within: float = 30.0) -> None:
        """Start, with its log in `directory`. Raises RuntimeError where it does not become ready."""
        self.access_key = "moto"
        self.secret_key = "moto"
        self.region = REGION
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        self._log = (Path(directory) / "moto.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={"PATH": os.environ["PATH"], "HOME": str(directory)},
            start_new_session=True,
        )
        self._client: Any = botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )
        try:
            self._await_ready(ready_within)
        except BaseException:
            self.stop()
            raise

    def environment(self) -> dict[str, str]:
        """What an SDK needs in its environment to reach this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A botocore S3 client of this server."""
        return self._client

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Store an object and give its ETag, with quotes; the bucket is made if need be."""
        with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
            self._client.create_bucket(Bucket=bucket)
        return str(self._client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"])

    def stop(self) -> None:
        """End the process, at once."""
        self._client.close()
        self._process.kill()
        self._process.wait(timeout=10)
        self._log.close()

    def __enter__(self) -> MotoS3:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_ready(self, within: float) -> None:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            with contextlib.suppress(BotoCoreError, ClientError):
                self._client.list_buckets()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.05)
                break
        raise RuntimeError("moto's server did not become ready")
