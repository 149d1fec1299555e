"""The greedy sample of a report: what is left out, and why, where a model does not fit or there is no text."""

from collections.abc import Mapping
from pathlib import Path

from prunekit.errors import InputError
from prunekit.evaluate.continuation import Continuation, beginning, continuations
from prunekit.evaluate.perplexity import read_text
from prunekit.export.verify import fits
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.device import choose_device, choose_dtype
from prunekit.model.hub import locate
from prunekit.progress import Progress
from prunekit.recipe.recipe import Recipe
from prunekit.text.calibration import default_source
from prunekit.text.sources import evaluation_for

MOST = 6  # models that write
Said = tuple[list[Continuation], str]


def side_by_side(
    models: Mapping[str, str],
    text: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    trust_remote_code: bool = False,
    column: str | None = None,
    progress: Progress | None = None,
) -> Said:
    """What the models, name -> what they are called, make of the beginning of a text; or nothing, and the reason."""
    if len(models) > MOST:
        return [], f"No sample: {len(models)} models are more than {MOST}."
    try:
        folders = {name: locate(spec, offline=offline) for name, spec in models.items()}
        if large := [name for name, folder in folders.items() if not _fits(folder, device, dtype)]:
            return [], f"No sample: {large[0]} does not fit into memory whole."
        prompt = beginning(read_text(text, column=column, offline=offline).documents)
        more = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        return continuations(folders, prompt, progress=progress, **more), ""
    except (InputError, ValueError, OSError) as error:  # no tokenizer, no text; a report must not fail for that
        return [], f"No sample: {error}"


def of_recipe(recipe: Recipe, output: str, *, offline: bool = False, progress: Progress | None = None) -> Said:
    """The dense model of a recipe beside what was made of it."""
    source = recipe.model or ""
    text = recipe.evaluation.set or evaluation_for(recipe.calibration.source or default_source(source))
    return side_by_side(
        {f"{source} (dense)": source, output: output},
        text,
        device=recipe.compute.device,
        dtype=recipe.compute.dtype,
        offline=offline,
        trust_remote_code=recipe.trust_remote_code,
        column=recipe.calibration.column if text == recipe.calibration.source else None,
        progress=progress,
    )


def _fits(folder: Path, device: str, dtype: str) -> bool:
    checkpoint, place = Checkpoint.open(folder), choose_device(device)
    headers = {name: (info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
    return fits(headers, choose_dtype(dtype, place, checkpoint), place)
