"""What every plug-in must satisfy, as functions that take its class, for the tests of its author.

    from prunekit.testing import check_method

    def test_my_method_keeps_the_contract(tmp_path):
        check_method("mine", MyMethod, folder_of_a_small_model, tmp_path)

A check raises AssertionError saying what is wrong. prunekit runs the same checks for every plug-in that is installed.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic_core import PydanticUndefined
from torch import Tensor

from prunekit.contract import Allocator, Context, Method, PlugIn, Recovery, carry_out
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Pattern, PrunePlan
from prunekit.weights.allocation import check_budget
from prunekit.weights.masks import mean_sparsity


def token_ids(model: PrunableModel, samples: int = 6, tokens: int = 48, seed: int = 0) -> Tensor:
    """Random token ids (samples, tokens) from a model's vocabulary."""
    size = model.config.get_text_config().vocab_size
    return torch.randint(size, (samples, tokens), generator=torch.Generator().manual_seed(seed))


def open_context(
    folder: Path,
    plugin: PlugIn,
    target: Path | None = None,
    *,
    ratio: float = 0.5,
    pattern: str = "unstructured",
    ids: Tensor | None = None,
) -> Context:
    """What the pipeline would give to a plug-in for the model of `folder`; with a `target` the model can be edited."""
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    model = model.with_edits(None if target is None else Staging.open(target, {}).edits)
    ids = token_ids(model) if ids is None else ids
    ctx = Context(
        model=model,
        ratio=ratio if plugin.needs.ratio else 0.0,
        probe=ids[:1, :16],
        pattern=Pattern.parse(pattern),
        batch_size=4,
    )
    ctx.generator.manual_seed(0)
    ctx.calibration = ids if plugin.needs.calibration else None
    ctx.budget = dict.fromkeys(model.linears(), ratio) if plugin.needs.budget else None
    ctx.protected = frozenset({0, len(model.blocks) - 1}) if plugin.needs.blocks else frozenset()
    return ctx


def weights(model: PrunableModel) -> dict[str, Tensor]:
    """All stored tensors of the blocks that a model has left, with its edits."""
    return model.read([name for block in model.kept for name in model.block_tensors(block.index)])


def prune(folder: Path, method: Method, target: Path, **settings: object) -> dict[str, Tensor]:
    """Plan and apply a method; the tensors of the blocks that come out."""
    ctx = open_context(folder, method, target, **settings)  # type: ignore[arg-type]
    carry_out(method, ctx, method.plan(ctx))
    return weights(ctx.model)


def bytes_of(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """File name -> sha256 for everything below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in without]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_describes_itself(name: str, plugin: type[PlugIn]) -> None:
    """It carries the name it is registered under, and a reader learns the idea and the paper from its file."""
    assert plugin.name == name, f"registered as {name}, calls itself {plugin.name}"
    idea, _, rest = (inspect.getdoc(sys.modules[plugin.__module__]) or "").partition("\n")
    assert idea.endswith(".") and len(idea.split()) >= 5, (
        f"the module's first docstring line is not a sentence: {idea!r}"
    )
    assert plugin.paper, f"{name} names no paper"
    if issubclass(plugin, Method):
        assert "Paper: " in rest, f"the module of {name} does not say 'Paper: ...' under its first line"
    assert inspect.getdoc(plugin), f"{plugin.__name__} has no docstring"


def check_options_explain_themselves(plugin: type[PlugIn]) -> None:
    """Every option has a default and one sentence, so that it can be left out and looked up."""
    for option, field in plugin.model_fields.items():
        assert field.default is not PydanticUndefined or field.default_factory, f"option {option} has no default"
        assert field.description and field.description.endswith("."), f"option {option} has no sentence"
    assert plugin.model_config.get("frozen") and plugin.model_config.get("extra") == "forbid"


def check_plan_only_reads(method: Method, folder: Path, tmp_path: Path) -> PrunePlan:
    """`plan` leaves every file and every weight byte-identical, and calls the method and the ratio by name."""
    ctx = open_context(folder, method, tmp_path / "planned")
    files, before = bytes_of(folder), weights(ctx.model)
    plan = method.plan(ctx)
    after = weights(ctx.model)
    assert bytes_of(folder) == files
    assert all(same_bytes(before[name], after[name]) for name in before), "plan changed a weight"
    assert ctx.model.edits is not None and not ctx.model.edits.finished_blocks(), "plan committed a block"
    assert plan.method == method.name
    assert plan.ratio == ctx.ratio or not method.needs.ratio
    return plan


def check_plan_is_repeatable(method: Method, folder: Path) -> None:
    """The same model and settings give the same plan."""
    one, other = (method.plan(open_context(folder, method)) for _ in range(2))
    assert one.to_json() == other.to_json()


def check_plan_survives_json(plan: PrunePlan) -> PrunePlan:
    """A plan that was written and read is the same plan."""
    again = PrunePlan.from_json(plan.to_json())
    assert again == plan and again.to_json() == plan.to_json()
    return again


def check_reloaded_plan_gives_the_same_bytes(method: Method, folder: Path, tmp_path: Path) -> None:
    """Applying a plan that was saved and read back writes the same bytes as the original, and not the source's."""
    files = bytes_of(folder)
    first = open_context(folder, method, tmp_path / "one" / "out")
    plan = method.plan(first)
    carry_out(method, first, plan)
    second = open_context(folder, method, tmp_path / "two" / "out")
    carry_out(method, second, check_plan_survives_json(plan))
    assert first.model.edits is not None and second.model.edits is not None
    written = bytes_of(first.model.edits.folder)
    assert written == bytes_of(second.model.edits.folder)
    source = weights(open_context(folder, method).model)
    pruned = weights(first.model)
    assert pruned.keys() != source.keys() or any(not same_bytes(source[name], pruned[name]) for name in source)
    assert bytes_of(folder) == files, "apply changed the source"


def check_only_linears_change(method: Method, folder: Path, tmp_path: Path) -> None:
    """A method that takes a budget zeroes weights of the planned linears, touches nothing else, and leaves no -0.0."""
    if not method.needs.budget:
        return
    ctx = open_context(folder, method, tmp_path / "out")
    plan, before = method.plan(ctx), weights(ctx.model)
    carry_out(method, ctx, plan)
    after, planned = weights(ctx.model), {f"{path}.weight" for path in plan.sparsify()}
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert (tensor.dtype, tensor.shape) == (before[name].dtype, before[name].shape)
        if name in planned:
            zeros = tensor == 0
            assert abs(zeros.float().mean().item() - ctx.ratio) < 0.03, f"{name} has other than the planned sparsity"
            assert not (zeros & tensor.signbit()).any(), f"{name} holds -0.0"
        else:
            assert same_bytes(before[name], tensor), f"{name} was not in the plan and changed"


def check_zero_sparsity_changes_nothing(method: Method, folder: Path, tmp_path: Path) -> None:
    """A linear that the budget spares stays byte-identical, while the others are pruned."""
    ctx = open_context(folder, method, tmp_path / "out")
    assert ctx.budget is not None
    spared = dict.fromkeys(list(ctx.budget)[::2], 0.0)
    ctx.budget = {**ctx.budget, **spared}
    before = weights(ctx.model)
    carry_out(method, ctx, method.plan(ctx))
    for name, tensor in weights(ctx.model).items():
        changes = name.removesuffix(".weight") in ctx.budget.keys() - spared.keys()
        assert same_bytes(before[name], tensor) != changes, name


def check_export_loads(method: Method, folder: Path, tmp_path: Path) -> None:
    """What a method makes is a folder that plain `from_pretrained` loads, every tensor found, none left over."""
    from transformers import AutoModelForCausalLM

    from prunekit.export.folder import export, folder_changes

    ctx = open_context(folder, method, tmp_path / "out")
    plan = method.plan(ctx)
    carry_out(method, ctx, plan)
    export(ctx.model, tmp_path / "exported", folder_changes(ctx.model, plan=plan))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", output_loading_info=True)
    model, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    state, path = model.state_dict(), ctx.model.stack_path
    assert len(model.get_submodule(path)) == len(ctx.model.kept)
    for position, block in enumerate(ctx.model.kept):
        for name, tensor in ctx.model.read(ctx.model.block_tensors(block.index)).items():
            loaded_as = f"{path}.{position}{name.removeprefix(block.path)}"
            assert same_bytes(tensor, state[loaded_as].to(tensor.dtype)), f"{name} is not {loaded_as} of the export"


def check_allocates(allocator: Allocator, folder: Path, ratio: float, pattern: str = "unstructured") -> None:
    """A budget covers all linears with values in [0, 1), meets the mean to 1e-6, and is the same every time."""

    def allocate() -> tuple[Context, dict[str, float]]:
        ctx = open_context(folder, allocator, ratio=ratio, pattern=pattern)
        return ctx, dict(allocator.allocate(ctx, ratio))

    (ctx, budget), (_, again) = allocate(), allocate()
    assert budget == again, "two calls gave two budgets"
    assert budget.keys() == ctx.model.linears().keys()
    assert all(isinstance(value, float) and 0 <= value < 1 for value in budget.values())
    assert abs(mean_sparsity(ctx.model, budget) - ratio) <= 1e-6
    if allocator.uniform or pattern == "unstructured":
        check_budget(ctx, budget, ratio, allocator.name)
    if allocator.uniform:
        assert len(set(budget.values())) == 1


def check_method(name: str, method: type[Method], folder: Path, tmp_path: Path) -> None:
    """All that is asked of a method, for the model of `folder`."""
    check_describes_itself(name, method)
    check_options_explain_themselves(method)
    check_plan_survives_json(check_plan_only_reads(method(), folder, tmp_path / "plan"))
    check_plan_is_repeatable(method(), folder)
    runs: list[Callable[[Method, Path, Path], None]] = [
        check_reloaded_plan_gives_the_same_bytes,
        check_only_linears_change,
        check_export_loads,
    ]
    for check in runs:
        check(method(), folder, tmp_path / check.__name__)


def check_allocator(name: str, allocator: type[Allocator], folder: Path) -> None:
    """All that is asked of an allocator, for the model of `folder`."""
    check_describes_itself(name, allocator)
    check_options_explain_themselves(allocator)
    for ratio in (0.1, 0.5, 0.7):
        check_allocates(allocator(), folder, ratio)


def check_recovery(name: str, recovery: type[Recovery], folder: Path, tmp_path: Path) -> None:
    """A recovery describes itself, keeps every shape and dtype, and gives the same bytes every time."""
    check_describes_itself(name, recovery)
    check_options_explain_themselves(recovery)
    before, written = weights(open_context(folder, recovery()).model), []
    for run in ("one", "two"):
        ctx = open_context(folder, recovery(), tmp_path / run / "out")
        ctx.dense = ctx.model.with_edits(None).twin()
        recovery().recover(ctx)
        assert ctx.model.edits is not None and ctx.model.edits.probe_path.is_file(), "no logits were recorded"
        after = weights(ctx.model)
        shapes = ({key: (part.dtype, part.shape) for key, part in found.items()} for found in (before, after))
        assert next(shapes) == next(shapes), "a recovery changed a shape or a dtype"
        written.append(bytes_of(ctx.model.edits.folder))
    assert written[0] == written[1], "two runs gave other bytes"


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; -0.0 is not 0.0."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))
