"""An origin that keeps its readers waiting, for the workload `waiting`: `python -m bench.held_server COUNT`.

A tree by its JSON index (agent/origin/http_index.py): the first 16 MiB of the file `warm` are answered; its
other 8 MiB, and COUNT files `cold-0`, `cold-1` ..., never are, so that none of them gets complete. It prints
its port and serves until it is ended, in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MIB = 1024 * 1024
ANSWERED, WARM_SIZE, COLD_SIZE = 16 * MIB, 24 * MIB, MIB
ETAG = '"1"'


def index(count: int) -> bytes:
    """The tree's index."""
    sizes = {"warm": WARM_SIZE} | {f"cold-{number}": COLD_SIZE for number in range(count)}
    files = [{"path": path, "size": size, "etag": ETAG} for path, size in sizes.items()]
    return json.dumps({"version": 1, "files": files}).encode()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    tree = b""
    block = os.urandom(MIB)

    def do_GET(self) -> None:
        """Answer, or wait until the client goes away."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.path == "/index.json":
            self._head(200, len(self.tree))
            self.wfile.write(self.tree)
        elif self.path == "/warm" and asked is not None and int(asked[2]) < ANSWERED:
            start, last = int(asked[1]), int(asked[2])
            self._head(206, last - start + 1, ("Content-Range", f"bytes {start}-{last}/{WARM_SIZE}"))
            for offset in range(start, last + 1, MIB):
                self.wfile.write(self.block[: last + 1 - offset])
        else:
            self.connection.recv(1)
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing of requests."""

    def _head(self, status: int, length: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(length)), ("ETag", ETAG), *headers):
            self.send_header(name, value)
        self.end_headers()


class Server(ThreadingHTTPServer):
    """One thread for each connection; they end with the process."""

    daemon_threads = True
    request_queue_size = 128


def main(arguments: list[str]) -> None:
    """Serve a tree with so many cold files."""
    Handler.tree = index(int(arguments[0]))
    with Server(("127.0.0.1", 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
