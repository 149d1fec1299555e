"""The spectra of a model's linears, read from the checkpoint one matrix at a time, and what they say of each.

No block is built and no forward pass is run. The eigenvalues are cached by the hash of the tensor they come from, so
that another metric, another ratio or another run costs reading and hashing only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prunekit import cache
from prunekit.model.device import give_back_memory
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import Linear
from prunekit.progress import Progress, Silent
from prunekit.spectra.eigenvalues import lower_gram, of_gram, windowed_eigenvalues
from prunekit.spectra.power_law import EXPONENTS, LowerBound, Metric, measure

VERSION = 1  # of how eigenvalues are computed
SKETCHED, DRAWN = 16, 300  # eigenvalues of a matrix in a sketch, which is for people, and matrices
FITTED = ("alpha_peak", *EXPONENTS)  # metrics that are exponents


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The eigenvalues of W W^T of one linear, float64 and ascending, zeros included."""

    block: int
    linear: Linear
    values: Tensor

    def measure(self, metric: Metric, lower_bound: LowerBound = "released") -> float:
        """A metric of `prunekit.spectra.power_law`; 0 where it is not defined for this matrix."""
        return measure(self.values, metric, lower_bound)

    @property
    def remark(self) -> str | None:
        """What is odd about this matrix, so that its exponent says nothing or is missing; None for most."""
        size = len(self.values)
        positive = self.values[self.values > 0]
        if len(positive) == 0:
            return "is all zero"
        if size < 2:
            return "has only one row or column"
        if not self.measure("alpha_mid"):
            return "has all singular values alike" if len(positive) > 1 else "has rank 1"
        return f"has rank {len(positive)} of {size}" if len(positive) < size else None


def spectra(model: PrunableModel, *, windows: int = 0, progress: Progress | None = None) -> Iterator[Spectrum]:
    """The spectrum of every linear of the blocks that are left, in order.

    With `windows`, of that many by that many square sub-matrices (`windowed_eigenvalues`). Raises InputError naming a
    tensor with NaN or infinite values. In memory is one matrix as it is stored with its Gram matrix, and
    then that alone.
    """
    progress = progress or Silent()
    progress.stage("spectra", len(model.kept))
    for block in model.kept:
        for linear in block.linears:
            yield Spectrum(block.index, linear, _values(model, linear, windows))
        progress.step(block.path)


def _values(model: PrunableModel, linear: Linear, windows: int) -> Tensor:
    name = f"{linear.path}.weight"
    digest = _digest(model, name)
    path = cache.entry("spectra", version=VERSION, windows=windows, tensor=digest)
    known = cache.read(path)
    found = known[0] if known else None
    if found is None:
        place = model.device if model.device.type == "cuda" else "cpu"
        weight = model.read([name])[name].to(place)  # others do not know float64
        if windows:
            found = windowed_eigenvalues(weight, windows)
        else:
            gram = lower_gram(weight)
            del weight  # its memory is wanted for the decomposition
            found = of_gram(gram)
        cache.write(path, found)
        give_back_memory()
    return found


def _digest(model: PrunableModel, name: str) -> str:
    """The hash of a stored tensor, of which no copy is made."""
    found: list[str] = []

    def hashed(stored: Tensor) -> Tensor:
        found.append(cache.digest(stored))
        return stored.new_empty(0)

    model.read([name], hashed)
    return found[0]


def sketch(found: Sequence[Spectrum]) -> dict[str, list[float]]:
    """Linear path -> a few eigenvalues, the largest first, at ranks that are evenly spaced on a logarithmic scale.

    Between ranks they are interpolated. Of more than DRAWN matrices only every second, third ... is taken.
    """
    return {spectrum.linear.path: _sketched(spectrum.values) for spectrum in found[:: -(-len(found) // DRAWN) or 1]}


def _sketched(values: Tensor) -> list[float]:
    ranks = np.geomspace(1, len(values), SKETCHED)
    drawn = np.interp(ranks, np.arange(1, len(values) + 1), values.flip(0).numpy())
    return [float(f"{value:.4g}") for value in drawn]


def metrics(
    found: Sequence[Spectrum], metric: Metric, lower_bound: LowerBound = "released"
) -> tuple[dict[str, float], list[str]]:
    """Linear path -> metric, and a remark on each matrix for which it is not defined.

    Such a matrix says nothing for or against: it is given the mean of the others of its block, else of all others.
    """
    values = {spectrum.linear.path: spectrum.measure(metric, lower_bound) for spectrum in found}
    if metric not in FITTED:
        return values, []
    known = [spectrum for spectrum in found if values[spectrum.linear.path]]
    remarks: list[str] = []
    for spectrum in found:
        if spectrum not in known:
            near = [other for other in known if other.block == spectrum.block] or known
            values[spectrum.linear.path] = sum(values[other.linear.path] for other in near) / max(1, len(near))
            remarks.append(f"{spectrum.linear.path} {spectrum.remark or 'has no tail'}: {metric} is not defined for it")
    return values, remarks
