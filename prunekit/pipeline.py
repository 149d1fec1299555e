"""A run from beginning to end, as a table of contents: load, plan, apply, measure, export, verify, publish.

What takes long is done by the modules this one calls; what is printed is printed by the command line.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from prunekit.calibration import default_source
from prunekit.card import repeat_command, write_card
from prunekit.errors import InputError
from prunekit.evaluate.perplexity import Perplexity, measure
from prunekit.export import export
from prunekit.export import measure as count
from prunekit.job import Job, open_model
from prunekit.locate import locate, short_name
from prunekit.manifest import MANIFEST, Manifest
from prunekit.plan import Frozen, PrunePlan
from prunekit.progress import Progress, Silent
from prunekit.recipe import ComputeRecipe, Recipe
from prunekit.staging import Staging, check_target
from prunekit.text_hub import NAMED
from prunekit.verify import Verification


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
    perplexity: dict[str, Any] | None = Field(description="Quick perplexity before and after, with its protocol.")
    verification: dict[str, Any] | None
    notes: list[str]
    seconds: float
    resumed_blocks: int = Field(description="Blocks taken over from an interrupted run.")


def prune(
    recipe: Recipe,
    output: Path | None = None,
    *,
    progress: Progress | None = None,
    force: bool = False,
    restart: bool = False,
    offline: bool = False,
) -> Outcome:
    """Prune a model and write the result as an ordinary model folder; an interrupted run is taken up again.

    Raises every error of `prunekit.errors` but GateFailure; on any of them the target is as it was before.
    """
    target = output or default_output(recipe)
    check_target(target, force=force)
    job = Job.load(recipe, progress or Silent(), offline)
    return _carry_out(job, job.plan(job.context()), target, force=force, restart=restart)


def make_plan(recipe: Recipe, *, progress: Progress | None = None, offline: bool = False) -> PrunePlan:
    """Decide what would be done to a model, and touch nothing."""
    job = Job.load(recipe, progress or Silent(), offline)
    return job.plan(job.context())


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
    recipe = Recipe.model_validate(plan.recipe | ({"model": model} if model else {}))
    target = output or default_output(recipe)
    check_target(target, force=force)
    job = Job.load(recipe, progress or Silent(), offline)
    _refuse_other_model(plan, job.source, recipe)
    plan = plan.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    return _carry_out(job, plan, target, force=force, restart=restart)


def evaluate(
    models: Sequence[str],
    *,
    baseline: str | None = None,
    sets: Sequence[str] = (),
    protocol: str = "sparsegpt",
    device: str = "auto",
    dtype: str = "auto",
    windows: int | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One row per model, the baseline first: perplexity on every set, and its ratio to the baseline's."""
    wanted = sets or [default_set(models[0], locate(models[0], offline=offline))]
    rows: list[dict[str, Any]] = []
    for spec in dict.fromkeys([baseline, *models] if baseline else models):
        compute = ComputeRecipe.model_validate({"device": device, "dtype": dtype})
        model, tokenizer = open_model(spec, compute, offline, trust_remote_code)
        if tokenizer is None:
            raise InputError(f"{spec} has no tokenizer", hint="copy the tokenizer's files into the folder")
        found = [measure(model, tokenizer, name, protocol, windows, offline, progress).record() for name in wanted]
        rows.append({"model": spec, "baseline": spec == baseline, "perplexity": found})
    for row in rows if baseline else []:
        for mine, dense in zip(row["perplexity"], rows[0]["perplexity"], strict=True):
            mine["ratio"] = _ratio(mine["value"], dense["value"])
    return rows


def _carry_out(job: Job, plan: PrunePlan, target: Path, *, force: bool, restart: bool) -> Outcome:
    """Apply a plan, measure, export, verify and move the result into place."""
    started = time.perf_counter()
    with Staging.open(target, job.signature(plan), force=force, restart=restart) as staging:
        resumed = staging.finished_blocks()
        before = job.quick_perplexity(staging=None)
        ctx = job.context(staging)
        job.method.apply(ctx, plan)
        after = job.quick_perplexity(staging)
        result = count(job.model)
        export(job.model, staging.export_dir, max_shard_size=job.recipe.export.max_shard_size)
        manifest = job.manifest(plan, result, compare_perplexity(before, after), ctx.notes)
        manifest.write(staging.export_dir)
        verification = job.verify(staging)
        write_card(
            staging.export_dir,
            manifest,
            source=job.model.checkpoint.folder,
            command=repeat_command(manifest.source.spec, job.recipe.model_dump(mode="json", exclude_defaults=True)),
            verified=verification and verification.mode,
            sample=_continuation(job, verification),
        )
        staging.publish()
    return Outcome(
        output=str(target),
        method=plan.method,
        ratio=plan.ratio,
        pattern=job.recipe.pattern,
        sparsity=result.sparsity,
        weights=result.weights,
        zeros=result.zeros,
        perplexity=manifest.perplexity,
        verification=verification and verification.model_dump(mode="json"),
        notes=ctx.notes,
        seconds=round(time.perf_counter() - started, 3),
        resumed_blocks=resumed,
    )


def default_output(recipe: Recipe) -> Path:
    """Where a run is written when the user does not say: `./<model>-<method>-<percent, or N-M>`."""
    amount = f"{recipe.sparsity * 100:g}" if recipe.pattern == "unstructured" else recipe.pattern.replace(":", "-")
    return Path(f"{short_name(recipe.model or 'model')}-{recipe.method}-{amount}")


def default_set(spec: str, folder: Path) -> str:
    """The set `prunekit eval` takes by default: the named one of the model's manifest, else by its name."""
    if (folder / MANIFEST).is_file() and (known := Manifest.read(folder).perplexity):
        return known["set"] if known["set"] in {"sample", *NAMED} else default_source(spec)
    return default_source(spec)


def compare_perplexity(before: Perplexity | None, after: Perplexity | None) -> dict[str, Any] | None:
    """Both perplexities under one description of what was measured."""
    if before is None or after is None:
        return None
    first, second = before.record(), after.record()
    return {key: value for key, value in first.items() if key != "value"} | {
        "before": first["value"],
        "after": second["value"],
    }


def _refuse_other_model(plan: PrunePlan, source: dict[str, str], recipe: Recipe) -> None:
    names = sorted(source.keys() | plan.source.keys())
    if differing := [name for name in names if source.get(name) != plan.source.get(name)]:
        raise InputError(
            f"the plan was made for another model: {differing[0]} is not the file it knows",
            hint=f"prunekit plan {recipe.model} -m {recipe.method} -o plan.json",
        )


def _continuation(job: Job, verification: Verification | None) -> tuple[str, str] | None:
    """The prompt and the greedy continuation that the verification produced, as text."""
    if job.tokenizer is None or verification is None or verification.generated is None:
        return None
    said = verification.generated
    return str(job.tokenizer.decode(said.prompt)), str(job.tokenizer.decode(said.tokens))


def _ratio(value: Any, dense: Any) -> float | None:
    """How many times the baseline's; None when one of them is not a number."""
    return value / dense if isinstance(value, float) and isinstance(dense, float) and dense else None
