"""Shrink gates along the path of a growing l1 penalty until one of them closes; pure functions of small vectors.

    minimise  L(S) + lambda sum_i |S_i|,  lambda growing      (TRSP, section 3.1: stage 1)

At S = 1 a trained model's gradient is nearly zero, so what tells blocks apart is how far each gate resists the
shrinkage. There are only as many gates as blocks: second-order steps, with a curvature learned from the gradients along
the way (damped BFGS), follow the path in few evaluations of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[float, Tensor]]  # gates (L,) -> loss, its gradient (L,)
GROWTH = 2.0  # of lambda from step to step
TRUST = 0.25  # the farthest a gate moves in one step
OPEN = 1.5  # the farthest a gate may open
SWEEPS = 200  # of coordinate descent on the model of one step; it converges in far fewer


@dataclass
class Path:
    """The steps taken: gates and loss before each, and the penalty of each."""

    gates: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    penalties: list[float] = field(default_factory=list)


def follow(objective: Objective, gates: Tensor, free: list[int], penalty: float, steps: int) -> tuple[Tensor, Path]:
    """The gates (L,) when the first of the `free` ones has closed, or after so many steps, and the way there.

    Only free gates move. `penalty` is the first lambda.
    """
    path, current, curvature = Path(), gates.clone(), None
    loss, gradient = objective(current)
    for _ in range(steps):
        path.gates.append(current.tolist())
        path.losses.append(loss)
        path.penalties.append(penalty)
        if curvature is None:  # nothing is known yet: move by a small part of the trust region
            pull = gradient[free] + penalty
            move = -0.4 * TRUST * pull / pull.abs().max().clamp(min=1e-12)
        else:
            move = step(gradient[free], curvature, current[free], penalty)
        before, slope = current.clone(), gradient
        current[free] = (current[free] + move).clamp(0, OPEN)
        if float(current[free].min()) == 0:
            break
        loss, gradient = objective(current)
        moved, bent = (current - before)[free], (gradient - slope)[free]
        curvature = update(curvature, moved, bent)
        penalty *= GROWTH
    path.gates.append(current.tolist())
    return current, path


def step(gradient: Tensor, curvature: Tensor, gates: Tensor, penalty: float) -> Tensor:
    """The move d (n,) that minimises g d + d B d / 2 + lambda sum (S + d), |d| <= TRUST, 0 <= S + d <= OPEN.

    Coordinate descent; `curvature` B (n, n) is positive definite, so it converges.
    """
    low, high = (-gates).clamp(min=-TRUST), (OPEN - gates).clamp(max=TRUST)
    move = torch.zeros_like(gates)
    for _ in range(SWEEPS):
        before = move.clone()
        for i in range(len(move)):
            slope = gradient[i] + penalty + curvature[i] @ move - curvature[i, i] * move[i]
            move[i] = torch.clamp(-slope / curvature[i, i], low[i], high[i])
        if float((move - before).abs().max()) < 1e-9:
            break
    return move


def update(curvature: Tensor | None, moved: Tensor, bent: Tensor) -> Tensor:
    """B after a step: damped BFGS (Powell 1978), which stays positive definite; begun from the first step's bend."""
    along = float(moved @ bent)
    if curvature is None:
        scale = max(float(bent @ bent) / along if along > 0 else 0.0, 1e-6)
        curvature = scale * torch.eye(len(moved), dtype=moved.dtype)
    pushed = curvature @ moved
    expected = float(moved @ pushed)
    if expected <= 0:
        return curvature
    if along < 0.2 * expected:
        weight = 0.8 * expected / (expected - along)
        bent = weight * bent + (1 - weight) * pushed
        along = float(moved @ bent)
    return curvature - torch.outer(pushed, pushed) / expected + torch.outer(bent, bent) / along
