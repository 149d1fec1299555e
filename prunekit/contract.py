"""What is asked of a plug-in and what it is given: methods, allocators, recoveries."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from prunekit.model.prunable import PrunableModel
from prunekit.plan import Layout, Pattern, PrunePlan
from prunekit.progress import Progress, Silent

Budget = Mapping[str, float]  # linear path -> sparsity in [0, 1)


@dataclass(frozen=True)
class Needs:
    """What a plug-in declares; the pipeline supplies it, and nothing else, or refuses before any work is done."""

    calibration: bool = False
    gradients: bool = False  # torch records gradients while its plan is applied
    budget: bool = False
    blocks: bool = False  # it removes whole blocks, and is told which are protected
    widths: bool = False  # it leaves blocks narrower, and is told the layout and the multiple of their widths
    ratio: bool = True
    processes: bool = False  # several processes may share its work (`prunekit.distributed`), and all call it alike


@dataclass
class Context:
    """What a plug-in is given: the model, and of the rest only what it declared.

    `dense` is the model before any pruning, for a recovery. `method` is the name of the method that runs, which an
    allocator may want to know. `ratio` is 0 for a method that needs none. `calibration` holds token ids, int64 of shape
    (samples, seq_len); `protected` the indices of blocks that must stay; `layout` says whether widths may differ from
    block to block, and `width_multiple` what they are multiples of (None: what suits the model). `work` is a folder
    where long work may keep its state, to be found there again after a crash. `probe` is a short sequence (1, tokens)
    with which the pruned model's logits are recorded, against which the export is verified. In `evidence` an allocator
    leaves what it decided from, as methods do in `PrunePlan.evidence`, with which it is joined.
    """

    model: PrunableModel
    ratio: float
    probe: Tensor
    method: str = ""
    pattern: Pattern = field(default_factory=Pattern)
    dense: PrunableModel | None = None
    calibration: Tensor | None = None
    batch_size: int = 1
    budget: Budget | None = None
    protected: frozenset[int] = frozenset()
    layout: Layout = "uniform"
    width_multiple: int | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    progress: Progress = field(default_factory=Silent)
    offload: Path | None = None
    work: Path | None = None
    notes: list[str] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)

    def restricted(self, needs: Needs) -> Self:
        """The same context with only what was declared; notes, evidence and the generator are shared."""
        return replace(
            self,
            calibration=self.calibration if needs.calibration else None,
            budget=self.budget if needs.budget or needs.widths else None,
            protected=self.protected if needs.blocks else frozenset(),
            layout=self.layout if needs.widths else "uniform",
            width_multiple=self.width_multiple if needs.widths else None,
        )

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self.model.device

    def note(self, text: str) -> None:
        """Tell the user something and keep it for the manifest."""
        if text not in self.notes:
            self.notes.append(text)
            self.progress.note(text)


class PlugIn(BaseModel):
    """Options as typed fields, each with a bound and one sentence: an instance is its options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs] = Needs()


class Method(PlugIn, ABC):
    """A pruning algorithm."""

    @abstractmethod
    def plan(self, ctx: Context) -> PrunePlan:
        """Decide which places of the model get what; reads only, every weight stays as it is."""

    @abstractmethod
    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        """Edit `ctx.model` exactly as the plan says, block by block, through the walker."""


class Recovery(PlugIn, ABC):
    """Edits the weights of a pruned model so that it computes more of what the dense one did; its shape stays."""

    @abstractmethod
    def recover(self, ctx: Context) -> None:
        """Edit `ctx.model`, block by block through the walker; `ctx.dense` is the model before pruning."""


def carry_out(method: Method, ctx: Context, plan: PrunePlan) -> None:
    """Apply a plan: `ctx.model` becomes the model as the plan shapes it, and the method edits its weights."""
    ctx.model = plan.applied_to(ctx.model)
    with torch.set_grad_enabled(method.needs.gradients):
        method.apply(ctx, plan)


class Allocator(PlugIn, ABC):
    """Turns one global ratio into one sparsity per linear."""

    uniform: ClassVar[bool] = False  # whether every linear gets the same sparsity, as a fixed N:M demands

    @abstractmethod
    def allocate(self, ctx: Context, sparsity: float) -> Budget:
        """A budget for every linear whose mean, weighted by parameters, is `sparsity`."""
