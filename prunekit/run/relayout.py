"""From a finished run to the same model in another layout: written, proven and moved into place as any result is."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prunekit.blockwise.stream import logits
from prunekit.export.card import write_card
from prunekit.export.folder import measure
from prunekit.export.manifest import Manifest
from prunekit.export.staging import Staging
from prunekit.export.verify import Verification, verify
from prunekit.model.hub import locate
from prunekit.model.loading import Opening
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Frozen, Layout
from prunekit.progress import Progress, Silent
from prunekit.recipe.command import repeat_command
from prunekit.recipe.recipe import ComputeRecipe, ExportRecipe, Recipe
from prunekit.run.job import probe_ids
from prunekit.run.rewriting import Rewriting


class Relaid(Frozen):
    """What was written; the object that `prunekit export --json` prints."""

    schema_version: Literal[1] = 1
    output: str = Field(description="The folder that was written.")
    layout: Layout
    widths: tuple[int, ...] = Field(description="Neurons of every block.")
    parameters: int = Field(description="Numbers in the written weight files.")
    parameters_before: int = Field(description="The same of the folder that was read.")
    verification: dict[str, Any] | None


def relayout(
    run: Path,
    layout: Layout,
    output: Path | None = None,
    *,
    compute: ComputeRecipe | None = None,
    export: ExportRecipe | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Relaid:
    """Write a folder that `prunekit prune` made, whose blocks are of different widths, in another layout.

    Raises InputError for a folder without a manifest, UsageError for a layout that it cannot have or has already.
    """
    manifest, compute, wanted = Manifest.read(run), compute or ComputeRecipe(), export or ExportRecipe()
    opening = Opening(compute.device, compute.dtype, True, trust_remote_code)
    model = opening.model(locate(str(run)))
    rewriting = Rewriting(model, manifest, layout, str(run))
    target = output or Path(f"{run.resolve().name}-{layout}")
    signature = {"layout": layout, "source": model.checkpoint.fingerprint()}
    with Staging.open(target, signature, source=run, force=force) as staging:
        ids = probe_ids(None, model)
        (progress or Silent()).stage("recording logits", len(model.blocks))
        staging.edits.write_probe(ids, next(iter(logits(model, ids, progress=progress)))[0])
        rewriting.write(staging.export_dir, wanted.max_shard_size)
        written = opening.model(staging.export_dir)
        _rewritten(manifest, layout, rewriting.widths, written).write(staging.export_dir)
        found = None if wanted.verify == "off" else _verified(staging, wanted.verify, written, trust_remote_code)
        new = Manifest.read(staging.export_dir)
        _write_card(staging.export_dir, new, run, found and found.mode)
        staging.publish()
    return Relaid(
        output=str(target),
        layout=layout,
        widths=new.result.widths,
        parameters=new.result.parameters,
        parameters_before=manifest.result.parameters,
        verification=found and found.model_dump(mode="json"),
    )


def _write_card(folder: Path, manifest: Manifest, source: Path, verified: str | None) -> None:
    settings = Recipe.model_validate(manifest.recipe).model_dump(mode="json", exclude_defaults=True)
    command = repeat_command(manifest.source.spec, settings, edited=manifest.plan.edited)
    write_card(folder, manifest, source=source, command=command, verified=verified)


def _rewritten(manifest: Manifest, layout: Layout, widths: tuple[int, ...], written: PrunableModel) -> Manifest:
    """The run's manifest for the new folder: another layout, and what is counted there."""
    counted = measure(written)
    kept = ("parameters", "weights", "zeros", "sparsity", "linears")
    update: dict[str, Any] = {name: getattr(counted, name) for name in kept}
    result = manifest.result.model_copy(update=update | {"widths": widths})
    recipe = {**manifest.recipe, "layout": layout}
    plan = manifest.plan.model_copy(update={"recipe": {**manifest.plan.recipe, "layout": layout}})
    return manifest.model_copy(update={"result": result, "recipe": recipe, "plan": plan})


def _verified(staging: Staging, mode: str, model: PrunableModel, trust_remote_code: bool) -> Verification:
    return verify(
        staging.export_dir,
        staging.edits.probe_path,
        mode,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        trust_remote_code=trust_remote_code,
    )
