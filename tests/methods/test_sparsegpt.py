"""What SparseGPT's mathematics promises, on small matrices with correlated inputs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunekit import testing as checks
from prunekit.contract import carry_out
from prunekit.errors import UnsupportedError
from prunekit.plan import Pattern
from prunekit.weights.masks import keep_per_row
from prunekit_methods import sparsegpt
from prunekit_methods.sparsegpt import SparseGPT, inverse_factor, prune

Model = Callable[..., Path]
UNSTRUCTURED = Pattern()
PATTERNS = pytest.mark.parametrize("pattern", [UNSTRUCTURED, Pattern(2, 4), Pattern(4, 8)], ids=str)


def inputs(columns: int, tokens: int = 2000, seed: int = 0) -> Tensor:
    """Inputs (tokens, columns) of unlike sizes that are mixed, with a little noise, from a quarter as many sources."""
    draw = torch.Generator().manual_seed(seed)
    sources = torch.randn(tokens, columns // 4, generator=draw)
    mixed = sources @ torch.randn(columns // 4, columns, generator=draw)
    return mixed * torch.linspace(0.2, 2, columns) + 0.3 * torch.randn(tokens, columns, generator=draw)


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def factor_of(x: Tensor, dampening: float = 0.01) -> Tensor:
    factor = inverse_factor(2 * x.T @ x, dampening)
    assert factor is not None
    return factor


def error(x: Tensor, weight: Tensor, pruned: Tensor) -> float:
    """||X W^T - X W'^T||^2."""
    return float((x @ (weight - pruned).T).square().sum())


def test_the_factor_is_upper_triangular_and_its_square_is_the_inverse() -> None:
    x = inputs(40).double()
    hessian = 2 * x.T @ x
    factor = inverse_factor(hessian, 0.01)
    assert factor is not None and torch.equal(factor, factor.triu()) and (factor.diagonal() > 0).all()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(40, dtype=torch.float64), atol=1e-9)


def test_making_the_factor_leaves_the_hessian_as_it_is() -> None:
    hessian = inputs(8).T @ inputs(8)
    before = hessian.clone()
    inverse_factor(hessian, 0.01)
    assert torch.equal(hessian, before)


@PATTERNS
def test_the_update_makes_up_for_a_good_part_of_the_error_that_masking_alone_makes(pattern: Pattern) -> None:
    x, weight = inputs(64), matrix(32, 64)
    pruned = prune(weight, factor_of(x), 0.5, pattern, 128)
    masked = weight * keep_per_row(weight.abs() * x.norm(dim=0), 0.5, pattern)
    assert error(x, weight, pruned) < 0.7 * error(x, weight, masked)
    updated_only_where_kept = weight.masked_fill(pruned == 0, 0)
    assert error(x, weight, pruned) < error(x, weight, updated_only_where_kept)


@pytest.mark.parametrize("block_size", [16, 32, 128, 4096])
def test_each_block_of_columns_loses_its_share_and_one_weight_for_the_threshold(block_size: int) -> None:
    pruned = prune(matrix(20, 96), factor_of(inputs(96)), 0.5, UNSTRUCTURED, block_size)
    for block in pruned.split(block_size, dim=1):
        assert int((block == 0).sum()) == block.numel() // 2 + 1


def test_a_block_wider_than_the_matrix_is_the_whole_matrix() -> None:
    weight, factor = matrix(8, 24), factor_of(inputs(24))
    one, other = (prune(weight, factor, 0.5, UNSTRUCTURED, size) for size in (24, 4096))
    assert torch.equal(one, other)


@pytest.mark.parametrize("block_size", [1, 6, 10, 127])
def test_a_block_size_that_a_group_does_not_divide_splits_no_group(block_size: int) -> None:
    pruned = prune(matrix(16, 40), factor_of(inputs(40)), 0.5, Pattern(2, 4), block_size)
    assert ((pruned.reshape(16, -1, 4) != 0).sum(dim=2) == 2).all()


def test_for_a_pattern_the_block_size_changes_the_order_of_the_sums_only() -> None:
    weight, factor = matrix(16, 64).double(), factor_of(inputs(64).double())
    one, other = (prune(weight, factor, 0.5, Pattern(4, 8), size) for size in (8, 64))
    assert torch.allclose(one, other, atol=1e-12)


def test_the_last_columns_are_only_masked_because_none_is_left_to_make_up() -> None:
    weight, x = matrix(8, 16), inputs(16)
    uncorrelated = factor_of(torch.eye(16) * x.norm(dim=0))
    pruned = prune(weight, uncorrelated, 0.5, UNSTRUCTURED, 128)
    assert torch.equal(pruned, weight.masked_fill(pruned == 0, 0))


def test_fewer_tokens_than_inputs_are_enough() -> None:
    x, weight = inputs(96, tokens=20), matrix(16, 96)
    pruned = prune(weight, factor_of(x), 0.5, UNSTRUCTURED, 128)
    assert pruned.isfinite().all()
    assert error(x, weight, pruned) < error(
        x, weight, weight * keep_per_row(weight.abs() * x.norm(dim=0), 0.5, Pattern())
    )


def test_inputs_that_are_never_active_give_columns_of_zeros_and_no_negative_zero(
    tiny_llama: Model, tmp_path: Path
) -> None:
    folder = tiny_llama(num_hidden_layers=2)
    silence_inputs(folder, "model.layers.0.post_attention_layernorm.weight", [3, 17])
    for pattern in ("unstructured", "2:4"):
        pruned = checks.prune(folder, SparseGPT(), tmp_path / pattern.replace(":", "-"), ratio=0.5, pattern=pattern)
        for name, tensor in pruned.items():
            assert not ((tensor == 0) & tensor.signbit()).any(), name
        for part in ("gate_proj", "up_proj"):
            columns = pruned[f"model.layers.0.mlp.{part}.weight"]
            assert not columns[:, [3, 17]].any()
            assert (columns != 0).any(dim=0).sum() >= 30 - 2 * 17 * (pattern == "2:4")


def silence_inputs(folder: Path, norm: str, features: list[int]) -> None:
    """Let a norm of a saved model give exactly zero for some features."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[norm][features] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_hessian_of_zeros_prunes_to_zeros() -> None:
    factor = inverse_factor(torch.zeros(8, 8), 0.01)
    assert factor is not None and torch.allclose(factor, torch.eye(8) / 1.01**0.5)


INDEFINITE = torch.tensor([[1.0, 1.05], [1.05, 1.0]])  # a smallest eigenvalue of -0.05


class Listener:
    """A context of which `factorise` needs the notes alone."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_dampening_is_doubled_until_the_factorisation_succeeds_and_that_is_noted() -> None:
    ctx = Listener()
    factor = SparseGPT(dampening=0.01).factorise(ctx, "model.layers.0.mlp.up_proj", INDEFINITE)  # type: ignore[arg-type]
    expected = inverse_factor(INDEFINITE, 0.08)
    assert expected is not None and torch.equal(factor, expected)
    assert [note.rpartition(" ")[2] for note in ctx.notes] == ["0.02", "0.04", "0.08"]
    assert all(note.startswith("model.layers.0.mlp.up_proj: ") for note in ctx.notes)


def test_a_hessian_that_no_dampening_helps_is_refused_by_name() -> None:
    hopeless = torch.tensor([[1.0, 9.0], [9.0, 1.0]])
    with pytest.raises(UnsupportedError, match=r"mlp\.up_proj: the Hessian cannot be inverted"):
        SparseGPT().factorise(Listener(), "mlp.up_proj", hopeless)  # type: ignore[arg-type]


def test_a_note_of_raised_dampening_reaches_the_run(
    tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sparsegpt.inverse_factor
    monkeypatch.setattr(sparsegpt, "inverse_factor", lambda h, d: None if d < 0.02 else real(h, d))
    method = SparseGPT()
    ctx = checks.open_context(tiny_llama(num_hidden_layers=2), method, tmp_path / "out")
    carry_out(method, ctx, method.plan(ctx))
    assert len(ctx.notes) == 2 * 4, "one note for each input that linears share"
    assert all(note.endswith("dampening raised to 0.02") for note in ctx.notes)


def test_a_linear_whose_planned_sparsity_is_zero_stays_as_it_is_even_with_dead_inputs(
    tiny_llama: Model, tmp_path: Path
) -> None:
    folder = tiny_llama(num_hidden_layers=2)
    silence_inputs(folder, "model.layers.0.post_attention_layernorm.weight", [3, 17])
    checks.check_zero_sparsity_changes_nothing(SparseGPT(), folder, tmp_path)


def test_true_sequential_prunes_the_first_linears_alike_and_the_later_ones_from_new_inputs(
    tiny_llama: Model, tmp_path: Path
) -> None:
    folder = tiny_llama(num_hidden_layers=2)
    default = checks.prune(folder, SparseGPT(), tmp_path / "default")
    staged = checks.prune(folder, SparseGPT(true_sequential=True), tmp_path / "staged")
    first = "model.layers.0."
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        assert torch.equal(default[f"{first}{name}.weight"], staged[f"{first}{name}.weight"])
    for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        assert not torch.equal(default[f"{first}{name}.weight"], staged[f"{first}{name}.weight"])


def test_a_group_of_true_sequential_sees_the_block_as_the_groups_before_left_it(
    tiny_llama: Model, tmp_path: Path
) -> None:
    from prunekit.blockwise.statistics import Hessian
    from prunekit.blockwise.walk import walk

    method = SparseGPT(true_sequential=True)
    groups, energies = list[list[str]](), dict[str, float]()
    ctx = checks.open_context(tiny_llama(num_hidden_layers=1), method, tmp_path / "out")
    for visit in walk(ctx, Hessian, sequential=True):
        groups.append([linear.path.rpartition(".")[2] for linear in visit.linears])
        for linear in visit.linears:
            energies[groups[-1][0]] = float(visit.statistics[linear.path].matrix.trace())
            linear.write(torch.zeros_like(linear.weight))
    assert groups == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert energies["q_proj"] > 0 and energies["gate_proj"] > 0
    assert energies["o_proj"] == 0 and energies["down_proj"] == 0
