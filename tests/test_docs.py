"""The tables of the README are what the code renders; `python -m tests.test_docs` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.config import settings_table
from agent.metrics import metrics_table

README = Path(__file__).parents[1] / "README.md"
TABLES = {"settings": settings_table, "metrics": metrics_table}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name}: made from the code -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_shows_what_the_code_declares(name: str) -> None:
    match = section(name).search(README.read_text("utf-8"))
    assert match is not None, f"README.md has no table of {name}"
    assert match[0] == TABLES[name](), "README.md is out of date: run `.venv/bin/python -m tests.test_docs`"


def test_every_command_that_the_readme_shows_is_there() -> None:
    shown = set(re.findall(r"^ *(?:sudo )?make ([a-z-]+)", README.read_text("utf-8"), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= shown <= targets


def test_every_file_that_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text("utf-8")):
        assert (README.parent / target).exists(), target


if __name__ == "__main__":
    text = README.read_text("utf-8")
    for table, render in TABLES.items():
        rendered = render()
        text = section(table).sub(lambda _, rendered=rendered: rendered, text)  # type: ignore[misc]
    README.write_text(text, "utf-8")
