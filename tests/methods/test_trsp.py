"""TRSP: which blocks close first, what becomes of their gates in stage 2, and that both stages go on after a stop."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prunekit import testing as checks
from prunekit.contract import carry_out
from prunekit.depth.actions import RemoveBlock
from prunekit.errors import InputError, UsageError
from prunekit.recipe import recipe as recipes
from prunekit.recipe.recipe import Recipe
from prunekit_methods.trsp import ROUNDS, TRSP

pytestmark = pytest.mark.slow

Model = Callable[..., Path]
COUNTING = (torch.arange(24) + torch.arange(8)[:, None]) % 9  # a text that can be learned
QUICK = {"gate_steps": 4, "epochs": 2, "batch": 2, "hold_out": 0.3, "learning_rate": 1e-2}


def idle_block(folder: Path, index: int) -> Path:
    """Make one block of a model do nothing: its two sums into the residual stream become zero."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.{index}.{name}.weight"].zero_()
    save_file(tensors, path, {"format": "pt"})
    return folder


def test_a_block_that_does_nothing_goes_first(tiny_llama: Model) -> None:
    folder = idle_block(tiny_llama(num_hidden_layers=5, initializer_range=0.3), 3)
    method = TRSP(rerank=0, gate_steps=8)
    plan = method.plan(checks.open_context(folder, method, ratio=0.2))
    assert plan.removed_blocks() == (3,)
    last = plan.evidence["rounds"][0]["gates"][-1]
    assert min(range(5), key=lambda block: last[block]) == 3
    assert last[0] == last[4] == 1, "protected blocks keep their gates open"


def test_of_the_smallest_gates_the_one_without_which_the_loss_is_smallest_goes(tiny_llama: Model) -> None:
    folder, method = tiny_llama(num_hidden_layers=6, initializer_range=0.3), TRSP(rerank=2, gate_steps=4)
    plan = method.plan(checks.open_context(folder, method, ratio=0.17))
    found = plan.evidence["rounds"][0]
    closest = sorted(range(1, 5), key=lambda block: found["gates"][-1][block])[:2]
    assert [block for block, _ in found["measured"]] == closest
    assert found["removed"] == min(found["measured"], key=lambda pair: pair[1])[0]


def test_no_two_rounds_choose_the_same_block_and_the_model_is_as_before(tiny_llama: Model) -> None:
    method = TRSP.model_validate(QUICK)
    ctx = checks.open_context(tiny_llama(num_hidden_layers=6), method, ratio=0.5)
    plan = method.plan(ctx)
    assert len(set(plan.evidence["order"])) == 3 == len(plan.removed_blocks())
    assert not ctx.model.removed
    assert all(parameter.is_meta for parameter in ctx.model.skeleton.parameters())


def test_a_plan_that_was_interrupted_is_the_plan_that_was_not(tiny_llama: Model, tmp_path: Path) -> None:
    folder, method = tiny_llama(num_hidden_layers=6), TRSP.model_validate(QUICK)
    whole = method.plan(checks.open_context(folder, method, ratio=0.5))
    ctx = checks.open_context(folder, method, ratio=0.33)
    ctx.work = tmp_path / "work"
    method.plan(ctx)  # two of the three rounds
    assert (tmp_path / "work" / ROUNDS).is_file()
    resumed = checks.open_context(folder, method, ratio=0.5)
    resumed.work = ctx.work
    assert method.plan(resumed) == whole


@pytest.mark.parametrize("stage2", ["match", "paper"])
def test_stage_two_trains_and_the_export_is_what_was_trained(stage2: str, tiny_llama: Model, tmp_path: Path) -> None:
    folder, method = tiny_llama(), TRSP.model_validate(QUICK | {"stage2": stage2})
    before = checks.weights(checks.open_context(folder, method).model)
    ctx = checks.open_context(folder, method, tmp_path / "out", ids=COUNTING)
    plan = method.plan(ctx)
    carry_out(method, ctx, plan)
    after = checks.weights(ctx.model)
    assert {name.split(".")[2] for name in after} == {"0", "3"}
    assert any("stage 2: perplexity of held-out text" in note for note in ctx.notes)
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())


def test_without_stage_two_every_weight_that_stays_is_the_sources(tiny_llama: Model, tmp_path: Path) -> None:
    folder, method = tiny_llama(), TRSP.model_validate(QUICK | {"stage2": "none"})
    before = checks.weights(checks.open_context(folder, method).model)
    ctx = checks.open_context(folder, method, tmp_path / "out")
    carry_out(method, ctx, method.plan(ctx))
    assert all(torch.equal(before[name], tensor) for name, tensor in checks.weights(ctx.model).items())


def test_a_trained_model_is_not_trained_again(
    tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = TRSP.model_validate(QUICK)
    ctx = checks.open_context(tiny_llama(), method, tmp_path / "out")
    plan = method.plan(ctx)
    carry_out(method, ctx, plan)
    first = checks.weights(ctx.model)
    monkeypatch.setattr(TRSP, "_train", lambda *_: pytest.fail("trained again"))
    again = checks.open_context(ctx.model.checkpoint.folder, method)
    again.model = again.model.with_edits(ctx.model.edits)
    carry_out(method, again, plan)
    assert all(torch.equal(first[name], tensor) for name, tensor in checks.weights(again.model).items())
    assert again.notes == ctx.notes


def test_only_neighbours_of_a_chosen_block_are_trained_when_asked(tiny_llama: Model, tmp_path: Path) -> None:
    method = TRSP.model_validate(QUICK | {"train": "neighbours"})
    folder = tiny_llama(num_hidden_layers=6)
    before = checks.weights(checks.open_context(folder, method).model)
    ctx = checks.open_context(folder, method, tmp_path / "out", ratio=0.17, ids=COUNTING)
    plan = method.plan(ctx)
    carry_out(method, ctx, plan)
    gone = plan.removed_blocks()[0]
    changed = {int(n.split(".")[2]) for n, t in checks.weights(ctx.model).items() if not torch.equal(before[n], t)}
    assert changed == {gone - 1, gone + 1}


def test_adapters_end_as_other_weights_of_the_blocks_that_stay(tiny_llama: Model, tmp_path: Path) -> None:
    method = TRSP.model_validate(QUICK | {"train": "lora", "lora_rank": 4, "distil": 0, "match": 0})
    folder = tiny_llama(num_hidden_layers=6)
    ctx = checks.open_context(folder, method, tmp_path / "out", ratio=0.34, ids=COUNTING)
    before = ctx.model.read(ctx.model.tensors)
    plan = method.plan(ctx)
    carry_out(method, ctx, plan)
    after = ctx.model.read(name for block in ctx.model.kept for name in ctx.model.block_tensors(block.index))
    changed = {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}
    assert changed == {f"{linear.path}.weight" for block in ctx.model.kept for linear in block.linears}
    assert len(ctx.model.kept) == 4 and {name.split(".")[-2] for name in changed} >= {"q_proj", "down_proj"}


def test_without_peft_adapters_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.train import lora

    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="peft"):
        recipes.method(Recipe(method="trsp", ratio=0.5, options={"train": "lora"}))
    assert recipes.method(Recipe(method="trsp", ratio=0.5, options={"train": "neighbours"}))


def test_the_papers_stage_two_is_its_formula_alone() -> None:
    paper, match = TRSP(stage2="paper")._objective(), TRSP()._objective()
    assert (paper.distil, paper.match, paper.penalty, paper.norm) == (0, 0, 1e-3, 2)
    assert not paper.looks_at_dense and match.looks_at_dense


def test_training_that_does_not_help_is_said_and_changes_no_weight(tiny_llama: Model, tmp_path: Path) -> None:
    folder, method = tiny_llama(), TRSP.model_validate(QUICK | {"learning_rate": 100.0})
    before = checks.weights(checks.open_context(folder, method).model)
    ctx = checks.open_context(folder, method, tmp_path / "out")
    carry_out(method, ctx, method.plan(ctx))
    assert any("did not help" in note for note in ctx.notes)
    assert all(torch.equal(before[name], tensor) for name, tensor in checks.weights(ctx.model).items())


def test_wider_models_are_trained_at_lower_rates(tiny_llama: Model) -> None:
    rates = [
        method._rate(checks.open_context(tiny_llama(name=str(width), hidden_size=width), method))
        for method in (TRSP(), TRSP(learning_rate=0.5))
        for width in (16, 32)
    ]
    assert rates == [0.15 / 16, 0.15 / 32, 0.5, 0.5]


def test_an_edited_plan_is_trained_as_it_is_and_an_impossible_one_is_refused_before(
    tiny_llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, method, trained = tiny_llama(num_hidden_layers=6), TRSP.model_validate(QUICK), []
    monkeypatch.setattr(TRSP, "_train", lambda self, ctx, gone: trained.append(gone))
    plan = method.plan(checks.open_context(folder, method, ratio=0.34))
    assert sorted(plan.evidence["order"]) == list(plan.removed_blocks())
    for number, gone in enumerate([plan.removed_blocks(), (1, 2, 4)]):
        actions = tuple(RemoveBlock(block=block) for block in gone)
        ctx = checks.open_context(folder, method, tmp_path / str(number))
        carry_out(method, ctx, plan.model_copy(update={"actions": actions}))
        assert ctx.model.removed == set(gone)
    assert trained == [plan.evidence["order"], [1, 2, 4]]
    ctx = checks.open_context(folder, method, tmp_path / "out")
    with pytest.raises(InputError, match="expected some of 0 to 5"):
        carry_out(method, ctx, plan.model_copy(update={"actions": (RemoveBlock(block=99),)}))
    assert len(trained) == 2


@pytest.mark.parametrize("options", [{"fade": 0.5}, {"order": "progressive"}, {"stage2": "paper", "train": "lora"}])
def test_each_way_of_training_ends_in_a_model_without_the_blocks(
    options: dict[str, object], tiny_llama: Model, tmp_path: Path
) -> None:
    method = TRSP.model_validate(QUICK | options)
    ctx = checks.open_context(tiny_llama(num_hidden_layers=6), method, tmp_path / "out", ratio=0.34, ids=COUNTING)
    carry_out(method, ctx, method.plan(ctx))
    assert len(ctx.model.kept) == 4 and any("stage 2" in note for note in ctx.notes)


def test_a_head_that_is_stored_beside_the_embeddings_it_is_tied_to_survives(tiny_llama: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, method = tiny_llama(tie_word_embeddings=True), TRSP.model_validate(QUICK)
    tensors = load_file(folder / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embeddings.clone()}, folder / "model.safetensors", {"format": "pt"})
    ctx = checks.open_context(folder, method, tmp_path / "out", ids=COUNTING)
    carry_out(method, ctx, method.plan(ctx))
    stored = ctx.model.read(["model.embed_tokens.weight", "lm_head.weight"])
    assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    assert any("stage 2" in note for note in ctx.notes)
