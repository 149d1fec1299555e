import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from prunekit.weights.budgets import MOST, cheapest, round_to_counts, settle, share_bits, shift, smoothed, spread


def mean(values: list[float], sizes: list[int]) -> float:
    return sum(d * s for d, s in zip(sizes, values, strict=True)) / sum(sizes)


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Any]:
    file = shared_data.parent / "golden" / "alphapruning_allocation.json"
    if not file.is_file():
        pytest.skip("needs the golden allocations")
    return json.loads(file.read_text())


def test_every_golden_allocation_follows_from_its_exponents(golden: dict[str, Any]) -> None:
    checked = 0
    for model in golden.values():
        sizes = [model["block_params"]] * len(model["block_alpha"])
        for name, expected in model["alloc"].items():
            target, epsilon = (float(part.split("=")[1]) for part in name.split(","))
            found = spread(model["block_alpha"], sizes, target, epsilon)
            assert found == pytest.approx(expected, abs=1e-5), name
            settled = settle(found, sizes, target)
            assert mean(settled, sizes) == pytest.approx(target, abs=1e-9)
            assert max(settled) <= MOST
            checked += 1
    assert checked > 50


def test_more_of_the_metric_means_more_sparsity_within_the_span_of_epsilon() -> None:
    alpha = [2.622161, 2.88989, 2.968962, 2.608615, 4.220435]
    found = spread(alpha, [1] * 5, 0.7, 0.2)
    assert [alpha[found.index(value)] for value in sorted(found)] == sorted(alpha)
    assert max(found) / min(found) == pytest.approx(1.2 / 0.8)
    assert sum(found) / 5 == pytest.approx(0.7)


def test_equal_metrics_give_equal_sparsities() -> None:
    assert spread([3.0, 3.0], [1, 5], 0.4, 0.3) == pytest.approx([0.4, 0.4])
    assert spread([3.0], [7], 0.4, 1.0) == pytest.approx([0.4])


def test_random_wishes_are_settled_within_bounds_and_to_the_mean() -> None:
    chance = random.Random(0)
    for _ in range(500):
        count = chance.randint(1, 12)
        sizes = [chance.randint(1, 10**7) for _ in range(count)]
        wanted = [chance.uniform(-0.5, 2) * chance.choice((0, 1, 1)) for _ in range(count)]
        target = chance.uniform(0.01, 0.99)
        found = settle(wanted, sizes, target)
        assert all(0 <= value <= MOST for value in found)
        assert mean(found, sizes) == pytest.approx(target, abs=1e-9)


def test_what_is_clipped_is_shared_by_the_others_in_proportion() -> None:
    found = settle([1.2, 0.6, 0.3], [10, 10, 10], 0.7)
    assert found[0] == MOST
    assert found[1] / found[2] == pytest.approx(2)
    assert settle([0.2, 0.5, 0.4], [3, 1, 1], 0.3) == pytest.approx([0.2, 0.5, 0.4])
    assert settle([1.5, 1.5], [1, 1], 0.995) == pytest.approx([0.995, 0.995])


def test_a_shift_moves_all_alike() -> None:
    assert shift([0.0, -0.1], [1, 3], 0.5) == pytest.approx([0.575, 0.475])


def test_the_cheapest_sparsities_are_those_of_an_exhaustive_search() -> None:
    chance = random.Random(0)
    steps = [0.0, 0.25, 0.5, 0.75]
    for _ in range(30):
        curves = []
        for _ in range(4):
            slopes = sorted(chance.uniform(0, 3) for _ in steps[1:])
            harms = [sum(slopes[:number]) for number in range(len(steps))]
            curves.append(dict(zip(steps, harms, strict=True)))
        found = cheapest(curves, [1] * 4, 0.5)  # 8 steps of 0.25 over four places: a grid point is optimal
        assert mean(found, [1] * 4) == pytest.approx(0.5)
        grid = [
            sum(curve[s] for curve, s in zip(curves, chosen, strict=True))
            for chosen in itertools.product(steps, repeat=4)
            if sum(chosen) == 2.0
        ]
        assert sum(curve[s] for curve, s in zip(curves, found, strict=True)) == pytest.approx(min(grid))


def test_a_place_that_costs_more_per_weight_loses_less() -> None:
    steep, flat = {0.0: 0.0, 1.0: 4.0}, {0.0: 0.0, 1.0: 1.0}
    assert cheapest([steep, flat], [1, 1], 0.5) == pytest.approx([0.0, 1.0])
    assert cheapest([steep, flat], [8, 1], 0.5) == pytest.approx([0.5625, 0.0])
    dent = {0.0: 0.0, 0.5: 9.0, 1.0: 1.0}  # its convex hull is the straight line
    assert cheapest([steep, dent], [1, 1], 0.25) == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("target", [0.1, 0.5, 0.7, 0.8125])
def test_counts_of_eight_are_as_near_to_the_target_as_the_smallest_place_allows(target: float) -> None:
    chance = random.Random(1)
    sizes = [chance.choice((12288, 36864, 98304)) for _ in range(40)]
    wanted = settle([target * chance.uniform(0.7, 1.3) for _ in sizes], sizes, target)
    counts = round_to_counts(wanted, sizes, target, 8)
    assert all(0 <= n <= 7 and abs(n / 8 - value) < 1 / 8 + 1e-9 for n, value in zip(counts, wanted, strict=True))
    missing = abs(sum(d * n for d, n in zip(sizes, counts, strict=True)) - target * 8 * sum(sizes))
    assert missing <= max(sizes) / 2


def test_what_is_a_whole_number_of_eighths_stays_it() -> None:
    assert round_to_counts([0.25, 0.5, 0.75], [3, 5, 3], 0.5, 8) == [2, 4, 6]


def test_places_without_weights_are_left_out_of_the_sum() -> None:
    assert settle([0.5, 1.5, 0.9], [0, 10, 10], 0.8)[1:] == pytest.approx([0.99, 0.61])
    curve = {0.2: 0.0, 0.8: 1.0}
    assert cheapest([curve, curve], [0, 4], 0.5)[1] == pytest.approx(0.5)


def test_a_smoothed_curve_is_its_parabola_and_few_points_are_left_alone() -> None:
    curve = {s: 3 * s**2 - s for s in (0.1, 0.4, 0.6, 0.7)}
    fine = smoothed(curve)
    assert min(fine) == 0.1 and max(fine) == 0.7 and len(fine) == 33
    assert all(harm == pytest.approx(3 * s**2 - s) for s, harm in fine.items())
    assert smoothed({0.5: 1.0}) == {0.5: 1.0}


def test_bits_fall_with_the_rank_of_the_exponent_and_meet_the_mean() -> None:
    bits = share_bits([5.0, 2.0, 3.0, 4.0], [10, 10, 10, 10], 4)
    assert bits == [3, 5, 4, 4] or bits == [3, 5, 5, 3]
    assert sum(bits) == 16
    assert share_bits([2.0, 2.0], [3, 9], 3.0) == [3, 3]
    assert min(share_bits([1.0, 9.0], [1, 1], 1.0)) == 1
