import pytest
import torch

import families
from prunekit.contract import Context
from prunekit.errors import PrunekitError, UsageError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Pattern
from prunekit.weights.allocation import check_budget
from prunekit_methods.uniform import Uniform

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"  # of one size


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PrunableModel:
    folder = families.save("llama", tmp_path_factory.mktemp("llama") / "source")
    return PrunableModel.open(Checkpoint.open(folder), device="cpu")


@pytest.fixture
def ctx(model: PrunableModel) -> Context:
    return Context(model=model, ratio=0.5, probe=torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_uniform_gives_every_linear_the_same_and_passes_every_check(
    ctx: Context, sparsity: float, pattern: str
) -> None:
    ctx.pattern = Pattern.parse(pattern)

    budget = Uniform().allocate(ctx, sparsity)

    assert list(budget) == list(ctx.model.linears())
    assert set(budget.values()) == {sparsity}
    check_budget(ctx, budget, sparsity, "uniform")


def test_unequal_sparsities_with_the_right_mean_are_a_budget(ctx: Context) -> None:
    budget = dict(Uniform().allocate(ctx, 0.5)) | {UP: 0.3, DOWN: 0.7}

    check_budget(ctx, budget, 0.5, "own")


def test_a_fixed_pattern_refuses_unequal_sparsities(ctx: Context) -> None:
    ctx.pattern = Pattern.parse("2:4")
    budget = dict(Uniform().allocate(ctx, 0.5)) | {UP: 0.3, DOWN: 0.7}

    with pytest.raises(
        UsageError, match=r"pattern 2:4 fixes one sparsity .* allocator own gives unequal ones"
    ) as caught:
        check_budget(ctx, budget, 0.5, "own")

    assert caught.value.exit_code == 2
    assert "--allocator uniform" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"extra": 0.5}, "did not give a sparsity to every linear"),
        ({UP: 1.0}, rf"gave {UP} a sparsity of 1\.0; expected \[0, 1\)"),
        ({UP: -0.1}, r"a sparsity of -0\.1"),
        ({UP: float("nan")}, "a sparsity of nan"),
        ({UP: 0.9}, r"a mean sparsity of 0\.5\d+; expected 0\.500000"),
    ],
)
def test_an_allocator_that_breaks_its_contract_is_named(ctx: Context, change: dict[str, float], text: str) -> None:
    budget = dict(Uniform().allocate(ctx, 0.5)) | change

    with pytest.raises(PrunekitError, match=f"allocator own .*{text}") as caught:
        check_budget(ctx, budget, 0.5, "own")

    assert caught.value.exit_code == 70


def test_a_budget_that_leaves_a_linear_out_is_refused(ctx: Context) -> None:
    budget = dict(Uniform().allocate(ctx, 0.5))
    del budget[UP]

    with pytest.raises(PrunekitError, match="every linear"):
        check_budget(ctx, budget, 0.5, "own")
