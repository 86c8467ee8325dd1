"""The in-memory twin of agent/peers/discovery.py: the test says who the peers are."""

from __future__ import annotations

from collections.abc import Sequence

from agent.peers.discovery import Announced


class MemoryDiscovery(Announced):
    """Peers as `set` gives them."""

    async def close(self) -> None: ...


class ScriptedResolver:
    """A resolver for tests: `names` has the addresses of each; a name that it has not does not exist."""

    def __init__(self) -> None:
        self.names: dict[str, Sequence[str]] = {}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.names:
            raise OSError("Name or service not known")
        return self.names[host]
