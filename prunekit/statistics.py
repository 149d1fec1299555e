"""Streaming accumulators: what calibration keeps of the inputs of one linear, without keeping the inputs."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor


class Statistics(ABC):
    """Accumulates over calibration batches; one instance serves every linear that reads the same input."""

    @classmethod
    @abstractmethod
    def begin(cls, inputs: int, device: torch.device) -> Self:
        """An empty accumulator for a linear with that many input features."""

    @abstractmethod
    def add(self, x: Tensor) -> None:
        """Take in one batch of inputs, shape (sequences, tokens, inputs) or (tokens, inputs)."""

    @abstractmethod
    def problem(self) -> str | None:
        """Why this cannot be used for pruning (nothing seen, numbers not finite), or None."""


class InputNorm(Statistics):
    """The Euclidean norm of every input feature over all tokens (Wanda's ||X_j||_2)."""

    def __init__(self, squares: Tensor) -> None:
        self.squares = squares  # (inputs,) float32, sum over tokens of x_j^2
        self.sequences = 0

    @classmethod
    def begin(cls, inputs: int, device: torch.device) -> Self:
        return cls(torch.zeros(inputs, dtype=torch.float32, device=device))

    def add(self, x: Tensor) -> None:
        self.sequences += sequences(x)
        rows = x.reshape(-1, x.shape[-1])
        self.squares += torch.linalg.vector_norm(rows, dim=0, dtype=torch.float32).square_()

    @property
    def norms(self) -> Tensor:
        """(inputs,) float32: sqrt of the mean over sequences of ||x_j||^2, equal to ||X_j||_2 up to one constant."""
        return (self.squares / self.sequences).sqrt()

    def problem(self) -> str | None:
        return _problem(self.sequences, self.squares)


class Hessian(Statistics):
    """H = (2 / sequences) X^T X, the second derivative of the layer's squared error (SparseGPT, section 3)."""

    def __init__(self, total: Tensor) -> None:
        self.total = total  # (inputs, inputs) float32, sum over tokens of x x^T
        self.sequences = 0

    @classmethod
    def begin(cls, inputs: int, device: torch.device) -> Self:
        return cls(torch.zeros(inputs, inputs, dtype=torch.float32, device=device))

    def add(self, x: Tensor) -> None:
        self.sequences += sequences(x)
        rows = x.reshape(-1, x.shape[-1]).float()
        self.total.addmm_(rows.T, rows)

    @property
    def matrix(self) -> Tensor:
        """(inputs, inputs) float32."""
        return self.total * (2 / self.sequences)

    def problem(self) -> str | None:
        return _problem(self.sequences, self.total.diagonal())


def sequences(x: Tensor) -> int:
    """How many sequences a batch of inputs holds."""
    return x.shape[0] if x.dim() == 3 else 1


def _problem(count: int, values: Tensor) -> str | None:
    if count == 0:
        return "no calibration token reached it"
    return None if values.isfinite().all() else "its inputs are NaN or infinite on the calibration set"
