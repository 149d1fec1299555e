"""COMP and its comparators: what each looks at, what makes up for what goes, and that the ratio is met."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from prunekit import testing as checks
from prunekit.blockwise.stream import logits
from prunekit.contract import Context, Method, carry_out
from prunekit.errors import UnsupportedError
from prunekit.model.prunable import PrunableModel
from prunekit.plan import PrunePlan
from prunekit.recipe import registry
from prunekit.width.plan import planned_ratio
from prunekit_methods.comp import COMP, losses
from prunekit_methods.flap import FLAP
from prunekit_methods.llm_pruner import LLMPruner, taylor

pytestmark = pytest.mark.slow

WIDTH_METHODS = ("comp", "flap", "llm-pruner", "wanda-sp")
Model = Callable[..., Path]
each_method = pytest.mark.parametrize("name", WIDTH_METHODS)


def pruned(folder: Path, method: Method, target: Path, **changes: Any) -> tuple[Context, PrunePlan]:
    ratio = changes.pop("ratio", 0.3)
    ctx = checks.open_context(folder, method, target, ratio=ratio)
    for key, value in changes.items():
        setattr(ctx, key, value)
    plan = method.plan(ctx)
    carry_out(method, ctx, plan)
    return ctx, plan


def damage(ctx: Context, dense: Tensor) -> float:
    """Mean squared distance of the logits from the dense model's, on the calibration set."""
    assert ctx.calibration is not None
    return float((torch.cat(list(logits(ctx.model, ctx.calibration))) - dense).square().mean())


def dense_logits(folder: Path) -> Tensor:
    ctx = checks.open_context(folder, COMP())
    assert ctx.calibration is not None
    return torch.cat(list(logits(ctx.model, ctx.calibration)))


@each_method
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4])
@pytest.mark.parametrize("layout", ["uniform", "per-layer"])
def test_the_ratio_of_block_parameters_is_met_or_the_rounding_is_named(
    name: str, ratio: float, layout: str, tiny_llama: Model, tmp_path: Path
) -> None:
    ctx = checks.open_context(tiny_llama(intermediate_size=256), registry.load(name)(), ratio=ratio)
    ctx.layout = layout  # type: ignore[assignment]
    plan = registry.load(name)().plan(ctx)
    found = planned_ratio(ctx.model, plan)
    assert abs(found - ratio) < 0.01 or f"{found:.2%}" in ctx.notes[0]
    assert (len(set(plan.widths().values())) == 1) or layout == "per-layer"


def test_new_weights_do_less_damage_than_masks_and_masks_less_than_nothing(tiny_llama: Model, tmp_path: Path) -> None:
    folder = tiny_llama(intermediate_size=128)
    dense = dense_logits(folder)
    found = [
        damage(pruned(folder, COMP(recover=how, target="layer", layer_share=0), tmp_path / how)[0], dense)
        for how in ("none", "mask", "weights")
    ]
    assert found[0] > found[1] > found[2] > 0


def test_the_condition_score_does_less_damage_than_chance(tiny_llama: Model, tmp_path: Path) -> None:
    folder = tiny_llama(intermediate_size=128)
    dense = dense_logits(folder)
    one, other = (
        damage(pruned(folder, COMP(score=score, recover="mask", layer_share=0), tmp_path / score)[0], dense)
        for score in ("condition", "random")
    )
    assert one < other


def test_repairing_the_stream_makes_up_for_a_block_that_is_gone(tiny_llama: Model, tmp_path: Path) -> None:
    folder = tiny_llama(num_hidden_layers=8, intermediate_size=128)
    dense = dense_logits(folder)
    done = {
        target: damage(pruned(folder, COMP(layer_share=1, target=target), tmp_path / target, ratio=0.25)[0], dense)
        for target in ("layer", "stream")
    }
    assert done["stream"] < 0.9 * done["layer"]


@pytest.mark.parametrize("score", ["condition", "refit", "sensitivity", "wanda", "fluctuation", "magnitude", "random"])
@pytest.mark.parametrize("recover", ["weights", "mask", "none"])
def test_every_score_goes_with_every_recovery(score: Any, recover: Any, tiny_llama: Model, tmp_path: Path) -> None:
    ctx, plan = pruned(tiny_llama(), COMP(score=score, recover=recover), tmp_path / "out")
    assert all(tensor.isfinite().all() for tensor in checks.weights(ctx.model).values())
    reader = "model.layers.0.mlp.down_proj.weight"
    assert checks.weights(ctx.model)[reader].shape[1] == plan.widths()[0]


def test_masks_only_scale_columns_and_nothing_else_changes(tiny_llama: Model, tmp_path: Path) -> None:
    folder = tiny_llama()
    ctx, _ = pruned(folder, COMP(recover="mask", layer_share=0), tmp_path / "out")
    before = checks.weights(checks.open_context(folder, COMP()).model)
    for name, tensor in checks.weights(ctx.model).items():
        if name.endswith("down_proj.weight"):
            columns = [same_direction(column, before[name]) for column in tensor.T]
            assert all(place is not None for place in columns), f"a column of {name} is no column of the source's"
        elif "mlp" not in name:
            assert checks.same_bytes(tensor, before[name])


def same_direction(column: Tensor, matrix: Tensor) -> int | None:
    cosines = torch.nn.functional.cosine_similarity(column[:, None], matrix, dim=0).abs()
    return int(cosines.argmax()) if cosines.max() > 1 - 1e-5 else None


def test_masks_that_vary_too_much_are_damped_and_that_is_noted(tiny_llama: Model, tmp_path: Path) -> None:
    method = COMP(recover="mask", mask_variance=1e-6, layer_share=0)
    ctx, _ = pruned(tiny_llama(), method, tmp_path / "out", ratio=0.4)
    assert any("damping" in note and "variance within 1e-06" in note for note in ctx.notes)


@pytest.mark.parametrize(("share", "gone"), [(0, 0), (0.25, 0), (0.5, 1), (1, 3)])
def test_blocks_take_their_share_of_the_ratio_and_neurons_the_rest(share: float, gone: int, tiny_llama: Model) -> None:
    ctx = checks.open_context(tiny_llama(num_hidden_layers=10, intermediate_size=256), COMP(), ratio=0.3)
    plan = COMP(layer_share=share).plan(ctx)
    assert len(plan.removed_blocks()) == gone
    assert not set(plan.removed_blocks()) & ctx.protected
    assert planned_ratio(ctx.model, plan) == pytest.approx(0.3, abs=0.01)


def test_more_important_blocks_lose_fewer_neurons_where_widths_may_differ(tiny_llama: Model) -> None:
    ctx = checks.open_context(tiny_llama(num_hidden_layers=6, intermediate_size=256), COMP(), ratio=0.3)
    ctx.layout = "per-layer"
    plan = COMP(layer_share=0).plan(ctx)
    importance = plan.evidence["importance"]
    widths = [units for _, units in sorted(plan.widths().items())]
    order = sorted(range(6), key=lambda block: importance[block])
    assert [widths[block] for block in order] == sorted(widths)
    assert len(set(widths)) > 1
    assert losses({0: 1.0, 1: 3.0, 2: 2.0}) == {0: 1.5, 1: 0.5, 2: 1.0}
    assert losses({0: 1.0}) == {0: 1.5}


def test_a_block_whose_output_is_normalised_is_aimed_at_the_dense_layer(tmp_path: Path) -> None:
    folder = families.save("gemma2", tmp_path / "gemma2")
    ctx, _ = pruned(folder, COMP(layer_share=0, target="stream"), tmp_path / "out", ratio=0.2)
    assert any("target dense is used" in note for note in ctx.notes)


def test_flap_lets_a_bias_stand_in_for_the_mean_of_what_goes(tmp_path: Path) -> None:
    folder = families.save("gpt2", tmp_path / "gpt2")
    ctx, _ = pruned(folder, FLAP(), tmp_path / "out")
    before = checks.weights(checks.open_context(folder, FLAP()).model)
    name = "transformer.h.0.mlp.c_proj.bias"
    assert not torch.equal(checks.weights(ctx.model)[name], before[name])
    assert not any("dropped" in note for note in ctx.notes)


def test_flap_says_that_a_model_without_biases_loses_the_mean(tiny_llama: Model, tmp_path: Path) -> None:
    ctx, _ = pruned(tiny_llama(), FLAP(), tmp_path / "out")
    assert any("mlp.down_proj has no bias to hold it" in note for note in ctx.notes)


def test_flap_cuts_where_the_whole_model_fluctuates_least(tiny_llama: Model) -> None:
    ctx = checks.open_context(tiny_llama(intermediate_size=256), FLAP(), ratio=0.3)
    ctx.layout = "per-layer"
    assert len(set(FLAP().plan(ctx).widths().values())) > 1


@pytest.mark.parametrize("order", ["first", "mix"])
def test_taylor_importance_is_that_of_autograd_on_each_sequence(order: str, tiny_llama: Model) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(24).reshape(3, 8)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama()).requires_grad_(False)
    weight = model.get_parameter("model.layers.1.mlp.up_proj.weight")
    (found,) = taylor(model, [weight], ids, order)
    gradients = []
    for sequence in ids:
        model.zero_grad()
        model(input_ids=sequence[None], labels=sequence[None]).loss.backward()
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
    stacked = torch.stack(gradients)
    change = weight * stacked.mean(dim=0)
    if order == "mix":
        change = change - weight.square() * stacked.square().mean(dim=0) / 2
    torch.testing.assert_close(found, change.abs().detach())


def test_llm_pruner_leaves_no_gradient_and_no_trained_weight_behind(tiny_llama: Model, tmp_path: Path) -> None:
    folder = tiny_llama()
    ctx, _ = pruned(folder, LLMPruner(samples=2, tokens=16), tmp_path / "out")
    before = checks.weights(checks.open_context(folder, LLMPruner()).model)
    rows = {tuple(row.tolist()) for row in before["model.layers.0.mlp.up_proj.weight"]}
    left = checks.weights(ctx.model)["model.layers.0.mlp.up_proj.weight"]
    assert all(tuple(row.tolist()) in rows for row in left)


@each_method
def test_hidden_states_on_disk_give_the_same_bytes(name: str, tiny_llama: Model, tmp_path: Path) -> None:
    folder, method = tiny_llama(), registry.load(name)()
    memory, _ = pruned(folder, method, tmp_path / "memory" / "out")
    disk, _ = pruned(folder, method, tmp_path / "disk" / "out", offload=tmp_path / "hidden")
    one, other = checks.weights(memory.model), checks.weights(disk.model)
    assert all(checks.same_bytes(one[key], other[key]) for key in one)


@each_method
def test_a_model_of_experts_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    ctx = checks.open_context(families.save("mixtral", tmp_path), registry.load(name)())
    with pytest.raises(UnsupportedError, match="linear"):
        registry.load(name)().plan(ctx)


def test_a_model_that_is_held_whole_is_pruned_like_any_other(tmp_path: Path) -> None:
    from prunekit.export.folder import export

    folder = families.save("gpt_neox", tmp_path / "neox")
    ctx, _ = pruned(folder, COMP(layer_share=0), tmp_path / "work", ratio=0.2)
    assert not ctx.model.streaming
    export(ctx.model, tmp_path / "out")
    again = PrunableModel.open(checks.Checkpoint.open(tmp_path / "out"), device="cpu")
    torch.testing.assert_close(next(iter(logits(again, ctx.probe))), next(iter(logits(ctx.model, ctx.probe))))


@each_method
def test_an_allocator_says_how_much_each_block_loses(name: str, tiny_llama: Model) -> None:
    ctx = checks.open_context(tiny_llama(num_hidden_layers=4, intermediate_size=256), registry.load(name)(), ratio=0.3)
    ctx.layout = "per-layer"
    ctx.budget = {path: 0.1 * (1 + int(path.split(".")[2])) for path in ctx.model.linears()}  # 0.1 to 0.4
    plan = registry.load(name)().plan(ctx)
    lost = [256 - units for _, units in sorted(plan.widths().items())]
    assert lost == sorted(lost) and lost[3] == pytest.approx(4 * lost[0], abs=12)
    assert planned_ratio(ctx.model, plan) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("target", ["layer", "dense", "stream"])
def test_where_no_neuron_goes_no_target_changes_a_weight(family: str, target: Any, tmp_path: Path) -> None:
    folder = families.save(family, tmp_path / "dense")
    method = COMP(target=target, layer_share=0)
    ctx = checks.open_context(folder, method, tmp_path / "work" / "out", ratio=0.2)
    plan = method.plan(ctx)
    whole = [action.model_copy(update={"units": 64 if family != "gpt2" else 128}) for action in plan.actions]
    carry_out(method, ctx, plan.model_copy(update={"actions": tuple(whole)}))
    before = checks.weights(checks.open_context(folder, method).model)
    for name, tensor in checks.weights(ctx.model).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("target", ["dense", "stream"])
def test_biases_of_what_reads_the_neurons_are_not_counted_twice(family: str, target: Any, tmp_path: Path) -> None:
    folder = families.save(family, tmp_path / "dense")
    dense = dense_logits(folder)
    found = {
        name: damage(pruned(folder, COMP(layer_share=0, **options), tmp_path / name / "out", ratio=0.2)[0], dense)
        for name, options in {"none": {"recover": "none"}, "weights": {"target": target}}.items()
    }
    assert found["weights"] < found["none"]


def test_blocks_and_neurons_go_together_in_a_family_that_flattens_its_tokens(tmp_path: Path) -> None:
    folder = families.save("opt", tmp_path / "dense", num_hidden_layers=4)
    ctx, plan = pruned(folder, COMP(layer_share=0.8), tmp_path / "work" / "out", ratio=0.4)
    assert len(plan.removed_blocks()) == 1
    assert all(tensor.isfinite().all() for tensor in checks.weights(ctx.model).values())


def test_a_ratio_below_one_step_is_refused(tiny_llama: Model) -> None:
    from prunekit.errors import UsageError

    ctx = checks.open_context(tiny_llama(), COMP(), ratio=0.01)
    with pytest.raises(UsageError, match="less than one step"):
        COMP().plan(ctx)
