"""TRSP: learn which blocks matter least by shrinking a gate on each, make the model need them less, then drop them.

Paper: "TRSP: Two-Stage Regularization-Based Structured Pruning for LLMs", arXiv:2505.18232.

Stage 1, the plan: one scalar per block, the language-model loss plus lambda1 times the sum of the scalars, one block
chosen per round. Stage 2, the application: training with a penalty on what the chosen blocks still do to the hidden
states, after which they are deleted. docs/methods/trsp.md tells the paper's part from ours.
"""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.adapters import Adapters, adapt, require_peft
from prunekit.capture import capture
from prunekit.contract import Context, Method, Needs
from prunekit.depth import candidates, count_removed, losses_without, plan_blocks, remove_blocks, smallest
from prunekit.gate_path import follow
from prunekit.gates import GatedLoss
from prunekit.plan import PrunePlan
from prunekit.staging import write_atomically
from prunekit.training import Course, Fade, Objective, Schedule, Trainer
from prunekit.walk import calibration_of, split

ROUNDS = "gates.json"
RATES = {"all": 2e-4, "neighbours": 2e-4, "lora": 1e-3}  # adapters bear, and need, larger steps than weights


class TRSP(Method):
    """Learn gates on the blocks, train the model to do without those that close first, and remove them."""

    name: ClassVar[str] = "trsp"
    paper: ClassVar[str] = "arXiv:2505.18232"
    needs: ClassVar[Needs] = Needs(calibration=True, gradients=True, blocks=True)

    gate: Literal["branch", "output"] = Field(
        default="branch", description="branch gates what a block adds; output scales its output, as the paper does."
    )
    lambda1: float = Field(
        default=5e-3, gt=0, description="First weight of the l1 penalty on the gates; it then grows."
    )
    gate_steps: int = Field(default=10, ge=1, description="Steps along the path of the penalty, at most, per round.")
    gate_tokens: int = Field(default=32768, ge=1, description="Calibration tokens that gates are learned on.")
    rerank: int = Field(
        default=3, ge=0, description="Smallest gates that are compared by measured loss; 0 trusts the gates."
    )
    stage2: Literal["anneal", "paper", "none"] = Field(
        default="anneal",
        description="anneal closes the gates of the chosen blocks while training; paper only penalises.",
    )
    lambda2: float = Field(default=1e-3, ge=0, description="Weight of the penalty on what the chosen blocks change.")
    norm: Literal[1, 2] = Field(default=2, description="Norm of that penalty.")
    order: Literal["joint", "progressive"] = Field(
        default="joint", description="Penalise all chosen blocks from the start, or one after the other."
    )
    distil: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Weight of the dense model's own logits as the target; the rest is the text.",
    )
    fade: float = Field(default=0.5, gt=0, le=1, description="Part of the training in which annealed gates close.")
    train: Literal["all", "neighbours", "lora"] = Field(
        default="all",
        description="Train all weights, those of the blocks next to a chosen one, or low-rank adapters on the linears.",
    )
    lora_rank: int = Field(default=16, ge=1, description="Rank of the adapters, where these are trained.")
    epochs: float = Field(default=2, gt=0, description="Passes over the calibration set in stage 2.")
    learning_rate: float | None = Field(
        default=None, gt=0, description="Peak rate of AdamW in stage 2; by default 0.0002, and 0.001 for lora."
    )
    batch: int = Field(default=8, ge=1, description="Sequences per update in stage 2.")
    hold_out: float = Field(
        default=0.1, gt=0, lt=1, description="Part of the calibration set that chooses the best state."
    )
    recompute: bool = Field(default=False, description="Run blocks again on the way back, for less memory.")
    checkpoint_every: int = Field(default=50, ge=1, description="Updates between two checkpoints of stage 2.")

    @model_validator(mode="after")
    def _peft_is_there(self) -> Self:
        if self.train == "lora":
            require_peft()
        return self

    # --- stage 1: which blocks -------------------------------------------------------------------------------------

    def plan(self, ctx: Context) -> PrunePlan:
        free, count = candidates(ctx), count_removed(ctx)
        rounds = _read_rounds(ctx.work)
        ctx.progress.stage("learning gates", count)
        for done in rounds:
            ctx.progress.step(f"block {done['removed']}, from before")
        with ctx.model.resident():
            loss = GatedLoss(ctx.model, split(self._learned_on(ctx), ctx.batch_size), self.gate)
            while len(rounds) < count:
                rounds.append(self._round(ctx, loss, free, [each["removed"] for each in rounds]))
                _write_rounds(ctx.work, rounds)
                ctx.progress.step(f"block {rounds[-1]['removed']}")
        order = [each["removed"] for each in rounds]
        return plan_blocks(
            ctx, self.name, order, {"importance": rounds[0]["gates"][-1], "order": order, "rounds": rounds}
        )

    def _learned_on(self, ctx: Context) -> Tensor:
        ids = calibration_of(ctx)
        return ids[: max(1, self.gate_tokens // ids.shape[1])]

    def _round(self, ctx: Context, loss: GatedLoss, free: list[int], gone: list[int]) -> dict:
        """Learn the gates of what is left, with the blocks in `gone` bypassed, and choose the next one to go."""
        alive = [index for index in free if index not in gone]
        ctx.model.removed = frozenset(gone)
        try:
            gates, path = follow(
                loss.gradient,
                torch.ones(len(ctx.model.blocks), dtype=torch.float64),
                alive,
                self.lambda1,
                self.gate_steps,
            )
        finally:
            ctx.model.removed = frozenset()
        nearest = smallest({index: float(gates[index]) for index in alive}, max(1, self.rerank))
        found = {"gates": path.gates, "losses": path.losses, "penalties": path.penalties}
        if len(nearest) == 1:
            return {"removed": nearest[0], **found}
        losses, _ = losses_without(ctx, nearest, gone)
        return {"removed": smallest(losses, 1)[0], **found, "measured": [[i, losses[i]] for i in nearest]}

    # --- stage 2: training, then deletion --------------------------------------------------------------------------

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        gone = list(plan.evidence.get("order") or plan.removed_blocks())
        ctx.model.removed = frozenset(gone)
        edits = ctx.model.edits
        if self.stage2 != "none" and edits is not None and not edits.has_block("outside"):
            self._train(ctx, gone)
        elif edits is not None and edits.has_block("outside"):
            for note in edits.notes("outside"):
                ctx.note(note)
        remove_blocks(ctx, plan)

    def _train(self, ctx: Context, gone: list[int]) -> None:
        student = ctx.model.load(torch.float32)
        adapters = self._adapters(ctx, student)
        trainer = self._trainer(ctx, gone, student, adapters)
        ctx.progress.stage("training", trainer.schedule.updates)
        trainer.run()
        full = trainer.held_out_loss(gate=1.0)
        first, best = trainer.history[0][1], trainer.best
        noted = len(ctx.notes)
        ctx.note(
            f"stage 2: held-out loss without the blocks {first:.4f} -> {best:.4f}; with them, after it, {full:.4f}"
        )
        if adapters:
            adapters.fold()
        ctx.model.commit_state(student.state_dict(), ctx.notes[noted:])

    def _adapters(self, ctx: Context, student: PreTrainedModel) -> Adapters | None:
        """Adapters on the linears of the blocks that stay, if they are what is trained."""
        if self.train != "lora":
            return None
        linears = [linear for block in ctx.model.kept for linear in block.linears]
        return adapt(student, linears, calibration_of(ctx)[:1], self.lora_rank, int(ctx.generator.initial_seed()))

    def _trainer(
        self, ctx: Context, gone: list[int], student: PreTrainedModel, adapters: Adapters | None = None
    ) -> Trainer:
        ids, generator = calibration_of(ctx), torch.Generator().manual_seed(0)
        order = torch.randperm(len(ids), generator=generator)
        held = max(1, round(self.hold_out * len(ids)))
        text = ids[order[held:]] if len(ids) > held else ids
        batch = min(self.batch, len(text))
        updates = max(1, round(self.epochs * (len(text) // batch)))
        return Trainer(
            student=student,
            stack_path=ctx.model.stack_path,
            answer=capture(ctx.model, [ids[:1]]).answer,
            teacher=self._teacher(ctx, student, adapters),
            trained=adapters.parameters() if adapters else self._trained(student, ctx, gone),
            ids=text,
            held_out=ids[order[:held]],
            objective=Objective(self.distil, self.lambda2, self.norm),
            schedule=Schedule(
                updates,
                batch,
                min(batch, ctx.batch_size),
                self.learning_rate or RATES[self.train],
                save_every=self.checkpoint_every,
            ),
            course=self._course(gone, updates),
            seed=int(ctx.generator.initial_seed()),
            folder=ctx.work and ctx.work / "stage2",
            recompute=self.recompute,
            dense=adapters.off if adapters else nullcontext,
            progress=ctx.progress,
        )

    def _teacher(self, ctx: Context, student: PreTrainedModel, adapters: Adapters | None) -> PreTrainedModel | None:
        """The dense model, if it is distilled from; with adapters the student is one, without a second copy."""
        if not self.distil:
            return None
        return student if adapters else ctx.model.load(torch.float32)

    def _trained(self, student: nn.Module, ctx: Context, gone: list[int]) -> dict[str, nn.Parameter]:
        """The parameters that training may change, by name."""
        named = dict(student.named_parameters())
        if self.train == "neighbours":
            near = {index + step for index in gone for step in (-1, 0, 1)}
            inside = tuple(f"{block.path}." for block in ctx.model.blocks if block.index in near)
            named = {name: part for name, part in named.items() if name.startswith(inside)}
        for part in named.values():
            part.requires_grad_()
        return named

    def _course(self, gone: list[int], updates: int) -> Course:
        """What becomes of the chosen blocks: their gates, and which of them are penalised.

        Jointly, all have the whole time; progressively, one after the other has its share, in the order in which they
        were chosen, and is bypassed after it (the authors' code). Annealed gates close within the first `fade` of a
        block's time, the paper's stay open to its end.
        """
        shares = len(gone) if self.order == "progressive" else 1

        def course(update: int) -> dict[int, Fade]:
            fades: dict[int, Fade] = {}
            for place, index in enumerate(gone):
                time = shares * update / updates - place % shares  # from 0 to 1 within the block's share
                gate = (
                    float(time < 1 or shares == 1) if self.stage2 == "paper" else 1 - min(1, max(0, time / self.fade))
                )
                fades[index] = Fade(gate, penalised=gate > 0 and time >= 0)
            return fades

        return course


def _read_rounds(work: Path | None) -> list[dict]:
    """The rounds that an interrupted plan has finished."""
    path = work and work / ROUNDS
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else []


def _write_rounds(work: Path | None, rounds: list[dict]) -> None:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / ROUNDS, json.dumps(rounds) + "\n")
