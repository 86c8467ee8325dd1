"""moto's S3 server as a process of its own, for keys that SeaweedFS refuses (`..`, `a//b`, `/abs`).

It accepts any credentials, so what it answers says nothing about signatures.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.harness.s3 import REGION, answers, free_ports, sdk_client, sdk_environment


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
        self._client: Any = sdk_client(self.endpoint, self.access_key, self.secret_key)
        try:
            if not answers(self._process, self._client.list_buckets, ready_within):
                raise RuntimeError("moto's server did not become ready")
        except BaseException:
            self.stop()
            raise

    def environment(self) -> dict[str, str]:
        """What an SDK needs in its environment to reach this server."""
        return sdk_environment(self.access_key, self.secret_key)

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
