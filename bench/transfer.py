"""Workloads `tls` and `http`: the transfer engine alone, from a local server, beside raw sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.child import ROOT, BenchError, run, run_program
from bench.figures import SPEED, Reading
from bench.options import Options
from bench.site import Site
from bench.workload import HEADRACE, Measure, Subjects, Workload

CONNECTIONS = 8
RECEIVE = "bench.receive"  # the child that takes the bytes
TCP_ULP = 31  # linux/tcp.h


@contextlib.contextmanager
def _serving(size: int, certificate: tuple[Path, Path] | None) -> Iterator[str]:
    """The server in its own process; the URL of its one object."""
    command = [sys.executable, "-m", "bench.ranged_server", str(size), *map(str, certificate or ())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise BenchError("the local server did not start")
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{port}/object"
    finally:
        process.kill()
        process.communicate()


def _certificate(site: Site) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    certificate, key = site.directory / "tls.pem", site.directory / "tls.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-days", "2", "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"]
    run(["openssl", "req", "-x509", *curve, *name, "-keyout", str(key), "-out", str(certificate)])
    return certificate, key


def _job(site: Site, options: Options, url: str, way: str) -> dict[str, object]:
    return {
        "way": way,
        "url": url,
        "size": options.size,
        "connections": CONNECTIONS,
        "path": str(site.directory / "transfer.bin"),
    }


@contextlib.contextmanager
def _open_http(site: Site, options: Options) -> Iterator[Subjects]:
    with _serving(options.size, None) as url:
        yield {
            "raw HTTP": lambda _: run_program(RECEIVE, _job(site, options, url, "raw")),
            HEADRACE: lambda _: run_program(RECEIVE, _job(site, options, url, "engine")),
        }


@contextlib.contextmanager
def _open_tls(site: Site, options: Options) -> Iterator[Subjects]:
    certificate = _certificate(site)
    environment = {**os.environ, "SSL_CERT_FILE": str(certificate[0])}

    def way(name: str) -> Measure:
        def measure(_: int) -> Reading:
            job = _job(site, options, url, name)
            return run_program(RECEIVE, {**job, "cafile": str(certificate[0])}, environment)

        return measure

    with _serving(options.size, certificate) as url:
        yield {
            "raw TLS": way("raw"),
            HEADRACE: way("engine"),
            "kernel TLS": way("raw-ktls") if kernel_tls() else None,
        }


def kernel_tls() -> bool:
    """Whether a connected socket can be given to the kernel's TLS (Documentation/networking/tls.rst)."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as sock,
    ):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError:
            return False
    return True


HTTP = Workload(name="http", title="transfer engine, HTTP", unit=SPEED, limit="raw HTTP", open=_open_http)
TLS = Workload(name="tls", title="transfer engine, TLS", unit=SPEED, limit="raw TLS", open=_open_tls)
