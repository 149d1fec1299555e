"""What the contract lets a stranger add without a line of prunekit: each plug-in here is a module outside of it.

(a) a method that trains inside a block; (b) a method with a kind of action of its own; (c) a second stage.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import InputError, UsageError, VerificationError
from prunekit.export.manifest import Manifest
from prunekit.export.verify import inspect_folder, verify
from prunekit.plan import PrunePlan
from prunekit.recipe.recipe import Recipe
from prunekit.run import pipeline
from prunekit.testing import bytes_of
from third_party import put

pytestmark = pytest.mark.slow

RECONSTRUCT = '''"""Reconstruct: zero the smallest weights, then train what is left of each block to give what it gave.

Paper: none; block-wise reconstruction in the manner of arXiv:2408.11796.
"""

from typing import ClassVar

import torch
from prunekit.api import Context, Method, Needs, Pattern, PrunePlan, keep_per_row, plan_sparsity, walk
from pydantic import Field


class Reconstruct(Method):
    """Zero weights by magnitude and fit the others to the block's dense outputs."""

    name: ClassVar[str] = "reconstruct"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs(calibration=True, budget=True, gradients=True)

    steps: int = Field(default=8, ge=0, description="Steps of Adam per block.")

    def plan(self, ctx: Context) -> PrunePlan:
        return plan_sparsity(ctx, self.name)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        actions = plan.sparsify()
        for visit in walk(ctx):
            goals = list(visit.outputs())
            masks = {}
            for linear in visit.linears:
                action = actions[linear.path]
                keep = keep_per_row(linear.weight.abs(), action.sparsity, Pattern.parse(action.pattern))
                linear.write(linear.weight * keep)
                masks[linear.path] = keep
            before = self.error(visit, goals).item()
            weights = [linear.module.weight.requires_grad_() for linear in visit.linears]
            adam = torch.optim.Adam(weights, lr=1e-3)
            for _ in range(self.steps):
                adam.zero_grad()
                self.error(visit, goals).backward()
                adam.step()
                for linear in visit.linears:
                    linear.write(linear.weight * masks[linear.path])
            ctx.note(f"{visit.block.path}: {before:.3e} -> {self.error(visit, goals).item():.3e}")

    def error(self, visit, goals):
        pairs = zip(visit.inputs(), goals, strict=True)
        return sum((visit.run(hidden, batch) - goal).square().mean() for batch, (hidden, goal) in enumerate(pairs))
'''

HEADS = '''"""Zero heads: silence the attention heads with the smallest output weights.

Paper: none; Michel et al. 2019, arXiv:1905.10650, with weight norms for importance.
"""

import json
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from prunekit.api import Action, Context, Method, Needs, PrunePlan, walk


class ZeroHead(Action):
    """Zero the columns of o_proj that read one attention head."""

    kind: Literal["zero_head"] = "zero_head"
    block: int
    head: int

    @property
    def place(self) -> str:
        return f"head {self.head} of block {self.block}"

    @classmethod
    def exported(cls, model, actions, changes):
        heads = [[action.block, action.head] for action in actions]
        return replace(changes, files={**changes.files, "zeroed_heads.json": json.dumps(heads)})

    @classmethod
    def problems(cls, model, actions):
        width = model.config.head_dim
        for action in actions:
            weight = model.model.layers[action.block].self_attn.o_proj.weight
            if weight[:, action.head * width : (action.head + 1) * width].any():
                yield f"{action.place} is not zero"

    @classmethod
    def removed(cls, model, actions):
        block = model.blocks[0]
        size = sum(linear.parameters for linear in block.linears) * len(model.blocks)
        rows = next(linear.shape[0] for linear in block.linears if linear.path.endswith("o_proj"))
        return len(actions) * rows * model.config.head_dim / size

    @classmethod
    def summary(cls, actions):
        return f"{len(actions)} attention heads are zeroed"


class Heads(Method):
    """Zero the heads whose columns of o_proj are smallest."""

    name: ClassVar[str] = "heads"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs()

    def plan(self, ctx: Context) -> PrunePlan:
        width, found = ctx.model.config.head_dim, {}
        for block in ctx.model.blocks:
            name = f"{block.path}.self_attn.o_proj.weight"
            columns = ctx.model.read([name])[name].float().square().sum(dim=0)
            for head, score in enumerate(columns.view(-1, width).sum(dim=1).tolist()):
                found[block.index, head] = score
        chosen = sorted(found, key=found.get)[: round(ctx.ratio * len(found))]
        actions = tuple(ZeroHead(block=block, head=head) for block, head in sorted(chosen))
        return PrunePlan(method=self.name, ratio=ctx.ratio, actions=actions)

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        width = ctx.model.config.head_dim
        for visit in walk(ctx):
            (reader,) = (linear for linear in visit.linears if linear.path.endswith("o_proj"))
            for action in plan.of("zero_head"):
                if action.block == visit.block.index:
                    reader.weight[:, action.head * width : (action.head + 1) * width] = 0
'''

RESCALE = '''"""Rescale: multiply each block's last linear by the scalar that brings it nearest to the dense block.

Paper: none; one scalar per block, the smallest recovery there is.
"""

import os
from typing import ClassVar

import torch
from prunekit.api import Context, Needs, Recovery, walk
from pydantic import Field


class Rescale(Recovery):
    """Multiply one linear of each block by a scalar."""

    name: ClassVar[str] = "rescale"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs(calibration=True)

    strength: float = Field(default=1.0, ge=0, le=1, description="How far to go from 1 to the best scalar.")

    def recover(self, ctx: Context) -> None:
        for visit in walk(ctx):
            if os.environ.get("RESCALE_STOPS_AT") == str(visit.block.index):
                raise KeyboardInterrupt
            reader = next(linear for linear in visit.linears if linear.path.endswith("down_proj"))
            kept = reader.weight.clone()
            with ctx.dense.block(visit.block.index) as dense:
                goal = torch.cat([visit.stream.run(dense, visit.block, b).flatten() for b in range(visit.batches)])
            scalar = self.best(visit, reader, kept, goal)
            reader.write(kept * (1 + self.strength * (scalar - 1)))
            ctx.note(f"{visit.block.path}: times {scalar:.4f}")

    def best(self, visit, reader, kept, goal):
        found = []
        for scale in (0.0, 1.0):
            reader.write(kept * scale)
            found.append(torch.cat([output.flatten() for output in visit.outputs()]))
        step = found[1] - found[0]
        return float(step @ (goal - found[0]) / (step @ step))
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path of this process and of those it starts, where strangers install."""
    site = tmp_path / "site"
    put("reconstruct", RECONSTRUCT, site)
    put("heads", HEADS, site, {"prunekit.actions": {"zero_head": "heads:ZeroHead"}})
    put("rescale", RESCALE, site, group="prunekit.recoveries")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    monkeypatch.chdir(tmp_path)
    yield site
    for name in ("reconstruct", "heads", "rescale"):
        sys.modules.pop(name, None)


def recipe(model: Path, **more: Any) -> Recipe:
    calibration = {"source": "sample", "samples": 4, "seq_len": 16}
    given = {"model": str(model), "calibration": calibration, "evaluation": {"quick": False}}
    return Recipe.model_validate(given | more)


def test_a_method_trains_inside_a_block_on_its_inputs_and_outputs(site: Path, tiny_llama: Callable[..., Path]) -> None:
    done = pipeline.prune(recipe(tiny_llama(), method="reconstruct", ratio=0.5), Path("out"))
    assert done.sparsity == pytest.approx(0.5, abs=0.01)
    assert len(done.notes) == 4
    for note in done.notes:
        before, after = map(float, note.partition(": ")[2].split(" -> "))
        assert after < before, note


def test_a_kind_of_action_of_its_own_is_planned_exported_and_verified(
    site: Path, tiny_llama: Callable[..., Path]
) -> None:
    source = tiny_llama()
    plan = pipeline.make_plan(recipe(source, method="heads", ratio=0.25))
    assert [action.kind for action in plan.actions] == ["zero_head"] * 4
    again = PrunePlan.from_json(plan.to_json())
    assert again == plan

    done = pipeline.apply_plan(again, output=Path("out"))
    heads = json.loads(Path("out/zeroed_heads.json").read_text())
    assert heads == [[action.block, action.head] for action in plan.actions]
    assert done.verification is not None
    assert {"name": "actions", "passed": True, "detail": "zero_head: as planned"} in done.verification["checks"]
    assert "4 attention heads are zeroed" in done.notes

    weights = load_file("out/model.safetensors")
    block, head = heads[0]
    weights[f"model.layers.{block}.self_attn.o_proj.weight"][:, head * 8] = 1.0
    save_file(weights, "out/model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match=f"head {head} of block {block} is not zero"):
        verify(Path("out"))
    streamed = inspect_folder(Path("out"), mode="streaming")
    assert "not looked at" in next(check.detail for check in streamed.checks if check.name == "actions")


def test_an_edited_plan_of_another_kind_knows_its_ratio_and_an_unknown_kind_is_refused(
    site: Path, tiny_llama: Callable[..., Path]
) -> None:
    plan = pipeline.make_plan(recipe(tiny_llama(), method="heads", ratio=0.25))
    fewer = plan.model_copy(update={"actions": plan.actions[:1]})
    done = pipeline.apply_plan(fewer, output=Path("out"))
    assert done.ratio == pytest.approx(32 * 8 / (4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)))
    with pytest.raises(InputError, match="actions of kind 'zero_tail' come with a plug-in that is not installed"):
        PrunePlan.from_json(plan.to_json().replace("zero_head", "zero_tail"))


def test_two_stages_are_recorded_and_resumed_between_and_inside_them(
    site: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit_methods.magnitude import Magnitude

    wanted = recipe(tiny_llama(), method="magnitude", ratio=0.5, recover=[{"method": "rescale"}])
    whole = pipeline.prune(wanted, Path("whole"))
    stages = Manifest.read(Path("whole")).stages
    assert [(stage.kind, stage.name) for stage in stages] == [("prune", "magnitude"), ("recover", "rescale")]
    assert len(stages[1].notes) == 4 and set(stages[1].notes) <= set(whole.notes)
    alone = pipeline.prune(wanted.model_copy(update={"recover": ()}), Path("alone"))
    pruned, recovered = load_file("alone/model.safetensors"), load_file("whole/model.safetensors")
    changed = {name for name, tensor in recovered.items() if not torch.equal(tensor, pruned[name])}
    assert changed == {f"model.layers.{block}.mlp.down_proj.weight" for block in range(4)}
    assert whole.zeros == alone.zeros, "a scalar keeps zeros"

    for block in ("0", "2"):  # between the stages, and inside the second
        target = Path(f"stopped-at-{block}")
        monkeypatch.setenv("RESCALE_STOPS_AT", block)
        with pytest.raises(KeyboardInterrupt):
            pipeline.prune(wanted, target)
        monkeypatch.delenv("RESCALE_STOPS_AT")
        with monkeypatch.context() as patch:
            patch.setattr(Magnitude, "apply", lambda *_: pytest.fail("pruned again"))
            again = pipeline.prune(wanted, target)
        assert bytes_of(target) == bytes_of(Path("whole"))
        assert again.notes == whole.notes


def test_another_recovery_is_another_run(site: Path, tiny_llama: Callable[..., Path], monkeypatch: Any) -> None:
    source = tiny_llama()

    def asked(*recover: Any) -> Recipe:
        return recipe(source, method="magnitude", ratio=0.5, recover=recover)

    monkeypatch.setenv("RESCALE_STOPS_AT", "1")
    with pytest.raises(KeyboardInterrupt):
        pipeline.prune(asked("rescale"), Path("out"))
    with pytest.raises(UsageError, match=r"differs from this one in recipe\.recover"):
        pipeline.prune(asked({"method": "rescale", "options": {"strength": 0.5}}), Path("out"))
    with pytest.raises(UsageError, match="rescale: option strength"):
        pipeline.prune(asked({"method": "rescale", "options": {"strength": 2}}), Path("out"))


def test_a_recovery_runs_in_one_process(site: Path, tiny_llama: Callable[..., Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("prunekit.distributed.started", lambda: 2)
    wanted = recipe(tiny_llama(), method="trsp", ratio=0.25, recover=["rescale"])
    with pytest.raises(UsageError, match="rescale works in one process, and 2 were started"):
        pipeline.prune(wanted, Path("out"))
