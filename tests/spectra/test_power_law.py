import math

import pytest
import torch
from torch import Tensor

from prunekit.spectra import power_law
from prunekit.spectra.eigenvalues import RESOLVED, eigenvalues
from prunekit.spectra.power_law import measure


def seeded(seed: int, rows: int, columns: int) -> Tensor:
    """The weights of which the authors' function was run."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.02 * torch.randn(rows, columns, generator=generator)
    if seed == 2:  # Student's t with 3 degrees of freedom
        squares = sum(torch.randn(rows, columns, generator=generator) ** 2 for _ in range(3))
        weight = weight / (squares / 3).sqrt()
    if seed == 3:
        low = torch.randn(rows, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
        weight = weight + 0.02 * low
    return weight


@pytest.mark.parametrize(
    ("seed", "shape", "released", "linear", "middle", "total"),
    [
        (0, (256, 256), 6.947020, 6.946995, 2.112634, 1045.323),
        (1, (256, 688), 4.116874, 4.116872, 3.017366, 2816.110),
        (2, (128, 512), 3.896350, 3.896349, 3.128862, 1446.322),
        (3, (512, 128), 1.826797, 2.079025, 2.071858, 3016.761),
    ],
)
def test_exponents_are_those_of_the_authors_function(
    seed: int, shape: tuple[int, int], released: float, linear: float, middle: float, total: float
) -> None:
    weight = seeded(seed, *shape)
    assert weight.abs().sum().item() == pytest.approx(total, abs=1e-2), "another random generator"
    values = eigenvalues(weight)
    assert measure(values, "alpha_peak") == pytest.approx(released, abs=1e-4)
    assert measure(values, "alpha_peak", "linear") == pytest.approx(linear, abs=1e-4)
    assert measure(values, "alpha_mid") == pytest.approx(middle, abs=1e-4)


# --- the formulas, written down one by one ---------------------------------------------------------------------------


def transcribed(weight: Tensor, metric: str, bound: str) -> float:
    """From the singular values, with a loop over the candidates and one over the eigenvalues."""
    squares = sorted(value * value for value in torch.linalg.svdvals(weight.double()).tolist())
    values = [value for value in squares if value > RESOLVED * squares[-1]]
    if len(values) < 2 or math.log(values[-1] / values[0]) < power_law.FLAT:
        return 0.0
    size = len(values)

    def alpha(i: int) -> float:
        n = size - i
        return 1 + n / (sum(math.log(x) for x in values[i:]) - n * math.log(values[i]))

    def distance(i: int) -> float:
        n, a = size - i, alpha(i)
        return max(abs(1 - (values[j] / values[i]) ** (1 - a) - (j - i) / n) for j in range(i, size))

    if metric == "alpha_mid":
        return alpha(size // 2) if size // 2 < size - 1 else math.inf
    candidates = list(range(size - 1))
    if metric == "alpha_peak":
        logs = torch.tensor([math.log10(x) for x in values], dtype=torch.float64)
        counts = torch.histc(logs, 100, min=logs[0].item(), max=logs[-1].item())
        edges = torch.linspace(logs[0].item(), logs[-1].item(), 101, dtype=torch.float64)
        peak = 10 ** edges[counts.argmax()].item()
        lowest = math.log10(0.95 * peak) if bound == "released" else 0.95 * peak
        candidates = [i for i in candidates if lowest <= values[i] <= 1.5 * peak]
    best = min(candidates, key=distance, default=None)
    return 0.0 if best is None else alpha(best)


def matrix(number: int) -> Tensor:
    """One of many kinds of random matrices: tall, wide, square, of low rank, tiny, with zero rows, heavy-tailed."""
    generator = torch.Generator().manual_seed(number)
    rows, columns = (int(torch.randint(2, 60, (), generator=generator)) for _ in range(2))
    kind = number % 7
    if kind == 0:
        columns = rows
    if kind == 1:
        rows, columns = 2 + number % 4, 2 + number % 3
    weight = 0.02 * torch.randn(rows, columns, generator=generator)
    if kind == 2:
        rank = 1 + number % 5
        weight = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    if kind == 3:
        weight[::2] = 0
    if kind == 4:
        weight = weight / torch.randn(rows, columns, generator=generator).abs().clamp(min=0.05)
    if kind == 5:
        weight = weight + torch.randn(rows, 1, generator=generator) @ torch.randn(1, columns, generator=generator)
    return weight


@pytest.mark.parametrize("start", range(0, 200, 20))
def test_exponents_agree_with_the_formulas_on_random_matrices(start: int) -> None:
    for number in range(start, start + 20):
        weight = matrix(number)
        values = eigenvalues(weight)
        for metric, bound in (
            ("alpha_peak", "released"),
            ("alpha_peak", "linear"),
            ("alpha_mid", ""),
            ("alpha_ks", ""),
        ):
            expected = transcribed(weight, metric, bound)
            found = measure(values, metric, bound)  # type: ignore[arg-type]
            expected = expected if expected < power_law.STEEPEST else 0.0  # one eigenvalue is not a tail
            assert found == pytest.approx(expected, rel=1e-6), (number, metric, bound)


@pytest.mark.parametrize("metric", ["alpha_peak", "alpha_mid", "alpha_ks"])
def test_an_exponent_of_no_spectrum_is_0_and_never_nan(metric: str) -> None:
    orthogonal = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0))).Q
    for weight in (torch.zeros(5, 8), torch.ones(1, 9), torch.ones(6, 4), orthogonal, 3 * torch.eye(12)):
        assert measure(eigenvalues(weight), metric) == 0.0  # type: ignore[arg-type]


def test_distances_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = eigenvalues(seeded(1, 60, 90))
    places = torch.arange(3, 59)
    whole = power_law.distances(values, power_law.hill(values), places)
    assert (power_law.distances(values, power_law.hill(values), places, 7) <= whole).all()
    monkeypatch.setattr(power_law, "CHUNK", 100)
    torch.testing.assert_close(power_law.distances(values, power_law.hill(values), places), whole)


def test_norms_and_ranks_are_what_their_names_say() -> None:
    weight = seeded(2, 30, 40)
    values, singular = eigenvalues(weight), torch.linalg.svdvals(weight.double())
    assert measure(values, "spectral_norm") == pytest.approx(singular[0].item() ** 2)
    assert measure(values, "log_norm") == pytest.approx(math.log10(weight.double().square().sum().item()))
    assert measure(values, "stable_rank") == pytest.approx((singular.square().sum() / singular[0] ** 2).item())
    assert measure(torch.ones(7, dtype=torch.float64), "entropy") == pytest.approx(1)
    assert measure(torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64), "entropy") == 0
