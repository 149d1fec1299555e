"""How many of a block's weights stand out by their Wanda scores.

Paper: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
Sparsity", ICML 2024, arXiv:2310.05175.
"""

from collections.abc import Sequence

from torch import Tensor

from prunekit.blockwise.statistics import InputNorm
from prunekit.blockwise.walk import Visit, observe
from prunekit.contract import Context


def outlier_ratios(ctx: Context, threshold: float) -> list[float]:
    """The outlier ratio of every block that is left, measured on the dense model over the calibration set."""
    ctx.progress.stage("outliers", len(ctx.model.kept))
    found: list[float] = []
    for visit in observe(ctx, InputNorm):
        found.append(outlier_ratio(scores(visit), threshold))
        ctx.progress.step(visit.block.path)
    return found


def scores(visit: Visit[InputNorm]) -> list[Tensor]:
    """|W_ij| * ||X_j|| of every linear of a block, each (outputs, inputs), float32."""
    return [linear.weight.float().abs() * visit.statistics[linear.path].norms for linear in visit.linears]


def outlier_ratio(scores: Sequence[Tensor], threshold: float) -> float:
    """The fraction of a block's scores that exceed `threshold` times their mean (section 3.2)."""
    count = max(1, sum(part.numel() for part in scores))
    mean = sum(part.double().sum().item() for part in scores) / count
    return sum(int((part > threshold * mean).sum()) for part in scores) / count


def less_for_more(ratios: Sequence[float], sizes: Sequence[int], spread: float) -> list[float]:
    """Sparsities, up to one constant, that fall linearly with the outlier ratio and span 2 Lambda.

    `sizes` counts the weights of each place; places without any have no part in the span.
    """
    known = [ratio for ratio, size in zip(ratios, sizes, strict=True) if size]
    low, width = min(known), max(known) - min(known)
    return [-2 * spread * (ratio - low) / width if width else 0.0 for ratio in ratios]
