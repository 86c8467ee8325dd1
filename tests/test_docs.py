"""The README says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.config import settings_table
from agent.metrics import metrics_table

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(("name", "table"), [("settings", settings_table()), ("metrics", metrics_table())])
def test_the_readme_has_the_table_that_the_code_renders(name: str, table: str) -> None:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README.read_text(), re.S)
    assert found is not None
    assert found[1] == table


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_make_targets_that_the_readme_shows_are_there() -> None:
    shown = set(re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= shown <= targets
