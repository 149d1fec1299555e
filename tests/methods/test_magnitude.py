"""What magnitude pruning promises, on matrices small enough to check by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunekit import testing as checks
from prunekit.plan import Pattern
from prunekit_methods.magnitude import Magnitude, keep_mask

UNSTRUCTURED = Pattern()


def test_the_smallest_weights_of_the_matrix_go_whatever_their_row_and_sign() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0], [-10.0, 20.0, -30.0]])
    assert keep_mask(weight, 0.4, UNSTRUCTURED).tolist() == [[False, False, False], [True, True, True]]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_weight_at_the_threshold_goes_too(sparsity: float) -> None:
    weight = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).view(20, 50) + 1.0
    assert int((~keep_mask(weight, sparsity, UNSTRUCTURED)).sum()) == int(1000 * sparsity) + 1


def test_of_weights_equal_to_the_threshold_only_as_many_go_as_the_sparsity_wants_the_first_ones() -> None:
    weight = torch.tensor([[1.0, 1.0, -1.0, 1.0, 5.0, 6.0]])
    assert keep_mask(weight, 0.2, UNSTRUCTURED).tolist() == [[False] * 2 + [True] * 4]
    coarse = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert int((~keep_mask(coarse, 0.5, UNSTRUCTURED)).sum()) == 64 * 64 // 2 + 1


def test_of_equal_weights_in_a_group_those_to_the_left_go_first() -> None:
    assert keep_mask(torch.ones(1, 8), 0.5, Pattern(2, 4)).tolist() == [[False, False, True, True] * 2]
    assert keep_mask(torch.ones(1, 4), 0.75, Pattern(1, 4)).tolist() == [[False, False, False, True]]


def test_a_pattern_compares_within_its_group_only() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0, 50.0, 60.0, -70.0, 80.0]])
    assert keep_mask(weight, 0.5, Pattern(2, 4)).tolist() == [[False, False, True, True] * 2]


def test_a_linear_whose_planned_sparsity_is_zero_stays_as_it_is(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    checks.check_zero_sparsity_changes_nothing(Magnitude(), tiny_llama(), tmp_path)


def test_no_calibration_text_is_asked_for() -> None:
    assert not Magnitude.needs.calibration
