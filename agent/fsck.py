"""`headrace-agent fsck --config FILE [--json]`: checks the store while no agent uses it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agent.cache.fsck import Finding, Fsck
from agent.cache.premises import owner_of
from agent.config import load
from agent.errors import ConfigError, HeadraceError
from agent.logs import LEVELS, set_up
from agent.units import format_size

CLEAN, FOUND, USAGE = 0, 1, 2
EVERY = 0.5  # seconds between two updates of the progress line


def main(arguments: Sequence[str]) -> int:
    """Check every directory of the store. Exit status 0 clean, 1 damage was found (each line says what became
    of it) or the check could not be made, 2 wrong usage or configuration."""
    options = _parser().parse_args(arguments)
    set_up(options.log_level)
    try:
        paths = load(options.config).store.directories
        _become_owner(paths)
        return _check(paths, as_json=options.json)
    except HeadraceError as error:
        print(f"headrace-agent: {error}", file=sys.stderr)  # noqa: T201
        return USAGE if isinstance(error, ConfigError) else FOUND


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace-agent fsck",
        description="Checks index, files and chunks, and drops what is damaged; stop the agent first.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the agent's TOML file")
    parser.add_argument("--json", action="store_true", help="print findings and summary as JSON")
    parser.add_argument("--log-level", choices=LEVELS, default="error")
    return parser


def _become_owner(paths: Sequence[Path]) -> None:
    """Root works as the agent's user, who must be able to use what is written here."""
    owners = {owner_of(path) for path in paths}
    if os.geteuid() != 0 or owners == {(0, 0)}:
        return
    if len(owners) > 1:
        raise ConfigError("store.directories", "they belong to several users: give all to the agent's user")
    ((user, group),) = owners
    os.setegid(group)
    os.seteuid(user)


def _check(paths: Sequence[Path], *, as_json: bool) -> int:
    findings: list[Finding] = []
    objects = size = 0
    for path in paths:
        progress = _Progress(path, shown=sys.stderr.isatty())
        check = Fsck(path, progress.step)
        for finding in check.run():
            progress.clear()
            findings.append(finding)
            if not as_json:
                print(f"{finding.directory}: {finding.kind}: {finding.message}", flush=True)  # noqa: T201
        progress.clear()
        objects += check.objects
        size += check.bytes
    _summarise(findings, objects, size, as_json=as_json)
    logging.getLogger(__name__).debug("checked %d objects", objects)
    return FOUND if any(finding.kind != "foreign" for finding in findings) else CLEAN


def _summarise(findings: Sequence[Finding], objects: int, size: int, *, as_json: bool) -> None:
    damage = [finding for finding in findings if finding.kind != "foreign"]
    left = sum(not finding.repaired for finding in damage)
    if as_json:
        shown = [asdict(finding) | {"repaired": finding.repaired} for finding in findings]
        summary = {"objects": objects, "bytes": size, "damage": len(damage), "not_repaired": left}
        print(json.dumps({"findings": shown, "summary": summary}))  # noqa: T201
        return
    result = f"{len(damage)} found, {len(damage) - left} repaired" if damage else "clean"
    print(f"{objects} objects, {format_size(size)} checked: {result}")  # noqa: T201


class _Progress:
    """One line on a terminal, written over; nothing elsewhere."""

    def __init__(self, path: Path, *, shown: bool) -> None:
        self._path = path
        self._shown = shown
        self._said = 0.0

    def step(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._shown and now >= self._said + EVERY:
            self._said = now
            percent = 100 * done // max(total, 1)
            print(f"\r\033[K{self._path}: {percent} %", end="", file=sys.stderr, flush=True)  # noqa: T201

    def clear(self) -> None:
        if self._shown and self._said:
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # noqa: T201
