"""TRSP: learn which blocks matter least by shrinking a gate on each, make the model need them less, then drop them.

Paper: "TRSP: Two-Stage Regularization-Based Structured Pruning for LLMs", arXiv:2505.18232.

Stage 1, the plan: one scalar per block, the language-model loss plus lambda1 times the sum of the scalars, one block
chosen per round. Stage 2, the application: training with a penalty on what the chosen blocks still do to the hidden
states, after which they are deleted. docs/methods/trsp.md tells the paper's part from ours.
"""

import json
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit import processes
from prunekit.capture import capture
from prunekit.contract import Context, Method, Needs
from prunekit.depth import candidates, count_removed, losses_without, plan_blocks, remove_blocks, smallest
from prunekit.gate_path import follow
from prunekit.gates import GatedLoss
from prunekit.plan import PrunePlan
from prunekit.sharding import whole_state
from prunekit.staging import write_atomically
from prunekit.training import Course, Fade, Objective, Schedule, Trainer
from prunekit.walk import calibration_of, split

ROUNDS = "gates.json"


class TRSP(Method):
    """Learn gates on the blocks, train the model to do without those that close first, and remove them."""

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
    fade: float = Field(
        default=0.5, ge=0, le=1, description="Part of the training in which annealed gates close; 0 deletes at once."
    )
    train: Literal["all", "neighbours"] = Field(
        default="all", description="Train all weights, or those of the blocks next to a chosen one."
    )
    epochs: float = Field(default=2, gt=0, description="Passes over the calibration set in stage 2.")
    learning_rate: float = Field(default=2e-4, gt=0, description="Peak rate of AdamW in stage 2.")
    batch: int = Field(default=8, ge=1, description="Sequences per update in stage 2.")
    hold_out: float = Field(
        default=0.1, gt=0, lt=1, description="Part of the calibration set that chooses the best state."
    )
    recompute: bool = Field(default=False, description="Run blocks again on the way back, for less memory.")
    checkpoint_every: int = Field(default=50, ge=1, description="Updates between two checkpoints of stage 2.")

    # --- stage 1: which blocks -------------------------------------------------------------------------------------

    def plan(self, ctx: Context) -> PrunePlan:
        free, count = candidates(ctx), count_removed(ctx)
        rounds = processes.from_first(_read_rounds(ctx.work))
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
        trained = processes.from_first(edits and edits.has_block("outside"))  # None: there is nowhere to keep it
        if self.stage2 != "none" and trained is False:
            self._train(ctx, gone)
        elif edits is not None and trained:
            for note in edits.notes("outside"):
                ctx.note(note)
        remove_blocks(ctx, plan)

    def _train(self, ctx: Context, gone: list[int]) -> None:
        trainer = self._trainer(ctx, gone)
        ctx.progress.stage("training", trainer.schedule.updates)
        trainer.run()
        full = trainer.held_out_loss(gate=1.0)
        first, best = trainer.history[0][1], trainer.best
        noted = len(ctx.notes)
        ctx.note(
            f"stage 2: held-out loss without the blocks {first:.4f} -> {best:.4f}; with them, after it, {full:.4f}"
        )
        state = whole_state(trainer.student)
        if ctx.model.edits is not None:
            ctx.model.commit_state(state, ctx.notes[noted:])

    def _trainer(self, ctx: Context, gone: list[int]) -> Trainer:
        ids, generator = calibration_of(ctx), torch.Generator().manual_seed(0)
        order = torch.randperm(len(ids), generator=generator)
        held = max(1, round(self.hold_out * len(ids)))
        text = ids[order[held:]] if len(ids) > held else ids
        student = ctx.model.load(torch.float32)
        teacher = ctx.model.load(torch.float32) if self.distil else None
        batch = min(self.batch, len(text))
        updates = max(1, round(self.epochs * (len(text) // batch)))
        return Trainer(
            student=student,
            stack_path=ctx.model.stack_path,
            answer=capture(ctx.model, [ids[:1]]).answer,
            teacher=teacher,
            trained=self._trained(student, ctx, gone),
            ids=text,
            held_out=ids[order[:held]],
            objective=Objective(self.distil, self.lambda2, self.norm),
            schedule=Schedule(
                updates, batch, min(batch, ctx.batch_size), self.learning_rate, save_every=self.checkpoint_every
            ),
            course=self._course(gone, updates),
            seed=int(ctx.generator.initial_seed()),
            device=ctx.device,
            folder=ctx.work and ctx.work / "stage2",
            recompute=self.recompute,
            progress=ctx.progress,
        )

    def _trained(self, student: torch.nn.Module, ctx: Context, gone: list[int]) -> dict[str, torch.nn.Parameter]:
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
                gate = float(time < 1 or shares == 1) if self.stage2 == "paper" else self._annealed(time)
                fades[index] = Fade(gate, penalised=gate > 0 and time >= 0)
            return fades

        return course

    def _annealed(self, time: float) -> float:
        """The gate of a block whose share of the training runs from 0 to 1."""
        return 1 - min(1.0, max(0.0, time / self.fade)) if self.fade else float(time < 0)


def _read_rounds(work: Path | None) -> list[dict]:
    """The rounds that an interrupted plan has finished."""
    path = work and work / ROUNDS
    return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else []


def _write_rounds(work: Path | None, rounds: list[dict]) -> None:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(work / ROUNDS, json.dumps(rounds) + "\n")
