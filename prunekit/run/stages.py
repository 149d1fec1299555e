"""The stages of a run: pruning, by a plan, and the recoveries after it, each on top of what the last one left.

A stage that an interrupted run has finished is taken over as it is; within a stage the run goes on from the last
finished block.
"""

from dataclasses import replace

import torch

from prunekit import distributed
from prunekit.contract import Context, Recovery, carry_out
from prunekit.export.manifest import StageRecord
from prunekit.export.staging import Staging
from prunekit.model.edits import Edits
from prunekit.plan import PrunePlan
from prunekit.run.job import Job


def run_stages(job: Job, plan: PrunePlan, staging: Staging | None = None) -> tuple[Context, list[StageRecord]]:
    """Carry out the plan, then every recovery; the context with the final model, and what the manifest says of each.

    Without a staging folder, in the processes that help the first one, nothing is kept.
    """
    ctx = job.context(staging and staging.stage(0), staging and staging.hidden)
    for note in plan.notes:
        ctx.notes.append(note)
    if not _taken_over(ctx):
        for kind, actions in plan.kinds().items():
            if summary := kind.summary(actions):
                ctx.note(summary)
        _prune(job, ctx, plan)
    else:
        ctx.model = plan.applied_to(ctx.model)
    records = [StageRecord(kind="prune", name=plan.method, options=job.recipe.options, notes=tuple(ctx.notes))]
    for number, recovery in enumerate(job.plug_ins.recoveries, start=1):
        ctx, record = _recovered(job, ctx, recovery, staging.stage(number) if staging else None)
        records.append(record)
    return ctx, records


def _prune(job: Job, ctx: Context, plan: PrunePlan) -> None:
    given = ctx.restricted(job.plug_ins.method.needs)
    carry_out(job.plug_ins.method, given, plan)
    ctx.model = given.model
    _finish(ctx)


def _recovered(job: Job, before: Context, recovery: Recovery, edits: Edits | None) -> tuple[Context, StageRecord]:
    """One recovery: the context with its model, and its record."""
    noted = len(before.notes)
    model = before.model.with_edits(edits) if edits else before.model
    ctx = replace(before, model=model, dense=job.model.twin(), work=edits and edits.work)
    if not _taken_over(ctx):
        given = ctx.restricted(recovery.needs)
        with torch.set_grad_enabled(recovery.needs.gradients):
            recovery.recover(given)
        _finish(ctx, ctx.notes[noted:])
    options = recovery.model_dump(mode="json", exclude_defaults=True)
    return ctx, StageRecord(kind="recover", name=recovery.name, options=options, notes=tuple(ctx.notes[noted:]))


def _taken_over(ctx: Context) -> bool:
    """Whether an interrupted run has finished the stage, whose notes are then repeated; the same in all processes."""
    notes = ctx.model.edits.done if ctx.model.edits else None
    for note in notes or ():
        ctx.note(note)
    return distributed.from_first(notes is not None)


def _finish(ctx: Context, notes: list[str] | None = None) -> None:
    if ctx.model.edits is not None:
        ctx.model.edits.finish(ctx.notes if notes is None else notes)
