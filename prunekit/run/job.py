"""A recipe brought to life: the model, its tokenizer, the plug-ins and the calibration set of one run."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunekit.blockwise.stream import default_batch_size
from prunekit.contract import Context
from prunekit.depth.removal import protected_blocks
from prunekit.errors import InputError
from prunekit.model.edits import Edits
from prunekit.model.loading import Opening
from prunekit.model.prunable import PrunableModel
from prunekit.model.selection import Selection
from prunekit.model.structure import find_blocks
from prunekit.plan import Pattern, PrunePlan
from prunekit.progress import Progress
from prunekit.recipe.recipe import Recipe
from prunekit.run.plug_ins import PlugIns
from prunekit.text.calibration import (
    Calibration,
    calibrate,
    check_vocabulary,
    default_seq_len,
    default_source,
    max_positions,
)
from prunekit.versions import versions
from prunekit.weights.allocation import check_budget

PROBE_TOKENS = 64  # long enough to exercise attention, short enough to cost nothing
DECIDING = (  # settings that finished blocks depend on
    *("method", "ratio", "pattern", "protect_blocks", "layout", "width_multiple"),
    *("allocator", "options", "allocator_options", "seed"),
)
SINCE_0_2 = ("targets", "ignore", "recover")  # the same; left out where empty, as in signatures of 0.1


@dataclass
class Job:
    """What the stages of a run share. `model` is the dense one, with only the linears that the recipe selects.

    `remarks` are notes for whoever runs it here; they name files of this machine, so they are not published.
    """

    recipe: Recipe
    model: PrunableModel
    tokenizer: PreTrainedTokenizerBase | None
    plug_ins: PlugIns
    calibration: Calibration | None
    progress: Progress
    offline: bool
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, recipe: Recipe, plug_ins: PlugIns, folder: Path, progress: Progress, offline: bool) -> "Job":
        """Open the model in its folder, and draw the calibration set if a plug-in needs one."""
        opening = Opening(recipe.compute.device, recipe.compute.dtype, offline, recipe.trust_remote_code)
        model = opening.model(folder)
        tokenizer = opening.tokenizer(model.checkpoint)
        if selection := Selection(recipe.targets, recipe.ignore):
            model = model.targeting(selection)
        calibration = _calibrate(recipe, model, tokenizer, progress, offline) if plug_ins.calibrated else None
        return cls(recipe, model, tokenizer, plug_ins, calibration, progress, offline)

    @cached_property
    def source(self) -> dict[str, str]:
        """Identity of the model's files: name -> sha256."""
        return self.model.checkpoint.fingerprint()

    def context(self, edits: Edits | None = None, hidden: Path | None = None) -> Context:
        """What a plug-in may be given (see `Context.restricted`); with a store of edits the model can be edited.

        Hidden states wait in the folder `hidden` if the recipe says so.
        """
        recipe, ids = self.recipe, None if self.calibration is None else self.calibration.ids
        return Context(
            model=self.model.with_edits(edits),
            ratio=recipe.sparsity if self.plug_ins.method.needs.ratio else 0.0,
            probe=probe_ids(ids, self.model),
            method=recipe.method,
            pattern=Pattern.parse(recipe.pattern),
            calibration=ids,
            batch_size=recipe.calibration.batch_size or default_batch_size(1 if ids is None else ids.shape[1]),
            protected=protected_blocks(recipe.protect_blocks, len(self.model.blocks)),
            layout=recipe.layout,
            width_multiple=recipe.width_multiple,
            generator=torch.Generator().manual_seed(recipe.seed),
            progress=self.progress,
            offload=hidden if recipe.compute.offload == "disk" else None,
            work=edits.work if edits else None,
        )

    def plan(self, ctx: Context) -> PrunePlan:
        """Share out the sparsity and let the method decide; the plan carries recipe and source along."""
        if self.model.selection:
            every = sum(len(block.linears) for block in find_blocks(self.model.skeleton)[2])
            chosen = f"{len(self.model.linears())} of {every} linears are pruned"
            ctx.note(f"{chosen} (targets, ignore), and the ratio counts these only")
        if self.plug_ins.method.needs.budget or (
            self.plug_ins.method.needs.widths and not self.plug_ins.allocator.uniform
        ):
            ctx.budget = self.plug_ins.allocator.allocate(ctx.restricted(self.plug_ins.allocator.needs), ctx.ratio)
            check_budget(ctx, ctx.budget, ctx.ratio, self.recipe.allocator)
        plan = self.plug_ins.method.plan(ctx.restricted(self.plug_ins.method.needs))
        return plan.model_copy(
            update={
                "notes": tuple(ctx.notes),
                "digest": plan.fingerprint(),
                "evidence": ctx.evidence | plan.evidence,
                "recipe": self.recipe.model_dump(mode="json"),
                "source": self.source,
            }
        )

    def remark(self, text: str) -> None:
        """Tell the user something that is not published."""
        self.remarks.append(text)
        self.progress.note(text)

    def signature(self, plan: PrunePlan | None = None) -> dict[str, Any]:
        """All that the finished blocks depend on; an interrupted run goes on only under the same one.

        A plan that the run makes itself follows from the rest; one that was given is part of the signature.
        """
        recipe = self.recipe.model_dump(mode="json")
        return {
            "source": self.source,
            "recipe": {key: recipe[key] for key in (*DECIDING, *(key for key in SINCE_0_2 if recipe[key]))},
            "plan": plan and plan.fingerprint(),
            "calibration": self.calibration and self.calibration.sha256,
            "batch_size": recipe["calibration"]["batch_size"],
            "device": self.model.device.type,  # which of several cards does not matter
            "dtype": str(self.model.dtype),
            "plug_ins": self.plug_ins.origins,
            "versions": versions(),
        }


def _calibrate(
    recipe: Recipe,
    model: PrunableModel,
    tokenizer: PreTrainedTokenizerBase | None,
    progress: Progress,
    offline: bool,
) -> Calibration:
    if tokenizer is None:
        raise InputError(
            f"{recipe.model} has no tokenizer, and {recipe.method} needs a calibration set",
            hint="copy the tokenizer's files into the folder",
        )
    wanted = recipe.calibration
    source = wanted.source or default_source(recipe.model or "")
    calibration = calibrate(
        source,
        tokenizer,
        samples=wanted.samples,
        seq_len=wanted.seq_len or default_seq_len(model.config),
        seed=wanted.seed,
        column=wanted.column,
        offline=offline,
        progress=progress,
    )
    check_vocabulary(calibration.ids, model.config.get_text_config().vocab_size)
    size = f"{calibration.samples} sequences of {calibration.seq_len} tokens"
    progress.note(f"calibrating on {source}: {size}, seed {calibration.seed}")
    for note in calibration.notes:
        progress.note(note)
    return calibration


def probe_ids(ids: Tensor | None, model: PrunableModel) -> Tensor:
    """A short sequence (1, tokens): the beginning of the calibration set, else seeded random tokens."""
    if ids is not None:
        return ids[:1, :PROBE_TOKENS].clone()
    generator, tokens = torch.Generator().manual_seed(0), min(PROBE_TOKENS, max_positions(model.config) or PROBE_TOKENS)
    return torch.randint(model.config.get_text_config().vocab_size, (1, tokens), generator=generator)
