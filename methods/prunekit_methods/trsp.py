"""TRSP: learn which blocks matter least by shrinking a gate on each, train the model to do without them, drop them.

Paper: "TRSP: Two-Stage Regularization-Based Structured Pruning for LLMs", arXiv:2505.18232.

Stage 1, the plan: one scalar per block, the language-model loss plus lambda1 times the sum of the scalars, one block
chosen per round. Stage 2, the application: training with a penalty on what taking the chosen blocks out does to the
hidden states, after which they are gone. docs/methods/trsp.md tells the paper's part from ours.
"""

import json
import math
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.api import (
    Context,
    Method,
    Needs,
    PrunePlan,
    UsageError,
    calibration_of,
    candidates,
    check_removal,
    count_removed,
    distributed,
    losses_without,
    plan_blocks,
    remove_blocks,
    smallest,
    split,
)
from prunekit.blockwise.capture import capture
from prunekit.blockwise.loss import exp_or_inf
from prunekit.depth.gate_path import follow
from prunekit.depth.gates import GatedLoss
from prunekit.files import write_atomically
from prunekit.train.fading import Course, course
from prunekit.train.fsdp import whole_state
from prunekit.train.lora import Adapters, adapt, require_peft
from prunekit.train.trainer import Objective, Schedule, Trainer, set_aside

ROUNDS = "gates.json"
RERANK_TEXT = 4  # times the tokens that gates are learned on: what the smallest gates are compared on
RATE = 0.15  # learning rate times hidden size: 8e-4 for the sample's 192; for Llama-2-7B 3.7e-5, the authors' is 2e-5
FOR_ADAPTERS = 5  # times that rate: adapters bear, and need, larger steps than weights
LOOKS = 8  # at the held-out sequences, in the course of the training


class TRSP(Method):
    """Learn gates on the blocks, choose those that close first, and train the model to do without them."""

    name: ClassVar[str] = "trsp"
    paper: ClassVar[str] = "arXiv:2505.18232"
    needs: ClassVar[Needs] = Needs(calibration=True, gradients=True, blocks=True, processes=True)

    gate: Literal["branch", "output"] = Field(
        default="branch", description="branch gates what a block adds; output scales its output, as the paper does."
    )
    lambda1: float = Field(
        default=5e-3, gt=0, description="First weight of the l1 penalty on the gates; it then grows."
    )
    gate_steps: int = Field(default=10, ge=1, description="Steps along the path of the penalty, at most, per round.")
    gate_tokens: int = Field(default=8192, ge=1, description="Calibration tokens that gates are learned on.")
    rerank: int = Field(
        default=3, ge=0, description="Smallest gates that are compared by measured loss; 0 trusts the gates."
    )
    stage2: Literal["match", "paper", "none"] = Field(
        default="match",
        description="match trains what stays towards the dense model, paper penalises the blocks, none does not train.",
    )
    distil: float = Field(
        default=0.8, ge=0, le=1, description="stage2=match: weight of the dense model's logits; the rest is the text's."
    )
    match: float = Field(
        default=50, ge=0, description="stage2=match: weight of the distance to the dense model's hidden states."
    )
    fade: float = Field(
        default=0,
        ge=0,
        le=1,
        description="stage2=match: part of the training in which blocks fade; 0 drops them at once.",
    )
    lambda2: float = Field(
        default=1e-3,
        ge=0,
        description="stage2=paper, or match with fade: weight of the penalty on what the blocks change.",
    )
    norm: Literal[1, 2] = Field(default=2, description="Norm of lambda2's penalty, 1 or 2.")
    order: Literal["joint", "progressive"] = Field(
        default="joint", description="All chosen blocks have the whole training, or each has its share of it."
    )
    train: Literal["all", "neighbours", "lora"] = Field(
        default="all",
        description="Train all weights, those of the blocks next to a chosen one, or low-rank adapters on the linears.",
    )
    lora_rank: int = Field(default=16, ge=1, description="Rank of the adapters, where these are trained.")
    epochs: float = Field(default=2, gt=0, description="Passes over the calibration set in stage 2.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Peak rate of AdamW; by default 0.15 / hidden size, and five times that for lora.",
    )
    batch: int = Field(default=4, ge=1, description="Sequences per update in stage 2.")
    hold_out: float = Field(
        default=0.1, gt=0, lt=1, description="Part of the calibration set that chooses the best state."
    )
    recompute: bool = Field(default=False, description="Run blocks again on the way back, for less memory.")
    checkpoint_every: int = Field(default=50, ge=1, description="Updates between two checkpoints of stage 2.")

    @model_validator(mode="after")
    def _adapters_can_be_trained(self) -> Self:
        if self.train == "lora" and self.stage2 != "none":
            require_peft()
            if distributed.started() > 1:
                raise UsageError("adapters are trained in one process", hint="start it without torchrun, or train=all")
        return self

    # --- stage 1: which blocks -------------------------------------------------------------------------------------

    def plan(self, ctx: Context) -> PrunePlan:
        free, count = candidates(ctx), count_removed(ctx)
        rounds = distributed.from_first(_read_rounds(ctx.work))
        ctx.progress.stage("learning gates", count)
        for done in rounds:
            ctx.progress.step(f"block {done['removed']}, from before")
        with ctx.model.resident():
            loss = GatedLoss(ctx.model, split(self._text(ctx), ctx.batch_size), self.gate)
            while len(rounds) < count:
                rounds.append(self._round(ctx, loss, free, [each["removed"] for each in rounds]))
                _write_rounds(ctx.work, rounds)
                ctx.progress.step(f"block {rounds[-1]['removed']}")
        order = [each["removed"] for each in rounds]
        return plan_blocks(
            ctx, self.name, order, {"importance": rounds[0]["gates"][-1], "order": order, "rounds": rounds}
        )

    def _text(self, ctx: Context, times: int = 1) -> Tensor:
        """As many of the calibration sequences as hold so many times the tokens of the gates."""
        ids = calibration_of(ctx)
        return ids[: max(1, times * self.gate_tokens // ids.shape[1])]

    def _round(self, ctx: Context, loss: GatedLoss, free: list[int], gone: list[int]) -> dict:
        """Learn the gates of what is left, with the blocks in `gone` bypassed, and choose the next one to remove."""
        alive = [index for index in free if index not in gone]
        gates, path = follow(
            loss.without(gone).gradient,
            torch.ones(len(ctx.model.blocks), dtype=torch.float64),
            alive,
            self.lambda1,
            self.gate_steps,
        )
        nearest = smallest({index: float(gates[index]) for index in alive}, max(1, self.rerank))
        found = {"gates": path.gates, "losses": path.losses, "penalties": path.penalties}
        if len(nearest) == 1:
            return {"removed": nearest[0], **found}
        losses, _ = losses_without(replace(ctx, calibration=self._text(ctx, RERANK_TEXT)), nearest, gone)
        return {"removed": smallest(losses, 1)[0], **found, "measured": [[i, losses[i]] for i in nearest]}

    # --- stage 2: training, then deletion --------------------------------------------------------------------------

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        removed, order = check_removal(ctx, plan), plan.evidence.get("order") or []
        gone = order if sorted(order) == list(removed) else list(removed)  # else somebody has edited the plan
        edits = ctx.model.edits
        trained = distributed.from_first(edits and edits.has_block("outside"))  # None: there is nowhere to keep it
        if self.stage2 != "none" and trained is False:
            self._train(ctx, gone)
        elif edits is not None and trained:
            for note in edits.notes("outside"):
                ctx.note(note)
        remove_blocks(ctx, plan)

    def _train(self, ctx: Context, gone: list[int]) -> None:
        student = ctx.model.load(torch.float32)
        adapters = self._adapters(ctx, student)
        trainer = self._trainer(ctx, gone, student, adapters)
        ctx.progress.stage("training", trainer.schedule.updates)
        trainer.run()
        noted = len(ctx.notes)
        ctx.note(self._summary(trainer))
        if adapters:
            adapters.fold()
        state = whole_state(trainer.student)
        if ctx.model.edits is not None:
            ctx.model.commit_state(state, ctx.notes[noted:])

    def _summary(self, trainer: Trainer) -> str:
        """What training did for the held-out sequences, and for the paper's formula what deleting still costs."""
        first, best = trainer.history[0], trainer.best or trainer.history[0]
        if best == first:
            lower = f"{trainer.schedule.rate / 4:.1g}"
            return f"stage 2 did not help on held-out text, so no weight was changed; try --set learning_rate={lower}"
        before, after = exp_or_inf(first.loss), exp_or_inf(best.loss)
        text = f"stage 2: perplexity of held-out text without the blocks {before:.2f} -> {after:.2f}"
        if self.stage2 != "paper":
            return text
        return f"{text}; with them still in place it is {exp_or_inf(trainer.held_out_loss(gate=1.0)):.2f}"

    def _adapters(self, ctx: Context, student: PreTrainedModel) -> Adapters | None:
        """Adapters on the linears of the blocks that stay, if they are what is trained."""
        if self.train != "lora":
            return None
        linears = [linear for block in ctx.model.kept for linear in block.linears]
        return adapt(student, linears, calibration_of(ctx)[:1], self.lora_rank, int(ctx.generator.initial_seed()))

    def _trainer(
        self, ctx: Context, gone: list[int], student: PreTrainedModel, adapters: Adapters | None = None
    ) -> Trainer:
        ids = calibration_of(ctx)
        text, held_out = set_aside(ids, self.hold_out)
        if len(ids) == 1:
            ctx.note("stage 2 has one sequence, and chooses the best state on what it trains on; give more --samples")
        batch = min(self.batch, len(text))
        updates = max(1, round(self.epochs * (len(text) // batch)))
        objective, teacher = self._objective(), None
        if objective.looks_at_dense:  # with adapters off, the student is the dense model
            teacher = student if adapters else ctx.model.load(torch.float32)
        return Trainer(
            student=student,
            stack_path=ctx.model.stack_path,
            pack=capture(ctx.model, [ids[:1]]).pack,
            teacher=teacher,
            trained=adapters.parameters() if adapters else self._trained(student, ctx, gone),
            ids=text,
            held_out=held_out,
            objective=objective,
            schedule=self._schedule(ctx, updates, batch),
            course=self._course(gone, updates),
            seed=int(ctx.generator.initial_seed()),
            device=ctx.device,
            folder=ctx.work and ctx.work / "stage2",
            recompute=self.recompute,
            dense=adapters.off if adapters else nullcontext,
            progress=ctx.progress,
        )

    def _schedule(self, ctx: Context, updates: int, batch: int) -> Schedule:
        micro, looks = min(batch, ctx.batch_size), math.ceil(updates / LOOKS)
        return Schedule(updates, batch, micro, self._rate(ctx), check_every=looks, save_every=self.checkpoint_every)

    def _course(self, removed: list[int], updates: int) -> Course:
        """How the gates of the removed blocks close while the model is trained; the paper's stay open."""
        within, to = (1.0, 1.0) if self.stage2 == "paper" else (self.fade, 0.0)
        return course(removed, updates, within=within, to=to, one_by_one=self.order == "progressive")

    def _objective(self) -> Objective:
        if self.stage2 == "paper":
            return Objective(penalty=self.lambda2, norm=self.norm)
        return Objective(self.distil, self.match, self.lambda2, self.norm)

    def _rate(self, ctx: Context) -> float:
        """The peak learning rate: what was asked for, or less the wider the model."""
        if self.learning_rate:
            return self.learning_rate
        return RATE / ctx.model.config.get_text_config().hidden_size * (FOR_ADAPTERS if self.train == "lora" else 1)

    def _trained(self, student: nn.Module, ctx: Context, gone: list[int]) -> dict[str, nn.Parameter]:
        """The parameters that training may change, by name; none of blocks that are out from the beginning."""
        named = dict(student.named_parameters())
        if self.train == "neighbours":
            near = {index + step for index in gone for step in (-1, 0, 1)}
            named = {name: part for name, part in named.items() if name.startswith(_paths(ctx, near))}
        if self.stage2 == "match" and self.fade == 0 and self.order == "joint":
            named = {name: part for name, part in named.items() if not name.startswith(_paths(ctx, gone))}
        for part in named.values():
            part.requires_grad_()
        return named


def _paths(ctx: Context, indices: Collection[int]) -> tuple[str, ...]:
    """What the names of the parameters of some blocks begin with."""
    return tuple(f"{block.path}." for block in ctx.model.blocks if block.index in indices)


def _read_rounds(work: Path | None) -> list[dict]:
    """The rounds that an interrupted plan has finished."""
    path = work and work / ROUNDS
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else []


def _write_rounds(work: Path | None, rounds: list[dict]) -> None:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / ROUNDS, json.dumps(rounds) + "\n")
