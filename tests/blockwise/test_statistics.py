from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prunekit.blockwise.statistics import Hessian, InputNorm, sequences

CPU = torch.device("cpu")
X = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))


def norm_of(*batches: Tensor) -> InputNorm:
    found = InputNorm.begin(8, CPU)
    for batch in batches:
        found.add(batch)
    return found


def hessian_of(*batches: Tensor) -> Hessian:
    found = Hessian.begin(8, CPU)
    for batch in batches:
        found.add(batch)
    return found


def test_the_norm_is_the_root_of_the_mean_over_sequences_of_each_features_squares() -> None:
    expected = X.double().square().sum(dim=1).mean(dim=0).sqrt().float()

    torch.testing.assert_close(norm_of(X).norms, expected)


def test_the_hessian_is_twice_the_mean_over_sequences_of_x_transposed_x() -> None:
    rows = X.double().reshape(-1, 8)

    torch.testing.assert_close(hessian_of(X).matrix, (2 / 6 * rows.T @ rows).float())


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2), (5, 1)])
def test_batches_of_any_size_accumulate_to_the_same(sizes: tuple[int, ...]) -> None:
    batches = X.split(list(sizes))

    torch.testing.assert_close(norm_of(*batches).norms, norm_of(X).norms)
    torch.testing.assert_close(hessian_of(*batches).matrix, hessian_of(X).matrix)
    assert norm_of(*batches).sequences == hessian_of(*batches).sequences == 6


def test_inputs_without_a_sequence_dimension_count_as_one_sequence() -> None:
    assert sequences(X) == 6
    assert sequences(X[0]) == 1
    torch.testing.assert_close(norm_of(X[0]).norms, norm_of(X[:1]).norms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_accumulate_in_float32(dtype: torch.dtype) -> None:
    small = (X * 100).to(dtype)

    assert norm_of(small).norms.dtype == hessian_of(small).matrix.dtype == torch.float32
    torch.testing.assert_close(norm_of(small).norms, norm_of(small.float()).norms)
    torch.testing.assert_close(hessian_of(small).matrix, hessian_of(small.float()).matrix)


def test_inputs_are_not_kept_and_not_changed() -> None:
    given = X.clone()
    found = norm_of(given), hessian_of(given)
    given.zero_()

    assert all((part > 0).all() for part in (found[0].norms, found[1].matrix.diagonal()))


@pytest.mark.parametrize("make", [norm_of, hessian_of])
def test_nothing_seen_is_a_problem(make: Callable[..., InputNorm | Hessian]) -> None:
    assert make().problem() == "no calibration token reached it"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [norm_of, hessian_of])
def test_inputs_that_are_not_finite_are_a_problem(make: Callable[..., InputNorm | Hessian], value: float) -> None:
    broken = X.clone()
    broken[3, 2, 1] = value

    assert "NaN or infinite" in str(make(broken).problem())
    assert make(X).problem() is None
