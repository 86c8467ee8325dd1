"""The budget that an origin's settings give it, the same for every kind."""

from __future__ import annotations

from agent.config import OriginConfig
from agent.source import Budget

# Seconds for one question about metadata (one page of a listing), retries included: whoever publishes is told
# within 10 s that the origin is not there, while a long listing goes on page by page.
QUESTION_DEADLINE = 8.0


def budget_of(settings: OriginConfig, name: str, proven_late: bool = False) -> Budget:
    """What may be under way at once towards the origin with these settings; `name` is their prefix."""
    return Budget(
        name=name,
        connections=settings.max_connections,
        bytes_in_flight=settings.max_bytes_in_flight,
        deadline=settings.deadline,
        proven_late=proven_late,
    )
