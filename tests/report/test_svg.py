"""Drawings show the numbers they are given, and survive those that are none."""

import math
import re

import pytest

from prunekit.report.svg import Bar, Point, block_bars, lines, named_bars, scatter


def heights(drawing: str) -> list[float]:
    return [float(value) for value in re.findall(r'<rect class="bar[^"]*"[^>]* height="([\d.]+)"', drawing)]


def widths(drawing: str) -> list[float]:
    return [float(value) for value in re.findall(r'<rect class="bar[^"]*"[^>]* width="([\d.]+)"', drawing)]


def test_bars_are_as_high_as_their_values_are_large() -> None:
    low, high, middle = heights(block_bars([1.0, 4.0, 2.0], [0, 1, 2], []).body)
    assert (high / low, middle / low) == pytest.approx((4, 2), rel=0.01)


def test_a_few_large_values_leave_something_to_see_of_the_others() -> None:
    drawing = block_bars([100.0, 1.0, 2.0, 1.5], [0, 1, 2, 3], []).body
    assert "logarithmic scale" in drawing and min(heights(drawing)) > 5


def test_blocks_that_went_are_hatched_and_crossed_by_their_own_number() -> None:
    drawing = block_bars([1.0, 2.0, 3.0], [4, 7, 9], [7]).body
    assert re.findall(r'rect class="([^"]*)"', drawing) == ["bar", "bar gone", "bar"]
    assert drawing.count('class="cross"') == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -3.0])
def test_what_is_no_number_or_not_positive_still_gives_a_drawing(value: float) -> None:
    for drawing in (
        block_bars([value, 1.0], [0, 1], [0]),
        block_bars([value], [0], []),
        lines([[value, 1.0]], "rank", "value", ("first", "last")),
        named_bars([Bar("a", value, "?"), Bar("b", 1.0, "1")]),
    ):
        assert "nan" not in drawing.body and "inf" not in drawing.body.replace("influence", "")


def test_nothing_at_all_still_gives_a_drawing() -> None:
    for drawing in (block_bars([], [], []), lines([], "a", "b", ("c", "d")), named_bars([]), scatter([], "a", "b")):
        assert drawing.height > 0


def test_lying_bars_show_their_interval_and_the_one_they_are_compared_with() -> None:
    drawing = named_bars([Bar("a", 2.0, "2", 1.0, 4.0), Bar("b", 1.0, "1", reference=True)]).body
    first, second = widths(drawing)
    assert first / second == pytest.approx(2, rel=0.01)
    assert drawing.count('class="interval"') == 1 and drawing.count("bar reference") == 1


def test_points_on_the_front_are_joined_and_near_ones_share_a_label() -> None:
    points = [
        Point("1", 1, 3, True),
        Point("2", 3, 1, True),
        Point("3", 3.001, 1.001),
        Point("dense", 2, 2, False, True),
    ]
    drawing = scatter(points, "x", "y").body
    assert drawing.count('class="front"') == 1 and drawing.count('"point best"') == 2
    assert ">2, 3<" in drawing and drawing.count('class="reference"') == 1


def test_names_are_escaped() -> None:
    assert "<b>" not in named_bars([Bar("<b>", 1.0, "<b>")]).body + scatter([Point("<b>", 1, 1)], "<b>", "<b>").body
