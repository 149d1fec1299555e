"""Every recipe that comes with prunekit runs as it is, on a tiny model and a short text."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prunekit.export.manifest import Manifest
from prunekit.recipe.settings import build

from .conftest import Run

pytestmark = pytest.mark.slow

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
LLAMA_2_7B = 32  # the depth of the model whose blocks a recipe names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_and_what_it_writes_loads(
    path: Path, run: Run, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("The cat sat on the mat, and the dog sat on the log.\n" * 40)
    recipe, _ = build(file=path, complete=False)
    depth = {"layers": LLAMA_2_7B, "trsp": 12}.get(recipe.method, 6)
    small = [] if recipe.method == "layers" else ["--calib", text, "--samples", 4, "--seq-len", 32]
    source = tiny_llama(num_hidden_layers=depth, hidden_size=16, intermediate_size=32)
    quick = ["--no-eval-quick", "--verify", "off", "--quiet"]
    ended = run("prune", source, "--recipe", path, *small, *quick, "-o", out)
    assert (ended.exit_code, ended.stdout) == (0, f"{out}\n"), ended.stderr

    done = Manifest.read(out)
    assert (done.recipe["method"], done.recipe["options"]) == (recipe.method, recipe.options)
    wanted = pytest.approx(recipe.sparsity if recipe.ratio or recipe.pattern != "unstructured" else 0, abs=1 / 16)
    narrower = done.result.removed_blocks or done.result.widths
    assert narrower or done.result.sparsity == wanted  # of 16 inputs, rounded down
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=recipe.layout == "per-layer")
    assert model.config.num_hidden_layers == done.result.blocks
