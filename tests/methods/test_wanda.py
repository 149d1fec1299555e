"""What Wanda's mathematics promises, on matrices small enough to check by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunekit import testing as checks
from prunekit.contract import carry_out
from prunekit.plan import Pattern
from prunekit_methods.wanda import Wanda, keep_variant, scores

UNSTRUCTURED = Pattern()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_score_is_the_size_of_the_weight_times_the_norm_of_its_input() -> None:
    weight, norms = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([10.0, 1.0])
    assert scores(weight, norms).tolist() == [[10.0, 2.0], [30.0, 0.5]]


def test_scores_of_half_precision_weights_are_float32() -> None:
    assert scores(random(4, 8).bfloat16(), torch.rand(8)).dtype == torch.float32


@pytest.mark.parametrize(("columns", "sparsity", "pruned"), [(10, 0.5, 5), (7, 0.5, 3), (10, 0.29, 2), (100, 0.29, 28)])
def test_every_row_loses_exactly_the_truncated_number_of_weights(columns: int, sparsity: float, pruned: int) -> None:
    keep = Wanda().keep_mask(random(16, columns).abs(), sparsity, UNSTRUCTURED)
    assert (~keep).sum(dim=1).tolist() == [pruned] * 16


def test_the_smallest_scores_of_a_row_go_whatever_other_rows_hold() -> None:
    saliency = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    keep = Wanda().keep_mask(saliency, 0.5, UNSTRUCTURED)
    assert keep.tolist() == [[False, False, True, True], [True, True, False, False]]


def test_of_equal_scores_those_to_the_left_go_first() -> None:
    keep = Wanda().keep_mask(torch.ones(3, 5), 0.4, UNSTRUCTURED)
    assert keep.tolist() == [[False, False, True, True, True]] * 3
    assert Wanda().keep_mask(torch.ones(1, 8), 0.5, Pattern(2, 4)).tolist() == [[False, False, True, True] * 2]


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4)], ids=str)
def test_a_pattern_keeps_the_n_largest_of_every_m(pattern: Pattern) -> None:
    assert pattern.kept and pattern.group
    saliency = random(8, 32).abs()
    groups = saliency.view(8, -1, pattern.group)
    keep = Wanda().keep_mask(saliency, 0.5, pattern).view_as(groups)
    assert (keep.sum(dim=2) == pattern.kept).all()
    dropped = groups.masked_fill(keep, -1).amax(dim=2)
    assert (groups.masked_fill(~keep, 9e9).amin(dim=2) >= dropped).all()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_the_variant_meets_the_sparsity_of_the_matrix_and_not_of_each_row(sparsity: float) -> None:
    saliency = scores(random(256, 512) * torch.linspace(0.5, 2, 256)[:, None].pow(2), random(512, seed=1).abs() + 0.1)
    saliency[:128, :64] *= 20  # rows of unlike shape
    keep = keep_variant(saliency, sparsity)
    assert 1 - keep.float().mean().item() == pytest.approx(sparsity, abs=0.001)
    assert (~keep).sum(dim=1).float().std() > 1
    dropped = saliency.masked_fill(keep, -1).amax(dim=1)
    assert (saliency.masked_fill(~keep, 9e9).amin(dim=1) > dropped).all()


def test_the_variant_keeps_a_row_whose_smallest_score_is_above_its_share() -> None:
    saliency = torch.cat([torch.full((1, 2), 5.0).expand(64, 2), torch.zeros(64, 2)], dim=1)
    assert keep_variant(saliency, 0.5).tolist() == [[True, True, False, False]] * 64
    alone = torch.ones(1, 1)
    assert keep_variant(alone, 0.5).all()


def test_without_sparsity_nothing_goes() -> None:
    for method in (Wanda(), Wanda(variant=True)):
        assert method.keep_mask(random(8, 16).abs(), 0.0, UNSTRUCTURED).all()


def test_the_user_is_told_when_the_variant_cannot_reach_the_sparsity(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    notes: dict[float, list[str]] = {}
    for ratio in (0.5, 0.98):
        method = Wanda(variant=True)
        ctx = checks.open_context(tiny_llama(name=f"source-{ratio}"), method, tmp_path / f"out-{ratio}", ratio=ratio)
        carry_out(method, ctx, method.plan(ctx))
        notes[ratio] = ctx.notes
    assert not notes[0.5]
    assert notes[0.98] == ["the variant's search misses the planned sparsity 0.98 in some linears"]


def test_a_linear_whose_planned_sparsity_is_zero_stays_as_it_is(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    checks.check_zero_sparsity_changes_nothing(Wanda(), tiny_llama(), tmp_path / "plain")
    checks.check_zero_sparsity_changes_nothing(Wanda(variant=True), tiny_llama(name="again"), tmp_path / "variant")
