"""How many neurons go: the ratio in parameters, multiples, and plans that a person edited."""

from pathlib import Path
from typing import Any

import pytest

import families
from prunekit.contract import Context
from prunekit.depth.actions import RemoveBlock
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.plan import PrunePlan
from prunekit.testing import open_context
from prunekit.weights.actions import Sparsify
from prunekit.width.actions import Narrow
from prunekit.width.config import default_multiple
from prunekit.width.plan import Neurons, check_narrowing, neurons, plan_narrowing, planned_ratio, spread
from prunekit_methods.wanda_sp import WandaSP

MODEL = Neurons({}, units=100, cost=10, parameters=dict.fromkeys(range(4), 1500), multiple=8)


def context(folder: Path, **changes: Any) -> Context:
    ctx = open_context(folder, WandaSP(), ratio=0.3)
    for name, value in changes.items():
        setattr(ctx, name, value)
    return ctx


def test_what_a_share_cannot_take_goes_to_the_others() -> None:
    assert spread(6, [1, 2, 3], 10) == pytest.approx([1, 2, 3])
    assert spread(6, [1, 1, 4], 3) == pytest.approx([1.5, 1.5, 3])
    assert spread(9, [0, 1, 1], 3) == pytest.approx([0, 3, 3])  # a share of 0 is never asked


def test_the_ratio_counts_parameters_of_blocks_and_neurons_alike() -> None:
    assert MODEL.gone(0.2) == pytest.approx(120)
    assert MODEL.gone(0.5, removed=[1]) == pytest.approx(150)
    assert MODEL.gone(0.1, removed=[1]) == 0
    assert MODEL.ratio([1], {0: 50, 2: 50, 3: 50}) == pytest.approx(0.5)


def test_more_neurons_than_there_are_is_a_usage_error_that_names_the_most() -> None:
    with pytest.raises(UsageError, match="at least 8 must stay") as caught:
        MODEL.gone(0.7)
    hint = float(str(caught.value.hint).split()[1].rstrip(","))
    assert 0.55 < hint < 0.62 and MODEL.gone(hint) > 0


def test_widths_are_multiples_and_meet_the_sum() -> None:
    assert set(MODEL.widths(120, range(4)).values()) == {72}
    unequal = MODEL.widths(120, range(4), {0: 1, 1: 2, 2: 3, 3: 0})
    assert unequal == {0: 80, 1: 64, 2: 40, 3: 96}
    assert all(width % 8 == 0 or width == 100 for width in unequal.values())
    for gone in range(0, 300, 7):
        widths = MODEL.widths(gone, range(4), {0: 1, 1: 1.5, 2: 2, 3: 0.7})
        assert abs(400 - gone - sum(widths.values())) <= 8


@pytest.mark.parametrize(("units", "multiple"), [(11008, 256), (4096, 256), (2048, 64), (512, 8), (172, 8)])
def test_the_default_multiple_follows_the_width(units: int, multiple: int) -> None:
    assert default_multiple(units) == multiple


def test_a_neuron_costs_its_rows_its_biases_and_its_column(tmp_path: Path) -> None:
    assert neurons(context(families.save("llama", tmp_path / "llama"))).cost == 3 * 32
    assert neurons(context(families.save("gpt2", tmp_path / "gpt2"))).cost == 2 * 32 + 1


def test_rounding_that_shows_is_named(tmp_path: Path) -> None:
    ctx = context(families.save("llama", tmp_path), width_multiple=32)
    found = neurons(ctx)
    plan_narrowing(ctx, "wanda-sp", found, found.widths(found.gone(0.3), found.ffns))
    assert "multiples of 32; 30.00% were asked for" in ctx.notes[0]


@pytest.mark.parametrize("family", ["mpt", "bloom"])
def test_a_model_whose_config_has_no_width_is_refused_at_once(family: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no setting of"):
        neurons(context(families.save(family, tmp_path)))


def test_a_multiple_as_large_as_the_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="64 neurons cannot be cut to a multiple of 64"):
        neurons(context(families.save("llama", tmp_path), width_multiple=64))


def edited(*actions: Any) -> PrunePlan:
    return PrunePlan(method="wanda-sp", ratio=0.3, actions=actions)


EVERY = [Narrow(block=index, units=32) for index in range(4)]


@pytest.mark.parametrize(
    ("actions", "error", "words"),
    [
        (EVERY[:3], InputError, "no action for block 3"),
        ([*EVERY, Narrow(block=9, units=32)], InputError, "names block 9"),
        ([*EVERY[:3], Narrow(block=3, units=65)], InputError, "leaves 65 neurons in block 3, which has 64"),
        ([*EVERY[:3], Narrow(block=3, units=40)], UsageError, "32 to 40 neurons"),
        ([*EVERY, Sparsify(linear="model.layers.0.mlp.up_proj", sparsity=0.5)], InputError, "wants sparsify"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(
    actions: list[Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    ctx, plan = context(families.save("llama", tmp_path)), edited(*actions)
    ctx.model = plan.applied_to(ctx.model)
    with pytest.raises(error, match=words):
        check_narrowing(ctx, plan)


def test_a_block_is_removed_or_narrowed_and_not_both() -> None:
    with pytest.raises(ValueError, match="block 1 is removed and narrowed"):
        edited(RemoveBlock(block=1), *EVERY)


def test_an_edited_plan_knows_its_ratio(tmp_path: Path) -> None:
    ctx = context(families.save("llama", tmp_path))
    plan = edited(RemoveBlock(block=1), EVERY[0], EVERY[2], Narrow(block=3, units=64))
    block = 2 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64  # norms, q and o, k and v, the feed-forward layer
    assert planned_ratio(ctx.model, plan) == pytest.approx((block + 2 * 32 * 96) / (4 * block))
