"""The bench's table and its JSON file."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bench.figures import SPEED, Goal, Reading
from bench.options import Options
from bench.report import document, render, rows, save
from bench.site import Site
from bench.workload import HEADRACE, NOT_INSTALLED, Outcome, Subjects, Workload

MB = 1_000_000


@contextlib.contextmanager
def _nothing(_: Site, __: Options) -> Iterator[Subjects]:
    yield {}


def _outcome(headrace: int, notes: dict[str, str]) -> Outcome:
    workload = Workload("cold", "cold read", SPEED, "raw download", _nothing, Goal(0.7))
    found = {HEADRACE: Reading(1.0, headrace * MB, 2.0), "raw download": Reading(1.0, 1000 * MB)}
    return Outcome(workload, [found, found], notes)


def test_the_limit_comes_first_then_headrace_then_the_rivals() -> None:
    found = rows(_outcome(800, {"rclone": NOT_INSTALLED}))
    assert [row[1] for row in found] == ["raw download", HEADRACE, "rclone"]
    assert [row[0] for row in found] == ["cold read", "", ""]


def test_a_goal_that_is_met_and_one_that_is_missed_are_told() -> None:
    assert rows(_outcome(800, {}))[1][2:] == ("800 MB/s", "800 to 800", "0.80", "≥ 0.7 met", "400")
    assert rows(_outcome(600, {}))[1][5] == "≥ 0.7 missed"


def test_a_rival_that_is_missing_has_a_row_that_says_so() -> None:
    assert rows(_outcome(800, {"s3fs": NOT_INSTALLED}))[2][1:3] == ("s3fs", "not installed")


def test_a_subject_that_failed_after_some_rounds_keeps_its_median_and_says_so() -> None:
    row = rows(_outcome(800, {HEADRACE: "failed: dd did not end within 120 s"}))[1]
    assert row[2:4] == ("800 MB/s", "failed, see below")


def test_the_table_shows_every_row() -> None:
    output = io.StringIO()
    render([_outcome(800, {"s3fs": NOT_INSTALLED})], Console(file=output, width=130))
    text = output.getvalue()
    assert all(word in text for word in ("cold read", "raw download", "headrace", "s3fs", "not installed"))


def test_why_a_subject_failed_is_told_below_the_table() -> None:
    output = io.StringIO()
    render([_outcome(800, {"s3fs": "failed: no mount [x] after 30 s"})], Console(file=output, width=130))
    assert output.getvalue().rstrip().endswith("cold, s3fs: failed: no mount [x] after 30 s")


def test_the_json_file_has_each_reading_and_the_summary(tmp_path: Path) -> None:
    options = Options(rounds=2, size=8 * MB, only=(), json=None, quick=False, rivals=True)
    path = save(document([_outcome(800, {})], options), tmp_path / "result.json")
    found = json.loads(path.read_text())
    (workload,) = found["workloads"]
    assert (workload["name"], workload["unit"], workload["goal"]) == ("cold", "MB/s", "≥ 0.7")
    assert workload["rounds"][1][HEADRACE] == {"seconds": 1.0, "size": 800 * MB, "cpu_seconds": 2.0}
    assert {one["subject"]: one["ratio"] for one in workload["summary"]} == {
        HEADRACE: 0.8,
        "raw download": 1.0,
    }
