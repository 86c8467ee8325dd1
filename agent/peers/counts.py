"""What the exchange counts. Bound once, here, so that no stream pays for a label look-up."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

REASONS = ("silent", "absent", "slow", "wrong")


class PeerCounts:
    """The counters of one agent's peers, in the registry of its metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        exchanged = Counter(
            "headrace_peer_bytes_total",
            "Bytes exchanged with peers: `received` and right, or `sent`.",
            ["direction"],
            registry=registry,
        )
        self.bytes_received = exchanged.labels("received")
        self.bytes_sent = exchanged.labels("sent")
        failures = Counter(
            "headrace_peer_failures_total",
            "Times that a peer did not bring what it was asked for: it was `silent` or gone, the bytes were "
            "`absent` there, it was too `slow`, or what it sent was `wrong`.",
            ["reason"],
            registry=registry,
        )
        self.failures = {reason: failures.labels(reason) for reason in REASONS}
        self.refusals = Counter(
            "headrace_peer_refusals_total",
            "Requests at the peers' port that showed no good token.",
            registry=registry,
        )
