"""A run from beginning to end, as a table of contents: load, plan, apply, measure, export, verify, publish.

What takes long is done by the modules this one calls; what is printed is printed by the command line.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from prunekit import distributed
from prunekit.contract import carry_out
from prunekit.errors import InputError
from prunekit.evaluate.agreement import figure
from prunekit.evaluate.perplexity import Perplexity
from prunekit.evaluate.rows import Row, Verdict, compared
from prunekit.evaluate.side_by_side import size_of
from prunekit.evaluate.verdicts import judge
from prunekit.export.card import repeat_command, write_card
from prunekit.export.folder import export, folder_changes
from prunekit.export.folder import measure as count
from prunekit.export.staging import Staging
from prunekit.export.target import check_target
from prunekit.export.verify import Verification
from prunekit.files import write_atomically
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.hub import locate, short_name
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Frozen, PrunePlan
from prunekit.progress import Progress, Silent
from prunekit.recipe.limits import Measured, refuse_unmeasurable
from prunekit.recipe.recipe import Recipe, amount
from prunekit.run.job import Job
from prunekit.run.ranks import agreed_plan, together
from prunekit.weights.masks import check_plan, mean_sparsity
from prunekit.width.plan import planned_ratio as narrowed_ratio

GATES_ELSEWHERE = {
    "perplexity": "leave out --no-eval-quick, and give a text with --ppl",
    "tasks": "prunekit eval OUT --baseline MODEL --tasks NAME measures it",
    "kl": "prunekit eval OUT --baseline MODEL measures it",
    "speed": "prunekit eval OUT --baseline MODEL --speed measures it",
}


class Outcome(Frozen):
    """What a run did and measured; the object that `--json` prints."""

    schema_version: int = 1
    output: str = Field(description="The folder that was written.")
    method: str
    ratio: float
    pattern: str
    sparsity: float = Field(description="Measured fraction of zeros in the pruned linears.")
    weights: int = Field(description="Number of weights in the pruned linears.")
    zeros: int = Field(description="How many of them are zero.")
    parameters: int = Field(description="Numbers in the written weight files.")
    parameters_before: int = Field(description="The same of the source.")
    blocks: int = Field(description="Decoder blocks that are left.")
    removed_blocks: tuple[int, ...] = Field(description="Those that are not, by their index in the source.")
    widths: tuple[int, ...] = Field(
        default=(), description="Neurons of every block that is left, where some were cut out."
    )
    perplexity: dict[str, Any] | None = Field(description="Quick perplexity before and after, with its protocol.")
    verification: dict[str, Any] | None
    notes: list[str]
    seconds: float
    resumed_blocks: int = Field(description="Blocks taken over from an interrupted run.")
    gates: tuple[Verdict, ...] = Field(default=(), description="What became of the recipe's limits.")
    repeat: dict[str, Any] | None = Field(
        default=None, description="How the run compares with the one whose manifest it repeats (`prune --from`)."
    )


def prune(
    recipe: Recipe,
    output: Path | None = None,
    *,
    progress: Progress | None = None,
    force: bool = False,
    restart: bool = False,
    offline: bool = False,
    source: Mapping[str, str] | None = None,
    dense: Path | None = None,
) -> Outcome:
    """Prune a model and write the result as an ordinary model folder; an interrupted run is taken up again.

    `source` is what the model's files must be, name -> sha256; `dense` a folder that keeps the dense model's perplexity
    for other runs. Raises every error of `prunekit.errors` but GateFailure; on any the target is as it was before.
    """
    target = output or default_output(recipe)
    _check_target(target, recipe, force)
    refuse_gates(recipe, recipe.evaluation.quick)
    started = time.perf_counter()
    job = Job.load(recipe, progress or Silent(), offline)
    job.dense = dense
    refuse_gates(recipe, job.windows is not None)  # finds out, too, if its text cannot be had
    if source is not None:
        _refuse_other_files(source, job, "the manifest", "name the model it was made from: prunekit prune MODEL --from")
    folder = job.model.checkpoint.folder
    with Staging.open(target, job.signature(), source=folder, force=force, restart=restart) as staging, together(job):
        return _carry_out(job, _planned(job, staging), staging, started)


def make_plan(recipe: Recipe, *, progress: Progress | None = None, offline: bool = False) -> PrunePlan:
    """Decide what would be done to a model, and touch nothing."""
    job = Job.load(recipe, progress or Silent(), offline)
    with together(job):
        return agreed_plan(job)


def apply_plan(
    plan: PrunePlan,
    model: str | None = None,
    output: Path | None = None,
    *,
    progress: Progress | None = None,
    force: bool = False,
    restart: bool = False,
    offline: bool = False,
) -> Outcome:
    """Carry out a plan that was made earlier; raises InputError when it was made for another model."""
    recipe = recipe_of(plan, model)
    if plan.method != recipe.method:
        raise InputError(
            f"the plan is one of {plan.method}, and its recipe names the method {recipe.method}",
            hint=f"prunekit plan {recipe.model} -m {recipe.method} -o plan.json",
        )
    target = output or default_output(recipe)
    _check_target(target, recipe, force)
    refuse_gates(recipe, recipe.evaluation.quick)
    started = time.perf_counter()
    job = Job.load(recipe, progress or Silent(), offline)
    _refuse_other_files(plan.source, job, "the plan", f"prunekit plan {recipe.model} -m {recipe.method} -o plan.json")
    refuse_gates(recipe, job.windows is not None)  # finds out, too, if its text cannot be had
    if job.method.needs.budget:
        check_plan(job.model, plan)
    ratio = planned_ratio(job.model, plan)
    if not 0 < ratio < 1:
        raise InputError(f"the plan takes {ratio:.0%} of the model away; expected something, and not all")
    plan = plan.model_copy(update={"recipe": recipe.model_dump(mode="json"), "ratio": ratio})
    source = job.model.checkpoint.folder
    signature = job.signature(plan)
    with Staging.open(target, signature, source=source, force=force, restart=restart) as staging, together(job):
        return _carry_out(job, agreed_plan(job, staging, plan), staging, started)


def recipe_of(plan: PrunePlan, model: str | None) -> Recipe:
    """The recipe that a plan carries, for its model where that is now."""
    return Recipe.model_validate(plan.recipe | ({"model": model} if model else {}))


def _check_target(target: Path, recipe: Recipe, force: bool) -> None:
    """Refuse a target before any work; a model of the hub's is compared with it once it is found."""
    spec = recipe.model or ""
    here = spec == "sample" or (spec != "" and Path(spec).exists())
    check_target(target, source=locate(spec) if here else None, force=force)


def _planned(job: Job, staging: Staging) -> PrunePlan:
    """The plan of an interrupted run, else a new one, which is kept."""
    known = PrunePlan.read(staging.plan_path) if staging.plan_path.is_file() else None
    plan = agreed_plan(job, staging, known)
    if known is None:
        write_atomically(staging.plan_path, plan.to_json())
    return plan


def _carry_out(job: Job, plan: PrunePlan, staging: Staging, started: float) -> Outcome:
    """Apply a plan, measure, export, verify and move the result into place."""
    resumed = staging.edits.finished_blocks()
    before = job.quick_perplexity(staging)
    ctx = job.context(staging)
    ctx.notes.extend(plan.notes)
    carry_out(job.method, ctx, plan)
    distributed.leave()  # what is left is done by the first one
    after = job.quick_perplexity(staging, ctx.model)
    changes = folder_changes(ctx.model, job.recipe.layout, plan)
    result = count(ctx.model, changes)
    export(ctx.model, staging.export_dir, changes, max_shard_size=job.recipe.export.max_shard_size)
    measured = compare_perplexity(before, after, job.measures_calibration_text)
    manifest = job.manifest(plan, result, measured, ctx.notes)
    manifest.write(staging.export_dir)
    verification = job.verify(staging)
    write_card(
        staging.export_dir,
        manifest,
        source=job.model.checkpoint.folder,
        command=repeat_command(
            manifest.source.spec, job.recipe.model_dump(mode="json", exclude_defaults=True), edited=plan.edited
        ),
        verified=verification and verification.mode,
        sample=_continuation(job, verification),
    )
    staging.publish()
    return Outcome(
        output=str(staging.target),
        method=plan.method,
        ratio=plan.ratio,
        pattern=job.recipe.pattern,
        sparsity=result.sparsity,
        weights=result.weights,
        zeros=result.zeros,
        parameters=result.parameters,
        parameters_before=result.parameters_before,
        blocks=result.blocks,
        removed_blocks=result.removed_blocks,
        widths=result.widths,
        perplexity=manifest.perplexity,
        verification=verification and verification.model_dump(mode="json"),
        notes=[*ctx.notes, *job.remarks],
        seconds=round(time.perf_counter() - started, 3),
        resumed_blocks=resumed,
        gates=judged(job, staging.target, before, after),
    )


def refuse_gates(recipe: Recipe, perplexity: bool) -> None:
    """Raise UsageError for a gate that a run does not measure, before anything long begins."""
    refuse_unmeasurable(recipe.gates, Measured(perplexity, True, False, (), False, GATES_ELSEWHERE))


def judged(job: Job, target: Path, before: Perplexity | None, after: Perplexity | None) -> tuple[Verdict, ...]:
    """What became of the recipe's gates: the result beside its source, as far as a run measures them."""
    if not job.recipe.gates.named:
        return ()
    if job.windows is None:
        found = ((), ())
    else:
        found = tuple((figure(job.windows, value.value),) if value else () for value in (before, after))
    sizes = size_of(job.model.checkpoint), size_of(Checkpoint.open(target))
    dense, row = (
        Row(model=str(name), baseline=first, size=size, perplexity=part)
        for name, first, size, part in zip((job.recipe.model, target), (True, False), sizes, found, strict=True)
    )
    return judge(job.recipe.gates, (dense, compared(row, dense)))


def default_output(recipe: Recipe) -> Path:
    """Where a run is written when the user does not say: `./<model>-<method>[-<allocator>][-<percent, or N-M>]`."""
    parts = [short_name(recipe.model or "model"), recipe.method]
    parts += [recipe.allocator] if recipe.allocator != "uniform" else []
    return Path("-".join(parts + amount(recipe)))


def compare_perplexity(
    before: Perplexity | None, after: Perplexity | None, on_calibration_text: bool
) -> dict[str, Any] | None:
    """Both perplexities under one description of what was measured."""
    if before is None or after is None:
        return None
    first, second = before.record(), after.record()
    return {key: value for key, value in first.items() if key != "value"} | {
        "calibration_text": on_calibration_text,
        "before": first["value"],
        "after": second["value"],
    }


def planned_ratio(model: PrunableModel, plan: PrunePlan) -> float:
    """What the actions of a plan amount to, which is another ratio than was asked for once somebody has edited them."""
    if not plan.edited:
        return plan.ratio
    if plan.widths():
        return narrowed_ratio(model, plan)
    if removed := plan.removed_blocks():
        return len(removed) / len(model.blocks)
    return mean_sparsity(model, {path: action.sparsity for path, action in plan.sparsify().items()})


def _refuse_other_files(known: Mapping[str, str], job: Job, made: str, hint: str) -> None:
    names = sorted(job.source.keys() | known.keys())
    if differing := [name for name in names if job.source.get(name) != known.get(name)]:
        raise InputError(f"{made} was made for another model: {differing[0]} is not the file it knows", hint=hint)


def _continuation(job: Job, verification: Verification | None) -> tuple[str, str] | None:
    """The prompt and the greedy continuation that the verification produced, as text."""
    if job.tokenizer is None or verification is None or verification.generated is None:
        return None
    said = verification.generated
    return str(job.tokenizer.decode(said.prompt)), str(job.tokenizer.decode(said.tokens))
