"""The limit of a cold read: the raw download, in a process of its own."""

from __future__ import annotations

from bench.child import run_program
from bench.figures import Reading
from bench.site import Site

CONNECTIONS = (4, 8)


def raw_download(site: Site, bucket: str, key: str, size: int) -> Reading:
    """The better of 4 and of 8 connections, into a new file on the store's disk, which is removed."""
    job = {
        "way": "raw",
        "url": site.url(bucket, key),
        "size": size,
        "path": str(site.directory / "raw.bin"),
    }
    readings = [run_program("bench.receive", {**job, "connections": number}) for number in CONNECTIONS]
    return max(readings, key=lambda reading: reading.speed)
