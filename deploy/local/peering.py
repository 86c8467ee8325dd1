"""What local agents need to be each other's peers: the secret, and the table of their configuration."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

AGENT_USER = "nobody"  # as LocalStack has it


def write_secret(path: Path) -> Path:
    """A new secret of a cluster, which only the agents' user may read."""
    path.touch(mode=0o600)
    path.write_text(os.urandom(32).hex() + "\n")
    identity = pwd.getpwnam(AGENT_USER)
    os.chown(path, identity.pw_uid, identity.pw_gid)
    return path


def peers_table(listen: str, addresses: Sequence[str], secret: Path) -> str:
    """The TOML of `[peers]` of the agent at `listen`, for `AgentSettings.extra`; more keys may follow it."""
    return (
        f'[peers]\nlisten = "{listen}"\ndiscovery = "static"\n'
        f'addresses = {json.dumps(list(addresses))}\nsecret_file = "{secret}"\n'
    )
