"""Eigenvalues of W W^T, the squared singular values of a weight, from the smaller of its two Gram matrices.

The Gram matrix is summed in float64. In float32 its small eigenvalues drown: for a square Gaussian matrix of 2048 rows
the smallest comes out wrong by a factor of 30, from float64 within 1e-7 of what the singular values say.
"""

import torch
from torch import Tensor

CHUNK = 2**22  # numbers that are held as float64 at once, beside the Gram matrix
PANEL = 512  # rows of the Gram matrix that are computed together; only its lower half is
RESOLVED = 1e-14  # of the largest eigenvalue: below it a float64 Gram matrix holds rounding errors


def eigenvalues(weight: Tensor) -> Tensor:
    """All eigenvalues of W W^T or W^T W, whichever is smaller, ascending, for a weight (m, n): (min(m, n),) float64.

    What lies below the resolution of the Gram matrix, RESOLVED times the largest, is set to zero. A stack of weights
    (..., m, n) gives (..., min(m, n)).
    """
    return of_gram(lower_gram(weight))


def of_gram(gram: Tensor) -> Tensor:
    """The eigenvalues (..., k) of a Gram matrix (..., k, k) of which the lower half is there; as `eigenvalues`."""
    found = torch.linalg.eigvalsh(gram, UPLO="L")
    return found.masked_fill_(found < RESOLVED * found[..., -1:].clamp(min=0), 0).clamp_(min=0).cpu()


def lower_gram(weight: Tensor) -> Tensor:
    """The lower half, with the diagonal, of the smaller of W W^T and W^T W, in float64; what is above means nothing.

    Beside the result little more than CHUNK numbers are held in float64.
    """
    wide = weight if weight.shape[-2] <= weight.shape[-1] else weight.mT
    rows, columns = wide.shape[-2:]
    gram = torch.zeros(*wide.shape[:-1], rows, dtype=torch.float64, device=wide.device)
    for part in wide.split(max(1, CHUNK * columns // wide.numel()), dim=-1):
        x = part.double()
        for start in range(0, rows, PANEL):
            stop = min(start + PANEL, rows)
            gram[..., start:stop, :stop] += x[..., start:stop, :] @ x[..., :stop, :].mT
    return gram


def windowed_eigenvalues(weight: Tensor, windows: int, rows: int = 2000) -> Tensor:
    """The mean spectrum of square sub-matrices, which knows nothing of the weight's aspect ratio; (k,) float64.

    `windows` x `windows` overlapping squares of min(rows, m, n) rows are slid over the weight (m, n), as in FARMS (Hu
    et al., ICML 2025, arXiv:2506.06280). The authors join the eigenvalues of all; ours are as many quantiles of these
    as one square has eigenvalues, so that what is read from them costs no more than for one matrix.
    """
    side = min(rows, *weight.shape)
    found = [
        eigenvalues(weight[top : top + side, left : left + side])
        for top in _starts(weight.shape[0], side, windows)
        for left in _starts(weight.shape[1], side, windows)
    ]
    return torch.cat(found).sort().values[len(found) // 2 :: len(found)]


def _starts(length: int, side: int, windows: int) -> list[int]:
    """Where windows begin, evenly from the first place to the last; the same place is not taken twice."""
    last = length - side
    return sorted({round(number * last / max(1, windows - 1)) for number in range(windows)})
