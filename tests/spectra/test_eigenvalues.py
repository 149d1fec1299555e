import pytest
import torch
from torch import Tensor

from prunekit.spectra import eigenvalues as gram
from prunekit.spectra.eigenvalues import eigenvalues, lower_gram, windowed_eigenvalues


def squared_singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.double()).flip(-1).square()


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (200, 64), (1, 9), (9, 1), (1, 1), (700, 530)])
def test_eigenvalues_are_the_squared_singular_values(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, expected = eigenvalues(weight), squared_singular_values(weight)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-13 * float(expected[-1]))


def test_small_eigenvalues_survive_which_a_float32_gram_matrix_loses() -> None:
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    smallest = squared_singular_values(weight)[0]
    in_float32 = torch.linalg.eigvalsh(weight @ weight.T)[0]
    assert abs(eigenvalues(weight)[0] / smallest - 1) < 1e-6 < abs(in_float32 / smallest - 1)


def test_what_is_below_the_resolution_is_zero_and_the_rank_is_left() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(80, 5, generator=generator) @ torch.randn(5, 60, generator=generator)
    found = eigenvalues(weight)
    assert int((found > 0).sum()) == 5
    torch.testing.assert_close(found[-5:], squared_singular_values(weight)[-5:], rtol=1e-5, atol=0)
    assert not eigenvalues(torch.zeros(7, 4)).any()


def test_the_lower_half_of_the_gram_matrix_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(40, 90, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(gram, "CHUNK", 40 * 7)
    monkeypatch.setattr(gram, "PANEL", 16)
    expected = (weight.double() @ weight.double().T).tril()
    torch.testing.assert_close(lower_gram(weight).tril(), expected, rtol=1e-12, atol=1e-12)


def test_a_stack_gives_what_its_matrices_give_alone() -> None:
    stack = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(eigenvalues(stack), torch.stack([eigenvalues(part) for part in stack]))


def test_windows_make_the_spectrum_of_a_random_matrix_independent_of_its_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    square, wide = (torch.randn(shape, generator=generator) for shape in ((96, 96), (96, 960)))
    plain = eigenvalues(wide).median() / eigenvalues(square).median()
    windowed = windowed_eigenvalues(wide, 6).median() / windowed_eigenvalues(square, 6).median()
    assert plain > 5 and abs(windowed - 1) < 0.15
    torch.testing.assert_close(windowed_eigenvalues(square, 6), eigenvalues(square))
