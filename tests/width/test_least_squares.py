"""The two least squares problems behind neurons that go: the algebra against plain solutions, and hard inputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prunekit.blockwise.statistics import Moments
from prunekit.width.least_squares import Problem, fluctuation, keep_largest, remove_greedily, sensitivity, wanda

N, OUTPUTS, TOKENS = 150, 20, 400
Kind = Callable[..., Problem]
each_problem = pytest.mark.parametrize("kind", [Problem.masks, Problem.weights], ids=["masks", "weights"])


def layer(tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Correlated inputs (tokens, N) and a weight (OUTPUTS, N)."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(N, N, generator=generator) / N**0.5
    return torch.randn(tokens, N, generator=generator) @ mix, torch.randn(OUTPUTS, N, generator=generator)


def loss(problem: Problem, value: Tensor, level: float) -> float:
    """The objective that `Problem` minimises, up to a constant."""
    pull = (value - problem.start).square().sum()
    return float((value * (problem.gram @ value)).sum() - 2 * (value * problem.goal).sum() + level * pull)


def test_the_gram_matrix_of_masks_is_that_of_all_contributions() -> None:
    x, weight = layer(30)
    contributions = torch.einsum("tn,on->ton", x.double(), weight.double()).flatten(0, 1)
    problem = Problem.masks((x.double().T @ x.double()), weight, None, 0.01)
    torch.testing.assert_close(problem.gram, contributions.T @ contributions)
    torch.testing.assert_close(problem.goal[:, 0], contributions.T @ contributions.sum(dim=1))


@each_problem
def test_greedy_removal_is_the_textbook_one_column_at_a_time(kind: Kind) -> None:
    x, weight = layer()
    problem = kind(x.T @ x, weight, None, 0.01)
    keep, found, level = problem.remove(90)
    p, _ = problem.inverse()
    value, alive = problem.start + p @ (problem.goal - problem.gram @ problem.start), torch.ones(N, dtype=torch.bool)
    for _ in range(90):
        j = int((value.square().sum(dim=1) / p.diagonal()).masked_fill(~alive, torch.inf).argmin())
        before, column = loss(problem, value, level), p[:, j].clone()
        cost = float(value[j].square().sum() / column[j])
        value = value - torch.outer(column, value[j] / column[j])
        p, alive[j], value[j] = p - torch.outer(column, column) / column[j], False, 0
        p[j], p[:, j], p[j, j] = 0, 0, 1
        assert loss(problem, value, level) - before == pytest.approx(cost, rel=1e-6), "the score is what it costs"
    assert torch.equal(keep, alive)
    torch.testing.assert_close(found, value)


@each_problem
def test_what_greedy_removal_leaves_is_the_direct_solution(kind: Kind) -> None:
    x, weight = layer()
    problem = kind(x.T @ x, weight, torch.randn(N, OUTPUTS, generator=torch.Generator().manual_seed(1)), 0.01)
    keep, found, _ = problem.remove(70)
    direct, _ = problem.solve(keep)
    torch.testing.assert_close(found, direct)
    assert int(keep.sum()) == N - 70 and not direct[~keep].any()


def test_new_weights_solve_the_damped_regression_of_the_old_output() -> None:
    x, weight = (part.double() for part in layer())
    problem = Problem.weights(x.T @ x, weight, None, 0.01)
    keep = torch.arange(N) % 3 > 0
    found, level = problem.solve(keep)
    stacked = torch.cat([x[:, keep], level**0.5 * torch.eye(int(keep.sum()), dtype=torch.float64)])
    wanted = torch.cat([x @ weight.T, level**0.5 * weight.T[keep]])
    torch.testing.assert_close(found[keep], torch.linalg.lstsq(stacked, wanted).solution)


def test_nothing_changes_where_no_neuron_goes_and_the_layer_itself_is_the_goal() -> None:
    x, weight = layer()
    keep = torch.ones(N, dtype=torch.bool)
    for problem in (Problem.masks(x.T @ x, weight, None, 0.01), Problem.weights(x.T @ x, weight, None, 0.01)):
        torch.testing.assert_close(problem.solve(keep)[0], problem.start)


def test_of_twins_greedy_removal_takes_one() -> None:
    x, weight = layer()
    x[:, 1::2], weight[:, 1::2] = x[:, ::2], weight[:, ::2]
    keep, masks, _ = Problem.masks(x.T @ x, weight, None, 1e-6).remove(N // 2)
    assert torch.equal(keep[::2] ^ keep[1::2], torch.ones(N // 2, dtype=torch.bool)), "never both, never none"
    torch.testing.assert_close(masks[keep], torch.full((N // 2, 1), 2.0, dtype=torch.float64), rtol=1e-3, atol=1e-3)


def hard(name: str) -> tuple[Tensor, Tensor]:
    x, weight = layer(20 if name == "fewer tokens than neurons" else TOKENS)
    if name == "collinear":
        x = x[:, :3] @ torch.randn(3, N, generator=torch.Generator().manual_seed(2))
    elif name == "dead neurons":
        x[:, ::2] = 0
    elif name == "all dead":
        x[:] = 0
    elif name == "twins":
        x[:, 1:] = x[:, :1]
    elif name == "weights that are zero":
        weight[:, ::2] = 0
    elif name == "extreme scales":
        x = x * torch.logspace(-12, 12, N)
    return x, weight


@each_problem
@pytest.mark.parametrize("count", [0, 1, 70, N - 1])
@pytest.mark.parametrize(
    "name",
    [
        "collinear",
        "dead neurons",
        "all dead",
        "twins",
        "fewer tokens than neurons",
        "weights that are zero",
        "extreme scales",
    ],
)
def test_hard_inputs_give_finite_solutions_of_the_right_size(name: str, count: int, kind: Kind) -> None:
    x, weight = hard(name)
    problem = kind(x.T @ x, weight, None, 0.01)
    keep, found, level = problem.remove(count)
    direct, _ = problem.solve(keep)
    assert int(keep.sum()) == N - count
    assert level > 0 and found.isfinite().all() and direct.isfinite().all()


def test_dead_neurons_go_first() -> None:
    x, weight = hard("dead neurons")
    keep, _, _ = Problem.masks(x.T @ x, weight, None, 0.01).remove(N // 2)
    assert not keep[::2].any() and keep[1::2].all()


def test_damping_is_raised_until_the_matrix_can_be_inverted() -> None:
    problem = Problem(torch.diag(torch.tensor([1.0, -0.5], dtype=torch.float64)), *torch.ones(2, 2, 1).double(), 0.01)
    inverse, level = problem.inverse()
    assert level > 0.5 and inverse.isfinite().all()


def test_removal_in_chunks_does_not_depend_on_where_a_chunk_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = layer()
    problem = Problem.masks(x.T @ x, weight, None, 0.01)
    expected = problem.remove(100)
    monkeypatch.setattr("prunekit.width.least_squares.CHUNK", 7)
    found = problem.remove(100)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    assert remove_greedily(*(part.clone() for part in (problem.inverse()[0], problem.start)), 0)[0].all()


def test_scores_are_what_their_papers_say() -> None:
    x, weight = layer()
    inputs = Moments.begin(N, x.device)
    for part in x.split(100):
        inputs.add(part[None])
    norms = x.norm(dim=0)
    torch.testing.assert_close(sensitivity(inputs, weight), norms * weight.norm(dim=0))
    torch.testing.assert_close(wanda(inputs, weight), norms * weight.abs().mean(dim=0))
    torch.testing.assert_close(
        fluctuation(inputs, weight), x.var(dim=0, correction=0) * weight.square().sum(dim=0), rtol=1e-4, atol=1e-5
    )


def test_the_largest_scores_stay_and_of_equals_the_later() -> None:
    assert keep_largest(torch.tensor([3.0, 1.0, 1.0, 2.0, 1.0]), 3).tolist() == [True, False, False, True, True]
    assert not keep_largest(torch.ones(4), 0).any()
