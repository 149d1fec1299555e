"""What prunekit 0.1.0 wrote is still read: a manifest, a plan, the working folder of a run that was killed."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prunekit.errors import UsageError
from prunekit.export.manifest import Manifest
from prunekit.export.staging import Staging
from prunekit.model.modeling_file import is_ours
from prunekit.plan import PrunePlan
from prunekit.recipe.recipe import Recipe
from prunekit.run import pipeline

OLD = Path(__file__).parents[1] / "fixtures" / "written-by-0.1.0"
MAGNITUDE = Recipe.model_validate(
    {"model": str(OLD / "source"), "method": "magnitude", "ratio": 0.5, "evaluation": {"quick": False}}
)


def test_a_manifest_is_read_and_has_no_stages() -> None:
    text = (OLD / "prunekit.json").read_text()
    manifest = Manifest.model_validate_json(text)
    assert (manifest.schema_version, manifest.prunekit, manifest.stages) == (1, "0.1.0", ())
    assert len(manifest.plan.sparsify()) == 21
    assert json.loads(manifest.to_json())["result"] == json.loads(text)["result"]


@pytest.mark.parametrize("name", ["plan.json", "prunekit.json"])
def test_a_plan_and_the_plan_in_a_manifest_can_be_applied(name: str, tmp_path: Path) -> None:
    plan = PrunePlan.read(OLD / name)
    assert not plan.edited
    pipeline.apply_plan(plan, str(OLD / "source"), tmp_path / "out")
    before, now = load_file(OLD / "pruned.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == now.keys() and all(before[key].equal(now[key]) for key in before)


def test_the_working_folder_of_a_killed_run_is_read_where_the_versions_agree(tmp_path: Path) -> None:
    shutil.copytree(OLD / "staging", tmp_path / ".out.prunekit")
    signature = json.loads((OLD / "staging" / "signature.json").read_text())
    with Staging.open(tmp_path / "out", signature) as staging:
        assert staging.resumed and staging.edits.finished_blocks() == 2
        assert staging.edits.done is None
        pruned, kept = load_file(OLD / "pruned.safetensors"), load_file(staging.edits.block_path(1))
        assert all(pruned[name].equal(tensor) for name, tensor in kept.items())


def test_a_run_of_other_versions_is_refused_with_what_differs(tmp_path: Path) -> None:
    shutil.copytree(OLD / "staging", tmp_path / ".out.prunekit")
    with pytest.raises(
        UsageError, match=r"interrupted run that differs from this one in .*versions\.safetensors"
    ) as caught:
        pipeline.prune(MAGNITUDE, tmp_path / "out")
    assert "--restart" in str(caught.value.hint)
    assert (tmp_path / ".out.prunekit" / "blocks").is_dir(), "nothing is lost"


def test_the_model_file_of_a_folder_per_layer_is_still_known_to_the_letter() -> None:
    folder = OLD / "per-layer"
    assert is_ours(folder, json.loads((folder / "config.json").read_text()))
