"""Which agent answers for what: rendezvous hashing, so that all agents agree without a word to each other.

Each peer draws a number from its name and the key; the highest wins. When a peer comes or goes only the keys
that it wins move: one in N on average. The names alone count: an agent that comes back at another address
answers for the same keys.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Iterable

from agent.peers.member import Peer


def tracker_of(revision: str, peers: Iterable[Peer]) -> Peer | None:
    """The peer that is the tracker of a dataset revision; None where there are no peers."""
    return _winner("tracker", revision, peers)


def owner_of(key: str, peers: Iterable[Peer]) -> Peer | None:
    """The first of `owners_of`; None where there are no peers."""
    return _winner("owner", key, peers)


def owners_of(key: str, peers: Iterable[Peer], most: int) -> list[Peer]:
    """The peer that small objects come from, and those who follow it in rank: `most` of them."""
    return heapq.nlargest(most, peers, key=lambda peer: _draw("owner", key, peer.name))


def ranked(revision: str, peers: Iterable[Peer]) -> list[Peer]:
    """All peers in the order in which they become the tracker of a revision as those before them go."""
    return sorted(peers, key=lambda peer: _draw("tracker", revision, peer.name), reverse=True)


def _winner(role: str, key: str, peers: Iterable[Peer]) -> Peer | None:
    return max(peers, key=lambda peer: _draw(role, key, peer.name), default=None)


@functools.lru_cache(maxsize=1 << 14)  # who is a directory's tracker is asked many times a second
def _draw(role: str, key: str, name: str) -> tuple[bytes, str]:
    """The name breaks a tie that 128 bits will not bring."""
    text = f"{role}\0{key}\0{name}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest(), name
