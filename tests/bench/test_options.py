"""The bench's command line."""

from __future__ import annotations

import pytest

from bench.options import MIB, parse

NAMES = ("cold", "warm")


def test_without_arguments_five_rounds_of_a_gib_of_every_workload() -> None:
    found = parse([], NAMES)
    assert (found.rounds, found.size, found.only, found.rivals) == (5, 1024 * MIB, (), True)


def test_quick_is_one_round_of_128_mib_unless_said_otherwise() -> None:
    assert (parse(["--quick"], NAMES).rounds, parse(["--quick"], NAMES).size) == (1, 128 * MIB)
    assert parse(["--quick", "--size", "16MiB", "--rounds", "2"], NAMES).size == 16 * MIB


def test_workloads_are_chosen_by_name() -> None:
    assert parse(["--only", "warm", "--only", "cold"], NAMES).only == ("warm", "cold")


@pytest.mark.parametrize(
    "arguments",
    [["--only", "hot"], ["--size", "12"], ["--size", "1MiB"], ["--rounds", "0"], ["--rounds", "x"]],
)
def test_wrong_arguments_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments, NAMES)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
