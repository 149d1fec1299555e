"""Bars of letters are as long as their numbers, and bear what is none."""

import math

import pytest

from prunekit.cli.bars import bar, columns


def test_a_bar_is_as_long_as_its_share_to_an_eighth_of_a_letter() -> None:
    assert bar(1, 1, 4) == "████" and bar(1, 2, 4) == "██"
    assert bar(1.0, 32.0, 4) == "▏" and bar(0.0, 1.0) == ""


@pytest.mark.parametrize(("value", "largest"), [(math.nan, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_what_has_no_length_has_no_bar(value: float, largest: float) -> None:
    assert bar(value, largest) == ""


def test_columns_are_as_high_as_their_rank_and_crossed_where_a_block_went() -> None:
    assert columns([100.0, 0.1, 0.2, 0.3], [2]) == "█▁x▅"
    assert columns([None, 2.0, 1.0, None], [2]) == "-█x-", "protected blocks are not measured"
    assert columns([], []) == "" and columns([1.0], []) == "▁"
