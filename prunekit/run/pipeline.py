"""A run from beginning to end, as a table of contents: load, plan, edit, measure, export, verify, publish.

What takes long is done by the modules this one calls; what is printed is printed by the command line.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunekit import distributed
from prunekit.errors import InputError, UsageError
from prunekit.evaluate.agreement import figure
from prunekit.evaluate.perplexity import Perplexity
from prunekit.evaluate.rows import Row, Verdict, compared
from prunekit.evaluate.side_by_side import size_of
from prunekit.evaluate.verdicts import judge
from prunekit.export.card import write_card
from prunekit.export.checks import tolerance
from prunekit.export.folder import export, folder_changes
from prunekit.export.folder import measure as count
from prunekit.export.manifest import Manifest, Result, Source, StageRecord
from prunekit.export.staging import Staging
from prunekit.export.target import refuse_source
from prunekit.export.verify import Verification, verify
from prunekit.files import write_atomically
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.device import computed_on
from prunekit.model.hub import is_local, locate, short_name
from prunekit.model.prunable import PrunableModel
from prunekit.plan import PrunePlan
from prunekit.progress import Progress, Silent
from prunekit.recipe.command import repeat_command
from prunekit.recipe.limits import Measured, refuse_unmeasurable
from prunekit.recipe.recipe import Recipe, amount
from prunekit.run.job import Job
from prunekit.run.outcome import Outcome
from prunekit.run.plug_ins import PlugIns
from prunekit.run.quick_perplexity import QuickPerplexity
from prunekit.run.ranks import agreed_plan, together
from prunekit.run.stages import run_stages
from prunekit.weights.masks import check_plan, mean_sparsity
from prunekit.width.plan import planned_ratio as narrowed_ratio

GATES_ELSEWHERE = {
    "perplexity": "leave out --no-eval-quick, and give a text with --ppl",
    "tasks": "prunekit eval OUT --baseline MODEL --tasks NAME measures it",
    "kl": "prunekit eval OUT --baseline MODEL measures it",
    "speed": "prunekit eval OUT --baseline MODEL --speed measures it",
}


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out, beside its recipe.

    `force` replaces a model in the output folder, `restart` drops an interrupted run, `offline` uses no network;
    `dense` is a folder that keeps the dense model's perplexity for other runs.
    """

    force: bool = False
    restart: bool = False
    offline: bool = False
    dense: Path | None = None


DEFAULT = RunOptions()


def prune(
    recipe: Recipe,
    output: Path | None = None,
    *,
    progress: Progress | None = None,
    options: RunOptions = DEFAULT,
    source: Mapping[str, str] | None = None,
) -> Outcome:
    """Prune a model and write the result as an ordinary model folder; an interrupted run is taken up again.

    `source` is what the model's files must be, name -> sha256. Raises every error of `prunekit.errors` except
    GateFailure; on any the target is as it was before.
    """
    started = time.perf_counter()
    refuse_gates(recipe, recipe.evaluation.quick)
    plug_ins = PlugIns.of(recipe)
    staging, folder = _reserved(output or default_output(recipe), recipe, options)
    with staging:
        job = Job.load(recipe, plug_ins, folder, progress or Silent(), options.offline)
        quick = _measuring(job, options)
        if source is not None:
            _refuse_other_files(source, job, "the manifest", "name its model: prunekit prune MODEL --from")
        staging.begin(job.signature(), restart=options.restart)
        with together(job):
            return _carry_out(job, _planned(job, staging), staging, quick, started)


def make_plan(recipe: Recipe, *, progress: Progress | None = None, offline: bool = False) -> PrunePlan:
    """Decide what would be done to a model, and touch nothing."""
    plug_ins = PlugIns.of(recipe)
    job = Job.load(recipe, plug_ins, locate(_model(recipe), offline=offline), progress or Silent(), offline)
    with together(job):
        return agreed_plan(job)


def apply_plan(
    plan: PrunePlan,
    model: str | None = None,
    output: Path | None = None,
    *,
    progress: Progress | None = None,
    options: RunOptions = DEFAULT,
) -> Outcome:
    """Carry out a plan that was made earlier; raises InputError when it was made for another model."""
    started, recipe = time.perf_counter(), recipe_of(plan, model)
    remake = f"prunekit plan {recipe.model} -m {recipe.method} -o plan.json"
    if plan.method != recipe.method:
        named = f"the plan is one of {plan.method}, and its recipe names the method {recipe.method}"
        raise InputError(named, hint=remake)
    refuse_gates(recipe, recipe.evaluation.quick)
    plug_ins = PlugIns.of(recipe)
    staging, folder = _reserved(output or default_output(recipe), recipe, options)
    with staging:
        job = Job.load(recipe, plug_ins, folder, progress or Silent(), options.offline)
        _refuse_other_files(plan.source, job, "the plan", remake)
        quick = _measuring(job, options)
        plan = _checked(job, plan)
        staging.begin(job.signature(plan), restart=options.restart)
        with together(job):
            return _carry_out(job, agreed_plan(job, staging, plan), staging, quick, started)


def recipe_of(plan: PrunePlan, model: str | None) -> Recipe:
    """The recipe that a plan carries, for its model where that is now."""
    return Recipe.model_validate(plan.recipe | ({"model": model} if model else {}))


def _reserved(target: Path, recipe: Recipe, options: RunOptions) -> tuple[Staging, Path]:
    """The working folder, locked, and the model's folder; the hub is asked once the target is known to be free."""
    spec = _model(recipe)
    if is_local(spec):
        folder = locate(spec)
        return Staging.reserve(target, source=folder, force=options.force), folder
    staging = Staging.reserve(target, force=options.force)
    with staging.released_on_error():
        staging.source = folder = locate(spec, offline=options.offline)
        refuse_source(target, folder)
    return staging, folder


def _model(recipe: Recipe) -> str:
    if recipe.model is None:
        raise UsageError("no model is given", hint="prunekit prune sample --method wanda --ratio 0.5")
    return recipe.model


def _measuring(job: Job, options: RunOptions) -> QuickPerplexity:
    """What the run measures; raises UsageError for gates that it cannot judge by that, InputError for its text."""
    quick = QuickPerplexity(job, options.dense)
    refuse_gates(job.recipe, quick.windows is not None)
    return quick


def _planned(job: Job, staging: Staging) -> PrunePlan:
    """The plan of an interrupted run, else a new one, which is kept."""
    known = PrunePlan.read(staging.plan_path) if staging.plan_path.is_file() else None
    plan = agreed_plan(job, staging, known)
    if known is None:
        write_atomically(staging.plan_path, plan.to_json())
    return plan


def _checked(job: Job, plan: PrunePlan) -> PrunePlan:
    """A plan that was given, with the recipe of this run and the ratio that its actions amount to."""
    if job.plug_ins.method.needs.budget:
        check_plan(job.model, plan)
    ratio = planned_ratio(job.model, plan)
    if not 0 < ratio < 1:
        raise InputError(f"the plan removes {ratio:.0%} of the model; expected a fraction between 0 and 1")
    return plan.model_copy(update={"recipe": job.recipe.model_dump(mode="json"), "ratio": ratio})


def _carry_out(job: Job, plan: PrunePlan, staging: Staging, quick: QuickPerplexity, started: float) -> Outcome:
    """Edit, measure, export, verify and move the result into place."""
    offload = staging.hidden / "perplexity" if job.recipe.compute.offload == "disk" else None
    resumed = staging.edits.finished_blocks()
    before = quick.dense(offload)
    ctx, stages = run_stages(job, plan, staging)
    distributed.leave()  # what is left is done by the first process
    after = quick.pruned(ctx.model, offload)
    changes = folder_changes(ctx.model, job.recipe.layout, plan)
    result = count(ctx.model, changes)
    export(ctx.model, staging.export_dir, changes, max_shard_size=job.recipe.export.max_shard_size)
    manifest = _manifest(job, plan, stages, result, quick.compared(before, after), ctx.notes)
    manifest.write(staging.export_dir)
    verification = _verified(job, ctx.model, staging)
    _write_card(job, manifest, verification, staging.export_dir)
    staging.publish()
    return Outcome(
        output=str(staging.target),
        method=plan.method,
        ratio=plan.ratio,
        pattern=job.recipe.pattern,
        **result.counts(),
        perplexity=manifest.perplexity,
        verification=verification and verification.model_dump(mode="json"),
        notes=[*ctx.notes, *job.remarks],
        seconds=round(time.perf_counter() - started, 3),
        resumed_blocks=resumed,
        gates=judged(job, quick, staging.target, before, after),
    )


def _manifest(
    job: Job,
    plan: PrunePlan,
    stages: Sequence[StageRecord],
    result: Result,
    perplexity: dict[str, Any] | None,
    notes: Sequence[str],
) -> Manifest:
    """What `prunekit.json` will say."""
    return Manifest.of(
        source=Source.of(job.recipe.model or "", job.model.checkpoint.folder, plan.source),
        recipe=plan.recipe,
        plan=plan,
        plug_ins=job.plug_ins.origins,
        computed=computed_on(job.model.device, job.model.dtype),
        calibration=job.calibration and job.calibration.record(),
        stages=tuple(stages),
        result=result,
        perplexity=perplexity,
        notes=tuple(notes),
        logit_tolerance=None if job.recipe.export.verify == "off" else tolerance(job.model.dtype),
    )


def _verified(job: Job, model: PrunableModel, staging: Staging) -> Verification | None:
    """Prove in a fresh process that the exported folder is the model that was pruned."""
    if job.recipe.export.verify == "off":
        return None
    job.progress.stage("verifying", 1)
    torch.cuda.empty_cache()  # the fresh process needs what this one keeps for later
    verification = verify(
        staging.export_dir,
        model.edits and model.edits.probe_path,
        job.recipe.export.verify,
        device=str(job.model.device),
        dtype=str(job.model.dtype).removeprefix("torch."),
        trust_remote_code=job.recipe.trust_remote_code,
    )
    job.progress.step(f"{verification.mode}: {len(verification.checks)} checks passed")
    return verification


def _write_card(job: Job, manifest: Manifest, verification: Verification | None, folder: Path) -> None:
    settings = job.recipe.model_dump(mode="json", exclude_defaults=True)
    write_card(
        folder,
        manifest,
        source=job.model.checkpoint.folder,
        command=repeat_command(manifest.source.spec, settings, edited=manifest.plan.edited),
        verified=verification and verification.mode,
        sample=_continuation(job, verification),
    )


def _continuation(job: Job, verification: Verification | None) -> tuple[str, str] | None:
    """The prompt and the greedy continuation that the verification produced, as text."""
    if job.tokenizer is None or verification is None or verification.generated is None:
        return None
    said = verification.generated
    return str(job.tokenizer.decode(said.prompt)), str(job.tokenizer.decode(said.tokens))


def refuse_gates(recipe: Recipe, perplexity: bool) -> None:
    """Raise UsageError for a gate that a run does not measure, before anything long begins."""
    refuse_unmeasurable(recipe.gates, Measured(perplexity, True, False, (), False, GATES_ELSEWHERE))


def judged(
    job: Job, quick: QuickPerplexity, target: Path, before: Perplexity | None, after: Perplexity | None
) -> tuple[Verdict, ...]:
    """What became of the recipe's gates: the result beside its source, as far as a run measures them."""
    if not job.recipe.gates.named:
        return ()
    measured = ((), ())
    if quick.windows is not None:
        measured = tuple((figure(quick.windows, value.value),) if value else () for value in (before, after))
    sizes = size_of(job.model.checkpoint), size_of(Checkpoint.open(target))
    dense, row = (
        Row(model=str(name), baseline=first, size=size, perplexity=part)
        for name, first, size, part in zip((job.recipe.model, target), (True, False), sizes, measured, strict=True)
    )
    return judge(job.recipe.gates, (dense, compared(row, dense)))


def default_output(recipe: Recipe) -> Path:
    """Where a run is written when the user does not say: `./<model>-<method>[-<allocator>][-<percent, or N-M>]`."""
    parts = [short_name(recipe.model or "model"), recipe.method]
    parts += [recipe.allocator] if recipe.allocator != "uniform" else []
    return Path("-".join(parts + amount(recipe)))


def planned_ratio(model: PrunableModel, plan: PrunePlan) -> float:
    """What the actions of a plan amount to: another ratio than was asked for once somebody has edited them."""
    if not plan.edited:
        return plan.ratio
    others = sum(kind.removed(model, actions) for kind, actions in plan.kinds().items())
    if plan.widths():
        return others + narrowed_ratio(model, plan)
    if removed := plan.removed_blocks():
        return others + len(removed) / len(model.blocks)
    if zeroed := plan.sparsify():
        return others + mean_sparsity(model, {path: action.sparsity for path, action in zeroed.items()})
    return others


def _refuse_other_files(known: Mapping[str, str], job: Job, made: str, hint: str) -> None:
    names = sorted(job.source.keys() | known.keys())
    if differing := [name for name in names if job.source.get(name) != known.get(name)]:
        raise InputError(f"{made} was made for another model: {differing[0]} is not the file it knows", hint=hint)
