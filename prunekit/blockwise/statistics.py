"""Streaming accumulators: what calibration keeps of the inputs of one linear, without keeping the inputs."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

CACHED_ROWS = 128  # so few that their squares are summed before they leave a CPU's cache: several times as fast


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
        for rows in x.reshape(-1, x.shape[-1]).split(CACHED_ROWS):
            self.squares += rows.float().square().sum(dim=0)

    @property
    def norms(self) -> Tensor:
        """(inputs,) float32: sqrt of the mean over sequences of ||x_j||^2, equal to ||X_j||_2 up to one constant."""
        return (self.squares / self.sequences).sqrt()

    def problem(self) -> str | None:
        return _problem(self.sequences, self.squares)


class Moments(InputNorm):
    """Sum and sum of squares of every input feature over all tokens."""

    def __init__(self, squares: Tensor) -> None:
        super().__init__(squares)
        self.sums = torch.zeros_like(squares)  # (inputs,)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        super().add(x)
        rows = x.reshape(-1, x.shape[-1])
        self.tokens += rows.shape[0]
        self.sums += rows.float().sum(dim=0)

    @property
    def means(self) -> Tensor:
        """(inputs,) float32: the mean of every input feature over all tokens."""
        return self.sums / self.tokens

    @property
    def variance(self) -> Tensor:
        """(inputs,) float32: the variance of every input feature over all tokens."""
        return (self.squares / self.tokens - self.means.square()).clamp_min(0)


class Gram(Moments):
    """X^T X, the Gram matrix of a linear's inputs, and their sums, over all tokens."""

    def __init__(self, total: Tensor) -> None:
        super().__init__(torch.zeros_like(total[0]))
        self.total = total  # (inputs, inputs) float32, sum over tokens of x x^T

    @classmethod
    def begin(cls, inputs: int, device: torch.device) -> Self:
        return cls(torch.zeros(inputs, inputs, dtype=torch.float32, device=device))

    def add(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        self.sequences += sequences(x)
        self.tokens += rows.shape[0]
        self.sums += rows.sum(dim=0)
        self.total.addmm_(rows.T, rows)
        self.squares = self.total.diagonal()


class Hessian(Gram):
    """H = (2 / sequences) X^T X, the second derivative of the layer's squared error (SparseGPT, section 3)."""

    @property
    def matrix(self) -> Tensor:
        """(inputs, inputs) float32."""
        return self.total * (2 / self.sequences)


class BlockInfluence:
    """How little a block turns its input: 1 - mean over tokens of cos(x_in, x_out) (ShortGPT, equation 1)."""

    def __init__(self) -> None:
        self.total, self.tokens = 0.0, 0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Take in the hidden states around a block, both (sequences, tokens, width)."""
        cosines = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self.total += cosines.cpu().double().sum().item()
        self.tokens += cosines.numel()

    @property
    def value(self) -> float:
        """From 0, for a block that changes no direction, to 2."""
        return 1 - self.total / self.tokens


def sequences(x: Tensor) -> int:
    """How many sequences a batch of inputs holds."""
    return x.shape[0] if x.dim() == 3 else 1


def _problem(count: int, values: Tensor) -> str | None:
    if count == 0:
        return "no calibration token reached it"
    return None if values.isfinite().all() else "its inputs are NaN or infinite on the calibration set"
