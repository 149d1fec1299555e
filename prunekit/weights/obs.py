"""The optimal brain surgeon: remove weights column by column, and let the columns that follow repair the error.

Paper: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023,
arXiv:2301.00774, algorithm 1.
"""

import torch
from torch import Tensor

from prunekit.plan import Pattern
from prunekit.weights.masks import keep_above_threshold, keep_per_group

SMALL = 128  # half of a triangular matrix that is not worth cutting further


def inverse_factor(hessian: Tensor, dampening: float) -> Tensor | None:
    """Upper-triangular U with U^T U = H'^-1, where H' is H (inputs, inputs) with a raised diagonal; None on failure.

    Read backwards, the factorisation H' = L L^T becomes H' = R R^T with R upper triangular, and U = R^-1. The authors
    factorise, invert and factorise again, which gives the same U for half as much work again.
    """
    lower, failed = torch.linalg.cholesky_ex(_raised(hessian, dampening).flip(0, 1))
    if failed:
        return None
    upper = invert_upper(lower.flip(0, 1))
    return upper if upper.isfinite().all() else None


def invert_upper(matrix: Tensor) -> Tensor:
    """The inverse of an upper-triangular matrix (n, n), by halves.

    [[A, B], [0, D]]^-1 = [[A^-1, -A^-1 B D^-1], [0, D^-1]]: n^3 / 3 multiplications, of which solving for an identity
    matrix, which no library knows to be triangular, would take three times as many.
    """
    half = len(matrix) // 2
    if half < SMALL:
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(matrix, identity, upper=True)
    first, corner, second = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    inverse = torch.zeros_like(matrix)
    inverse[:half, :half], inverse[half:, half:] = invert_upper(first), invert_upper(second)
    right = torch.linalg.solve_triangular(second, corner, upper=True, left=False)
    inverse[:half, half:] = -torch.linalg.solve_triangular(first, right, upper=True)
    return inverse


def _raised(hessian: Tensor, dampening: float) -> Tensor:
    """H with H_jj = 1 for dead inputs (H_jj = 0), and with `dampening` times the mean of its diagonal added to it."""
    raised = hessian.clone()
    diagonal = raised.diagonal()
    diagonal.masked_fill_(diagonal == 0, 1)
    diagonal.add_(dampening * diagonal.mean())
    return raised


def prune(weight: Tensor, factor: Tensor, sparsity: float, pattern: Pattern, block_size: int) -> Tensor:
    """The pruned weight (outputs, inputs) by the paper's algorithm 1, with the factor U (inputs, inputs) of H^-1."""
    columns = weight.T.contiguous()  # one row per input: a column of W is contiguous
    group = pattern.group or 1
    size = -(-block_size // group) * group  # no N:M group is split between two blocks
    for start in range(0, len(columns), size):
        stop = min(start + size, len(columns))
        errors = _prune_block(columns[start:stop], factor[start:stop, start:stop], sparsity, pattern)
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return columns.T


def _prune_block(columns: Tensor, factor: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Prune some consecutive inputs in place, shape (inputs, outputs); returns their errors, of the same shape.

    Each column is brought up to date from the errors of those before it only when its turn comes (two kernels a
    column), which equals updating all later columns after each one.
    """
    errors = torch.zeros_like(columns)
    scale = factor.diagonal()[:, None]
    step = pattern.group or len(columns)
    for start in range(0, len(columns), step):
        group = slice(start, start + step)
        current = columns[group] - factor[:start, group].T @ errors[:start]
        keep = _keep_mask((current / scale[group]).square(), sparsity, pattern)
        share = torch.where(keep, 0, 1 / scale[group])  # (w - q) / U_ii is w * share
        for offset in range(len(keep)):
            index = start + offset
            column = torch.addmv(columns[index], errors[:index].T, factor[:index, index], alpha=-1)
            torch.mul(column, share[offset], out=errors[index])
            columns[index] = column.masked_fill_(~keep[offset], 0)
    return errors


def _keep_mask(scores: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Keep mask of W^2 / U_jj^2, shape (inputs, outputs): one threshold for all, or the N largest of each group."""
    if pattern.group is None:
        return keep_above_threshold(scores, sparsity)
    return keep_per_group(scores.T, pattern).T
