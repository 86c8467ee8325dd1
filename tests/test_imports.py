"""The import directions of the design ("Layout"), held by reading the sources; nothing is imported here.

Bytes flow one way, origin or peers → store → mount; imports point the other way, to values and seams. A new
package or an edge that is missing here is a decision: write it into the table with the change that needs it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "csi", "preload")

LEAVES = {
    *("agent.content", "agent.errors", "agent.clock", "agent.identity", "agent.memory", "agent.rate"),
    "agent.trust",
}
SETTINGS = {"agent.config", "agent.metrics"}

# unit -> the units and modules that it may import beside itself
ALLOWED: dict[str, set[str]] = {
    "agent": set(),
    "agent.content": set(),
    "agent.errors": set(),
    "agent.identity": {"agent.errors"},
    "agent.clock": set(),
    "agent.memory": set(),
    "agent.rate": {"agent.clock"},
    "agent.trust": {"agent.errors"},
    "agent.units": set(),
    "agent.logs": set(),
    "agent.source": {"agent.content"},
    "agent.settings": {"agent.units"},
    "agent.config": {"agent.errors", "agent.logs", "agent.settings", "agent.units"},
    "agent.metrics": {"agent.errors"},
    "agent.transfer": {*LEAVES, *SETTINGS, "agent.source"},
    "agent.origin": {*LEAVES, *SETTINGS, "agent.source", "agent.units", "agent.transfer.request"},
    "agent.cache": {*LEAVES, *SETTINGS, "agent.source", "agent.transfer.landing"},
    "agent.mount": {*LEAVES, *SETTINGS, "agent.cache"},
    "agent.peers": {*LEAVES, *SETTINGS, "agent.source", "agent.transfer", "agent.cache"},
    "agent.control": {*LEAVES, *SETTINGS, "agent.logs"},
    # the wiring: what the parts answer for, the parts put together, and the command around them
    "agent.controlled": {
        *LEAVES,
        *SETTINGS,
        "agent.origin",
        "agent.cache",
        "agent.peers",
        "agent.mount",
        "agent.control",
    },
    "agent.node": {
        *LEAVES,
        *SETTINGS,
        "agent.transfer",
        "agent.origin",
        "agent.cache",
        "agent.peers",
        "agent.mount",
        "agent.control",
        "agent.controlled",
    },
    "agent.fsck": {*LEAVES, *SETTINGS, "agent.logs", "agent.units", "agent.cache"},
    "agent.__main__": {*LEAVES, *SETTINGS, "agent.logs", "agent.node", "agent.fsck"},
    "csi": {"csi.holder", "csi.proto", "agent.control.client", "agent.control.views"},
    "csi.holder": set(),
    "csi.proto": set(),
    "preload": {"agent.control.client", "agent.control.views"},
}

# Modules that may import more than their unit: both ends of the descriptor protocol share its framing.
EXCEPTIONS: dict[str, set[str]] = {
    "agent.mount.holder": {"csi.holder.client", "csi.holder.protocol"},
    "agent.mount.claim": {"csi.holder.client", "csi.holder.protocol"},
}

ONLY_IMPORTERS = {"libtorrent": {"agent.peers.swarm"}}


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, ours by the module's full name and others' as written."""
    return frozenset(_imports(ast.parse(modules()[module].read_text("utf-8"))))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules() else str(node.module)


def unit_of(module: str) -> str:
    """The longest entry of the table that the module belongs to."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(name for name in names if name in ALLOWED)


def allowed(module: str, imported: str) -> bool:
    unit = unit_of(module)
    permitted = ALLOWED[unit] | EXCEPTIONS.get(module, set())
    if imported in permitted or unit_of(imported) in permitted:
        return True
    return unit_of(imported) == unit and (unit != "agent" or imported == module)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_its_unit_may(module: str) -> None:
    wrong = sorted(name for name in ours(module) if not allowed(module, name))
    assert not wrong, f"{module} imports {wrong}: see the table"


def test_every_module_and_package_of_the_agent_has_its_line_in_the_table() -> None:
    units = {".".join(module.split(".")[:2]) for module in modules() if module.startswith("agent.")}
    assert units <= set(ALLOWED), sorted(units - set(ALLOWED))


def test_every_line_and_exception_of_the_table_is_about_something_that_is_there() -> None:
    assert set(ALLOWED) <= set(modules()) | {"csi.proto"}
    assert set(EXCEPTIONS) <= set(modules())


def test_no_two_modules_import_each_other_however_far_around() -> None:
    graph = {module: {name for name in ours(module) if name != module} for module in modules()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("csi.holder")])
def test_the_holder_imports_nothing_but_the_standard_library(module: str) -> None:
    foreign = {
        name
        for name in imports(module)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("csi.holder")
    }
    assert not foreign


def test_the_mount_command_starts_without_the_agents_client() -> None:
    """It imports aiohttp and pydantic, which take a quarter of a second."""
    reached, left = set[str](), {"csi.mounting"}
    while left:
        reached |= left
        left = {name for module in left for name in ours(module)} - reached
    assert not {name for name in reached if name.startswith("agent")}


@pytest.mark.parametrize("package", ["agent", "csi", "csi.holder", "agent.control", "preload"])
def test_a_package_brings_nothing_along_by_being_imported(package: str) -> None:
    assert not imports(package)


@pytest.mark.parametrize(("library", "importers"), ONLY_IMPORTERS.items())
def test_a_library_is_imported_in_one_place_only(library: str, importers: set[str]) -> None:
    found = {module for module in modules() if any(name.split(".")[0] == library for name in imports(module))}
    assert found <= importers


def test_the_data_path_never_imports_control() -> None:
    for module in modules():
        if unit_of(module) in ("agent.origin", "agent.transfer", "agent.cache", "agent.peers", "agent.mount"):
            assert not any(name.startswith("agent.control") for name in ours(module)), module
