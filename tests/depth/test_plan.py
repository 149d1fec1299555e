"""Losses without a block are those of the model that lacks it, and removal is checked before it is done."""

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prunekit import testing as checks
from prunekit.blockwise import stream
from prunekit.contract import Context, Needs
from prunekit.depth.actions import RemoveBlock
from prunekit.depth.plan import candidates, losses_without, plan_blocks, remove_blocks, smallest
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.plan import PrunePlan
from prunekit.weights.actions import Sparsify
from prunekit_methods.sleb import SLEB

Model = Callable[..., Path]


def context(folder: Path, target: Path | None = None, **settings: object) -> Context:
    return checks.open_context(folder, SLEB(), target, **settings)  # type: ignore[arg-type]


def loss_of(folder: Path, ids: Tensor, bypassed: Collection[int]) -> float:
    """The loss of the whole model with some blocks left out of its list, by plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.model.layers = torch.nn.ModuleList(
        block for index, block in enumerate(model.model.layers) if index not in bypassed
    )
    model.config.num_hidden_layers = len(model.model.layers)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def test_losses_without_a_block_are_those_of_the_model_that_lacks_it(tiny_llama: Model) -> None:
    folder = tiny_llama(num_hidden_layers=5)
    ctx = context(folder)
    assert ctx.calibration is not None
    found, forwards = losses_without(ctx, [1, 2, 3])
    assert found == pytest.approx({block: loss_of(folder, ctx.calibration, {block}) for block in (1, 2, 3)}, rel=1e-5)
    assert forwards == 3 + (3 + 2 + 1), "the main stream up to the last candidate, and each branch to the end"
    again, _ = losses_without(ctx, [1, 3], removed=[2])
    assert again == pytest.approx({block: loss_of(folder, ctx.calibration, {2, block}) for block in (1, 3)}, rel=1e-5)


def test_groups_of_batches_give_the_same_losses(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context(tiny_llama())
    expected, _ = losses_without(ctx, [1, 2])
    monkeypatch.setattr(stream, "WAITING_BYTES", 1)
    found, _ = losses_without(ctx, [1, 2])
    assert found == pytest.approx(expected, rel=1e-9)


def test_of_equal_importance_the_earlier_block_goes_first() -> None:
    assert smallest({3: 0.5, 1: 0.5, 2: 0.1}, 2) == [2, 1]


def test_protected_blocks_are_no_candidates(tiny_llama: Model) -> None:
    ctx = context(tiny_llama(num_hidden_layers=5), ratio=0.2)
    ctx.protected = frozenset({0, 2})
    assert candidates(ctx) == [1, 3, 4]
    ctx.protected = frozenset(range(5))
    with pytest.raises(UsageError, match="are protected"):
        candidates(ctx)


def test_a_model_that_no_block_can_be_taken_out_of_is_refused_before_any_work(tiny_model: Model) -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_layer=4, n_embd=32, n_head=2, vocab_size=320, scale_attn_by_inverse_layer_idx=True)
    ctx = context(tiny_model(config), ratio=0.25)
    ctx.calibration = None  # not even looked at
    with pytest.raises(UnsupportedError, match="scale_attn_by_inverse_layer_idx"):
        candidates(ctx)


@pytest.mark.parametrize("gone", [(), (7,)])
def test_a_plan_that_was_edited_to_blocks_that_are_not_there_is_refused(
    gone: tuple[int, ...], tiny_llama: Model, tmp_path: Path
) -> None:
    ctx = context(tiny_llama(), tmp_path / "out")
    plan = PrunePlan(method="sleb", ratio=0.25, actions=tuple(RemoveBlock(block=index) for index in gone))
    with pytest.raises(InputError, match="expected some of 0 to 3"):
        remove_blocks(ctx, plan)
    assert not ctx.model.removed


def test_a_plan_with_zeroed_linears_is_none_for_a_method_that_drops_blocks(tiny_llama: Model, tmp_path: Path) -> None:
    ctx = context(tiny_llama(), tmp_path / "out")
    mixed = (RemoveBlock(block=1), Sparsify(linear="model.layers.0.mlp.up_proj", sparsity=0.5))
    with pytest.raises(InputError, match=r"sparsify for model\.layers\.0\.mlp\.up_proj"):
        remove_blocks(ctx, PrunePlan(method="sleb", ratio=0.25, actions=mixed))


def test_the_recorded_logits_are_those_without_the_removed_blocks(tiny_llama: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tiny_llama()
    ctx = context(folder, tmp_path / "out", ratio=0.5)
    assert ctx.model.edits is not None
    plan = plan_blocks(ctx, "sleb", [1, 2])
    ctx.model = plan.applied_to(ctx.model)
    remove_blocks(ctx, plan)
    probe = load_file(ctx.model.edits.probe_path)
    loss = cross_entropy(probe["logits"][:-1], probe["input_ids"][0, 1:]).item()
    assert loss == pytest.approx(loss_of(folder, probe["input_ids"], {1, 2}), rel=1e-5)


def test_methods_that_drop_blocks_say_so() -> None:
    assert SLEB.needs == Needs(calibration=True, blocks=True)
