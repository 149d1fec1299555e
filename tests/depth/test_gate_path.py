"""The path of a growing penalty closes the gate that resists least, on losses whose answer is known."""

import torch
from torch import Tensor

from prunekit.depth.gate_path import OPEN, TRUST, follow, step, update


def bowl(curvature: Tensor) -> tuple[list[int], object]:
    """A loss that grows with the squared distance from open gates, and how often it was asked."""
    asked: list[int] = []

    def loss(gates: Tensor) -> tuple[float, Tensor]:
        asked.append(1)
        apart = gates - 1
        return float(apart @ curvature @ apart / 2), curvature @ apart

    return asked, loss


def test_the_gate_that_resists_least_closes_first() -> None:
    resistance = torch.tensor([0.9, 0.4, 0.05, 0.6, 0.3], dtype=torch.float64)
    asked, loss = bowl(resistance.diag())
    gates, path = follow(loss, torch.ones(5, dtype=torch.float64), [0, 1, 2, 3, 4], 5e-3, 12)  # type: ignore[arg-type]
    assert int(gates.argmin()) == 2
    assert list(gates.argsort()) == list(resistance.argsort())
    assert len(asked) <= 13 and len(path.gates) == len(path.losses) + 1


def test_gates_that_are_not_free_stay_open() -> None:
    _, loss = bowl(torch.full((4,), 0.01, dtype=torch.float64).diag())
    gates, path = follow(loss, torch.ones(4, dtype=torch.float64), [1, 2], 5e-3, 12)  # type: ignore[arg-type]
    assert gates[[0, 3]].tolist() == [1, 1]
    assert all(each[0] == each[3] == 1 for each in path.gates)


def test_no_gate_moves_farther_than_the_trust_region_or_out_of_its_bounds() -> None:
    _, loss = bowl(torch.tensor([0.5, 0.01, 0.2], dtype=torch.float64).diag())
    _, path = follow(loss, torch.ones(3, dtype=torch.float64), [0, 1, 2], 1.0, 12)  # type: ignore[arg-type]
    steps = torch.tensor(path.gates).diff(dim=0)
    assert float(steps.abs().max()) <= TRUST + 1e-12
    assert min(map(min, path.gates)) >= 0 and max(map(max, path.gates)) <= OPEN


def test_a_step_minimises_its_quadratic_model() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    curvature = root @ root.T + 4 * torch.eye(4, dtype=torch.float64)
    gradient, gates = torch.randn(4, generator=generator, dtype=torch.float64) * 0.1, torch.full((4,), 0.8).double()
    move = step(gradient, curvature, gates, 0.05)
    free = torch.linalg.solve(curvature, -(gradient + 0.05))
    assert torch.allclose(move, free, atol=1e-7), "inside the bounds it is Newton's step"
    far = step(gradient, curvature, gates, 50.0)
    assert torch.allclose(far, torch.full((4,), -TRUST).double())


def test_the_curvature_stays_positive_definite_and_remembers_the_last_bend() -> None:
    generator = torch.Generator().manual_seed(1)
    curvature = None
    for _ in range(20):
        moved, bent = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2))
        curvature = update(curvature, moved, bent)
        assert float(torch.linalg.eigvalsh(curvature).min()) > 0
    assert curvature is not None
    moved = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    bent = curvature @ moved * 1.5  # a bend that needs no damping
    assert torch.allclose(update(curvature, moved, bent) @ moved, bent)
