"""Everyone from the origin: each node has the whole file from it, by plain sockets (bench/raw.py)."""

from __future__ import annotations

import json
import sys
import time

from bench.child import BenchError
from bench.peers.rig import Rig, Run, per_gib
from bench.peers.scenario import Scenario
from bench.raw import connect, download

CONNECTIONS = 4


class Direct:
    """A `Way`."""

    name = "everyone from the origin"

    def takes(self, scenario: Scenario) -> bool:
        return scenario.plain

    def carry(self, rig: Rig, scenario: Scenario) -> Run:
        cluster, bucket = rig.cluster, rig.bucket()
        parameters = {"Bucket": bucket, "Key": "model/weights.safetensors"}
        url = cluster.s3.client().generate_presigned_url("get_object", Params=parameters, ExpiresIn=3600)
        paths = [cluster.directory / f"direct-{node.host.number}" for node in cluster.nodes]
        jobs = [
            (node.host, {"url": url, "size": rig.size, "path": str(path)})
            for node, path in zip(cluster.nodes, paths, strict=True)
        ]
        before = rig.origin_sent()
        answers = rig.programs("bench.peers.direct", jobs)
        origin = (rig.origin_sent() - before) / rig.size
        for path in paths:
            if path.stat().st_size != rig.size:
                raise BenchError("a download is not whole")
            path.unlink()
        cpu = per_gib(sum(answer["cpu"] for answer in answers), rig.size, len(jobs))
        return Run(
            scenario.name, self.name, rig.bound, [answer["seconds"] for answer in answers], origin, cpu
        )


WAY = Direct()


def main() -> None:
    """One node's download."""
    job = json.loads(sys.argv[1])
    time.sleep(max(0.0, job["at"] - time.monotonic()))
    cpu = time.process_time()
    download(job["size"], CONNECTIONS, job["path"], lambda: connect(job["url"]))
    print(json.dumps({"seconds": time.monotonic() - job["at"], "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
