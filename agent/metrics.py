"""What the agent counts, each metric declared once with its help and its labels.

One `Metrics` is made at start-up and passed to the parts: there is no global registry, so tests and several
agents in one process do not mix. Children that a hot path touches are bound once, as attributes or in
tables that the part keeps, so that no read pays for a label look-up. Counters take their own lock: any
thread may count. What each read of bytes that are there counts is summed up beside them, and told to them
when somebody looks (`hit`).
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from agent.errors import HeadraceError

# A chunk of 8 MiB takes 10 ms from a fast origin next door, and `mount.patience` (5 minutes) is the worst.
FILL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

DAMAGE_KINDS = ("index", "file", "unknown", "chunk", "object")

Labels = Mapping[str, tuple[str, ...]]  # label -> its values, () where they are not known beforehand


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric as the README lists it; `name` is the one that is queried."""

    name: str
    kind: str
    labels: Labels
    help: str


@dataclass(frozen=True, slots=True)
class OriginFetches:
    """What is counted of the fetches from one origin: requests for bytes, and the bytes that came."""

    requests: Counter
    bytes: Counter


def build_version() -> str:
    """The version of the installed package."""
    return importlib.metadata.version("headrace")


class Metrics:
    """All metrics of one agent, in a registry of its own."""

    def __init__(self, build: str | None = None) -> None:
        self.registry = CollectorRegistry()
        self.declared: list[Declared] = []
        self._hits = self._hit_bytes = 0
        self._hit_lock = threading.Lock()
        self._declare_reads()
        self._declare_origins()
        self._declare_fills()
        self._declare_state()
        self._declare_eviction()
        self._declare_mounts()
        self._declare_peers()
        text = "Which build of Headrace this is; always 1."
        self._note("headrace_build_info", "gauge", {"version": ()}, text)
        Info("headrace_build", text, registry=self.registry).info({"version": build or build_version()})

    def _declare_reads(self) -> None:
        read_bytes = self._counter(
            "headrace_read_bytes_total",
            "Bytes answered to readers of the mounts: `origin` while they arrived, `store` when present.",
            {"source": ("origin", "store")},
        )
        self.read_bytes_origin = read_bytes.labels("origin")
        self._read_bytes_store = read_bytes.labels("store")
        reads = self._counter(
            "headrace_reads_total",
            "Reads through the mounts: a `hit` found all its bytes present, a `miss` had to wait for some.",
            {"result": ("hit", "miss")},
        )
        self._reads_hit = reads.labels("hit")
        self._reads_miss = reads.labels("miss")
        self.waiting_reads = self._gauge("headrace_waiting_reads", "Reads that wait for their bytes now.")

    def _declare_origins(self) -> None:
        self._origin_bytes = self._counter(
            "headrace_origin_bytes_total", "Bytes received from the origins.", {"origin": ()}
        )
        self._origin_requests = self._counter(
            "headrace_origin_requests_total",
            "Requests sent to the origins: for bytes (`object`), or for listings and headers (`metadata`).",
            {"origin": (), "kind": ("object", "metadata")},
        )

    def _declare_fills(self) -> None:
        fills = self._counter(
            "headrace_fills_total",
            "Fills that ended: `passed` when nothing was kept, `cancelled` when the last reader had left.",
            {"result": ("done", "passed", "failed", "cancelled")},
        )
        self.fills_done = fills.labels("done")
        self.fills_passed = fills.labels("passed")
        self.fills_failed = fills.labels("failed")
        self.fills_cancelled = fills.labels("cancelled")
        self.fill_seconds = self._histogram(
            "headrace_fill_seconds", "Seconds that a fill took, from its start to the chunk in the index."
        )
        self.prefetch_bytes = self._plain_counter(
            "headrace_prefetch_bytes_total", "Bytes of the fills that prefetch began."
        )

    def _declare_state(self) -> None:
        self.errors = self._counter(
            "headrace_errors_total", "Errors by class, each counted where it was answered.", {"class": ()}
        )
        self.store_bytes = self._gauge_by(
            "headrace_store_bytes", "Bytes of the chunks that are present.", {"directory": ()}
        )
        self.store_chunks = self._gauge_by(
            "headrace_store_chunks", "Chunks that are present.", {"directory": ()}
        )
        damage = self._counter(
            "headrace_store_damage_total",
            "Damage found and repaired: an `index` set aside; a `file` that is gone, of a wrong length or no "
            "file; an `unknown` file, which the index does not have; a `chunk` or an `object` whose bytes "
            "are not those of its checksum.",
            {"kind": DAMAGE_KINDS},
        )
        self.damage = {kind: damage.labels(kind) for kind in DAMAGE_KINDS}
        self.scrubbed_bytes = self._plain_counter(
            "headrace_scrubbed_bytes_total", "Bytes that the scrub has read and compared with their checksum."
        )

    def _declare_eviction(self) -> None:
        self.evicted_bytes = self._plain_counter(
            "headrace_evicted_bytes_total", "Bytes that eviction has taken out of the store."
        )
        evicted = self._counter(
            "headrace_evicted_total",
            "What eviction has taken: whole objects (`object`), or chunks of others (`chunk`).",
            {"kind": ("object", "chunk")},
        )
        self.evicted_objects = evicted.labels("object")
        self.evicted_chunks = evicted.labels("chunk")
        self.passing_bytes = self._plain_counter(
            "headrace_passing_bytes_total",
            "Bytes of chunks that were read through without being kept: the store could take nothing.",
        )
        self.store_state = self._gauge_by(
            "headrace_store_state",
            "1 for the state that a store directory is in; `full` and `failed` ones take no more fills.",
            {"directory": (), "state": ("ok", "full", "failed")},
        )
        self.pins = self._gauge("headrace_pins", "Pins that hold now.")

    def _declare_mounts(self) -> None:
        self.mounts = self._gauge("headrace_mounts", "Mounts that the agent serves.")
        self.promoted_mounts = self._gauge(
            "headrace_promoted_mounts", "Bind mounts of complete datasets, which nobody has to serve."
        )
        self.holder_connected = self._gauge(
            "headrace_holder_connected",
            "1 while the holder is there; without it mounts are served on, and new ones fail.",
        )
        opens = self._counter(
            "headrace_opens_total",
            "Files opened: served by the agent (`cached`), or by the kernel alone (`passthrough`).",
            {"mode": ("cached", "passthrough")},
        )
        self.opens_cached = opens.labels("cached")
        self.opens_passthrough = opens.labels("passthrough")
        self.fuse_requests = self._counter(
            "headrace_fuse_requests_total", "FUSE requests by their opcode's name.", {"opcode": ()}
        )
        self._fuse_reads = self.fuse_request("read")

    def _declare_peers(self) -> None:
        exchanged = self._counter(
            "headrace_peer_bytes_total",
            "Bytes exchanged with peers: `received` and right, or `sent`.",
            {"direction": ("received", "sent")},
        )
        self.peer_bytes_received = exchanged.labels("received")
        self.peer_bytes_sent = exchanged.labels("sent")
        reasons = ("absent", "silent", "slow", "wrong")
        failures = self._counter(
            "headrace_peer_failures_total",
            "Times that a peer did not bring what was asked of it: it was `silent` or gone, the bytes were "
            "`absent` there, it was too `slow`, or what it sent was `wrong`.",
            {"reason": reasons},
        )
        self.peer_failures = {reason: failures.labels(reason) for reason in reasons}
        self.peer_paths_left = self._plain_counter(
            "headrace_peer_paths_left_total",
            "Times that a reader left a peer for the origin because that was quicker: no failure of a peer.",
        )
        self.peer_routes_late = self._plain_counter(
            "headrace_peer_routes_late_total",
            "Times that a fetch went to the origin because the tracker had not answered in time.",
        )
        self._declare_swarm()
        self.peer_refusals = self._plain_counter(
            "headrace_peer_refusals_total", "Requests at the peers' port that showed no good token."
        )

    def _declare_swarm(self) -> None:
        moved = self._counter(
            "headrace_swarm_bytes_total",
            "Bytes exchanged in the swarm: `received` and recorded, or `sent`.",
            {"direction": ("received", "sent")},
        )
        self.swarm_received = moved.labels("received")
        self.swarm_sent = moved.labels("sent")
        self.swarm_hashed_bytes = self._plain_counter(
            "headrace_swarm_hashed_bytes_total", "Bytes of the store whose pieces were hashed for the swarm."
        )
        self.swarm_torrents = self._gauge("headrace_swarm_torrents", "Torrents that this agent is in now.")

    def hit(self, length: int) -> None:
        """Count a READ that found all its bytes, so many, in the store."""
        with self._hit_lock:
            self._hits += 1
            self._hit_bytes += length

    def missed(self) -> None:
        """Count a READ that has to wait for some of its bytes."""
        self._reads_miss.inc()
        self._fuse_reads.inc()

    def fuse_request(self, opcode: str) -> Counter:
        """The counter of one opcode, to be kept by the caller; READs are counted by `hit` and `missed`."""
        return self.fuse_requests.labels(opcode)

    def origin_fetches(self, origin: str) -> OriginFetches:
        """The counters of the fetches from one origin, to be kept by the caller."""
        return OriginFetches(
            self._origin_requests.labels(origin, "object"), self._origin_bytes.labels(origin)
        )

    def origin_metadata_requests(self, origin: str) -> Counter:
        """The counter of requests for listings and headers to one origin, to be kept by the caller."""
        return self._origin_requests.labels(origin, "metadata")

    def count_error(self, error: HeadraceError) -> None:
        """Count an error under its class."""
        self.errors.labels(type(error).__name__).inc()

    def render(self) -> bytes:
        """All metrics in the Prometheus text format (version 0.0.4)."""
        self._settle()
        return generate_latest(self.registry)

    def counters(self) -> dict[str, float]:
        """All samples, each by its name as the text format writes it."""
        self._settle()
        return {
            _sample_name(sample.name, sample.labels): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if not sample.name.endswith(("_created", "_bucket"))
        }

    def _settle(self) -> None:
        with self._hit_lock:
            hits, count = self._hits, self._hit_bytes
            self._hits = self._hit_bytes = 0
        self._reads_hit.inc(hits)
        self._fuse_reads.inc(hits)
        self._read_bytes_store.inc(count)

    def _note(self, name: str, kind: str, labels: Labels, text: str) -> None:
        self.declared.append(Declared(name, kind, labels, text))

    def _counter(self, name: str, text: str, labels: Labels) -> Counter:
        self._note(name, "counter", labels, text)
        counter = Counter(name, text, list(labels), registry=self.registry)
        if len(labels) == 1:
            for value in next(iter(labels.values())):
                counter.labels(value)
        return counter

    def _plain_counter(self, name: str, text: str) -> Counter:
        self._note(name, "counter", {}, text)
        return Counter(name, text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._gauge_by(name, text, {})

    def _gauge_by(self, name: str, text: str, labels: Labels) -> Gauge:
        self._note(name, "gauge", labels, text)
        return Gauge(name, text, list(labels), registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        self._note(name, "histogram", {}, text)
        return Histogram(name, text, buckets=FILL_BUCKETS, registry=self.registry)


def _sample_name(name: str, labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


def metrics_table() -> str:
    """The README's table of all metrics, in Markdown, with a last line break."""
    lines = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    for metric in sorted(Metrics("any").declared, key=lambda metric: metric.name):
        labels = ", ".join(_label(name, values) for name, values in metric.labels.items())
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def _label(name: str, values: tuple[str, ...]) -> str:
    return f"`{name}` ({', '.join(values)})" if values else f"`{name}`"
