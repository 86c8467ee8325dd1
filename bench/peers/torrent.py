"""libtorrent alone: a seed at the origin, and a torrent at each node, all of whom know each other.

With its defaults, and tuned as Headrace has it (pieces of 1 MiB, everybody unchoked, plain disk access); no
DHT, LSD, UPnP or NAT-PMP in either, for there is nothing to find in the namespaces.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import libtorrent as lt

from agent.peers import swarm
from bench.peers.rig import Rig, Run, per_gib
from bench.peers.scenario import Scenario

PORT = 6881
LOOK_EVERY = 0.02  # seconds
QUIET = dict.fromkeys(("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"), False)


@dataclass(eq=False, slots=True)
class Torrent:
    """A `Way`."""

    name: str
    tuned: bool
    piece: int

    def takes(self, scenario: Scenario) -> bool:
        return scenario.plain

    def carry(self, rig: Rig, scenario: Scenario) -> Run:
        cluster, source = rig.cluster, rig.file()
        metainfo = cluster.directory / "torrent"
        metainfo.write_bytes(_metainfo(source, self.piece))
        hosts = [cluster.origin, *(node.host for node in cluster.nodes)]
        done = cluster.directory / "done"
        done.unlink(missing_ok=True)
        jobs = []
        for number, host in enumerate(hosts):
            path = source if not number else cluster.directory / f"torrent-{number}"
            others = [other.address for other in hosts[:number]]
            shared = {
                "metainfo": str(metainfo),
                "tuned": self.tuned,
                "done": str(done),
                "nodes": len(hosts) - 1,
            }
            own = {"own": host.address, "others": others, "path": str(path), "seed": not number}
            jobs.append((host, shared | own))
        before = rig.origin_sent()
        answers = rig.programs("bench.peers.torrent", jobs)[1:]
        origin = (rig.origin_sent() - before) / rig.size
        for _, job in jobs[1:]:
            Path(str(job["path"])).unlink()
        cpu = per_gib(sum(answer["cpu"] for answer in answers), rig.size, len(answers))
        seconds = [answer["seconds"] for answer in answers]
        return Run(scenario.name, self.name, rig.bound, seconds, origin, cpu)


DEFAULT = Torrent("libtorrent, defaults", tuned=False, piece=256 << 10)
TUNED = Torrent("libtorrent, tuned", tuned=True, piece=1 << 20)


def _metainfo(source: Path, piece: int) -> bytes:
    entry = lt.create_file_entry(source.name, source.stat().st_size)
    torrent = lt.create_torrent([entry], piece, lt.create_torrent.v1_only)
    lt.set_piece_hashes(torrent, str(source.parent))
    return lt.bencode(cast(Any, torrent.generate()))


def main() -> None:
    """One member of the swarm; it stays until all nodes have everything."""
    job = json.loads(sys.argv[1])
    settings = (dict(swarm.SETTINGS) if job["tuned"] else {}) | QUIET
    settings["listen_interfaces"] = f"{job['own']}:{PORT}"
    parameters = lt.session_params(cast(Any, settings))
    if job["tuned"]:
        parameters.disk_io_constructor = "posix_disk_io_constructor"
    session = lt.session(parameters)
    path = Path(job["path"])
    adding = lt.load_torrent_buffer(Path(job["metainfo"]).read_bytes())
    adding.save_path = str(path.parent)
    adding.renamed_files = cast(Any, {0: str(path)})
    adding.flags = lt.torrent_flags.seed_mode if job["seed"] else lt.torrent_flags.no_verify_files
    time.sleep(max(0.0, job["at"] - time.monotonic()))
    cpu = time.process_time()
    handle = session.add_torrent(adding)
    for other in job["others"]:
        handle.connect_peer((other, PORT))
    while not handle.status().is_seeding:
        time.sleep(LOOK_EVERY)
    answer = {"seconds": time.monotonic() - job["at"], "cpu": time.process_time() - cpu}
    done = Path(job["done"])
    if not job["seed"]:
        with done.open("ab") as file:
            file.write(b".")
    while not done.exists() or done.stat().st_size < job["nodes"]:
        time.sleep(LOOK_EVERY)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
