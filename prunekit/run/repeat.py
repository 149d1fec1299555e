"""A run repeated from the manifest it left, and what is different: where it ran, what it recorded, what it wrote."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prunekit.compare.folders import first_difference
from prunekit.errors import InputError
from prunekit.export.manifest import MANIFEST, Manifest, changes
from prunekit.plan import Frozen
from prunekit.progress import Progress
from prunekit.recipe.recipe import Recipe
from prunekit.recipe.settings import override
from prunekit.run import pipeline
from prunekit.run.outcome import Outcome
from prunekit.run.pipeline import DEFAULT, RunOptions

ENVIRONMENT = ("prunekit", "versions", "plug_ins", "computed")
RECORD = ("plan", "calibration", "result", "perplexity", "notes")


class Repeat(Frozen):
    """How a repeated run compares with the one it repeats; every difference reads `0.5, was 0.4`."""

    manifest: str
    environment: dict[str, str] = Field(description="Versions, device and threads that are others.")
    settings: dict[str, str] = Field(description="Settings of the recipe that are others.")
    record: dict[str, str] = Field(description="What the two manifests otherwise tell differently.")
    weights: Literal["equal", "differ", "absent"] = Field(
        description="Whether the weight files agree to the byte; absent when none lie beside the manifest."
    )
    difference: str | None = Field(description="The first difference of the weights.")

    @property
    def equal(self) -> bool:
        """Whether the same came out, as far as that can be told."""
        return self.weights == "equal" or (self.weights == "absent" and not self.record)


def read(place: Path) -> tuple[Path, Manifest]:
    """A manifest, named by its file or its folder, and the folder; raises InputError if it is not one."""
    folder = place if place.is_dir() else place.parent
    if not place.is_dir() and place.name != MANIFEST:
        raise InputError(f"{place} is not called {MANIFEST}", hint=f"--from OUT or --from OUT/{MANIFEST}")
    return folder, Manifest.read(folder)


def recipe_of(
    manifest: Manifest, model: str | None = None, flags: Mapping[str, Any] | None = None, sets: Iterable[str] = ()
) -> Recipe:
    """The recipe of a manifest, with what is given now put over it.

    A manifest keeps of local files only their names: raises InputError, naming the option, where one must be given.
    """
    source, given = manifest.source, dict(flags or {}) | ({"model": model} if model else {})
    if model is None and source.kind == "folder" and not Path(source.name).is_dir():
        raise InputError(
            f"the manifest names the local model {source.name} without its place, and it is not here",
            hint=f"prunekit prune PATH/TO/{source.name} --from {MANIFEST}",
        )
    recipe = override(manifest.recipe, given, sets, name="the manifest")
    for option, name in (("--calib", recipe.calibration.source), ("--ppl", recipe.evaluation.set)):
        if name and Path(name).suffix and ":" not in name and not Path(name).exists():
            raise InputError(
                f"the manifest names the local text {name} without its place, and it is not here",
                hint=f"{option} PATH/TO/{Path(name).name}",
            )
    return recipe


def default_output(recipe: Recipe) -> Path:
    """Where a repeated run is written when the user does not say: `-again` after the name of the first."""
    first = pipeline.default_output(recipe)
    return first.with_name(f"{first.name}-again")


def repeat(
    folder: Path,
    manifest: Manifest,
    recipe: Recipe,
    output: Path | None = None,
    *,
    progress: Progress | None = None,
    options: RunOptions = DEFAULT,
) -> tuple[Outcome, Repeat]:
    """Run a recipe that `recipe_of` a manifest gave, and compare with the folder that the manifest lies in.

    Raises what `pipeline.prune` raises, and InputError when the model's files are not those of the manifest. A plan
    that was edited is carried out as it is, since no method would make it again.
    """
    target = output or default_output(recipe)
    more: dict[str, Any] = {"progress": progress, "options": options}
    if manifest.plan.edited:
        plan = manifest.plan.model_copy(update={"recipe": recipe.model_dump(mode="json")})
        done = pipeline.apply_plan(plan, None, target, **more)
    else:
        done = pipeline.prune(recipe, target, source=manifest.source.files, **more)
    found = compared(folder, manifest, Path(done.output))
    return done.model_copy(update={"repeat": found.model_dump(mode="json")}), found


def compared(folder: Path, manifest: Manifest, again: Path) -> Repeat:
    """What is different in a second run: `folder` and `manifest` are those of the first, `again` is its folder."""
    first, second = manifest.model_dump(mode="json"), Manifest.read(again).model_dump(mode="json")
    absent = not any(folder.glob("*.safetensors"))
    difference = None if absent else first_difference(again, folder)
    return Repeat(
        manifest=str(folder / MANIFEST),
        environment=changes({key: first[key] for key in ENVIRONMENT}, {key: second[key] for key in ENVIRONMENT}),
        settings=changes(first["recipe"], second["recipe"]),
        record=changes(_recorded(first), _recorded(second)),
        weights="absent" if absent else "differ" if difference else "equal",
        difference=difference,
    )


def _recorded(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a run decided and measured: of the plan neither the recipe, compared on its own, nor the evidence."""
    plan = {key: value for key, value in manifest["plan"].items() if key not in ("recipe", "source", "evidence")}
    return {key: manifest[key] for key in RECORD} | {"plan": plan}
