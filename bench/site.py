"""What all workloads share: one S3 server, one directory on one disk, and the objects that are read."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.local.layout import parent_directory
from deploy.local.s3 import SeaweedS3

MIB = 1024 * 1024


class Site:
    """A running S3 server and a directory of its own, which is removed at the end."""

    def __init__(self, directory: Path, s3: SeaweedS3, rivals: bool) -> None:
        self.directory = directory
        self.s3 = s3
        self.rivals = rivals
        self._uploaded: set[tuple[str, str]] = set()

    @classmethod
    @contextlib.contextmanager
    def started(cls, rivals: bool) -> Iterator[Site]:
        """Start the server in a new directory, beside the one of the stack: both on the same disk."""
        directory = Path(tempfile.mkdtemp(prefix="headrace-bench-", dir=parent_directory()))
        try:
            with SeaweedS3(directory / "s3") as s3:
                yield cls(directory, s3, rivals)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def object(self, bucket: str, key: str, size: int) -> Path:
        """Have an object of `size` bytes in a bucket; the file it was made from is on the store's disk."""
        path = self.directory / "objects" / bucket / key
        if (bucket, key) not in self._uploaded:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_random(path, size)
            self.s3.put(bucket, key, path)
            self._uploaded.add((bucket, key))
        return path

    def url(self, bucket: str, key: str) -> str:
        """A presigned URL of an object, good for an hour."""
        parameters = {"Bucket": bucket, "Key": key}
        url: str = self.s3.client().generate_presigned_url("get_object", Params=parameters, ExpiresIn=3600)
        return url

    def fresh(self, prefix: str) -> Path:
        """A new directory."""
        return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self.directory))


def _write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - file.tell())))
