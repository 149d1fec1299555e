"""The manifest says what was done and nothing about the machine, and it reads back as what was written."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from prunekit.errors import InputError
from prunekit.export.manifest import MANIFEST, LinearResult, Manifest, Result, Source
from prunekit.plan import PrunePlan
from prunekit.recipe.command import portable
from prunekit.weights.actions import Sparsify

PATH = "model.layers.0.mlp.up_proj"
RESULT = Result(
    parameters=300,
    parameters_before=300,
    blocks=1,
    weights=100,
    zeros=50,
    sparsity=0.5,
    linears={PATH: LinearResult(weights=100, zeros=50, sparsity=0.5)},
)


def manifest(source: Source, recipe: dict[str, Any], **more: Any) -> Manifest:
    plan = PrunePlan(method="wanda", ratio=0.5, actions=(Sparsify(linear=PATH, sparsity=0.5),), recipe=recipe)
    return Manifest.of(source=source, recipe=recipe, plan=plan, result=RESULT, **more)


def test_a_manifest_reads_back_as_what_was_written(tmp_path: Path) -> None:
    source = Source.of("org/name@main", tmp_path, {"config.json": "00"})
    written = manifest(source, {"ratio": 0.5}, calibration={"source": "c4"}, notes=["one"], logit_tolerance=1e-4)
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert list(tmp_path.iterdir()) == [tmp_path / MANIFEST]


def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    source = Source.of("sample", tmp_path, {"b": "1", "a": "2"})
    assert manifest(source, {"b": 1, "a": 2}).to_json() == manifest(source, {"a": 2, "b": 1}).to_json()


def test_no_path_of_the_machine_stays_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    recipe = {"model": str(folder), "calibration": {"source": str(tmp_path / "text.txt")}}
    found = manifest(
        Source.of(str(folder), folder, {}),
        recipe,
        calibration={"source": str(tmp_path / "text.txt")},
        perplexity={"set": f"{tmp_path}/valid.txt"},
    )
    assert str(tmp_path) not in found.to_json()
    assert found.recipe == found.plan.recipe == {"model": "my model", "calibration": {"source": "text.txt"}}
    assert found.perplexity == {"set": "valid.txt"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/texts/a.txt", "a.txt"),
        ("~/a.txt", "a.txt"),
        ("../a.txt", "a.txt"),
        (r"C:\texts\a.txt", "a.txt"),
        ("org/name@main", "org/name@main"),
        ("hf:allenai/c4:en:train:text", "hf:allenai/c4:en:train:text"),
        ("-", "-"),
        ("2:4", "2:4"),
        ("", ""),
        (0.5, 0.5),
        (None, None),
    ],
)
def test_only_paths_of_the_machine_lose_their_folders(given: Any, kept: Any) -> None:
    assert portable({"key": [given]}) == {"key": [kept]}


def test_a_source_is_the_sample_a_folder_or_a_hub_id_with_its_commit(tmp_path: Path) -> None:
    commit = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    commit.mkdir(parents=True)
    assert Source.of("sample", tmp_path, {}).spec == "sample"
    assert Source.of(f"{tmp_path}/", tmp_path, {}) == Source(name=tmp_path.name, kind="folder", files={})
    assert Source.of("org/name", commit, {}) == Source(name="org/name", kind="hub", revision="0a1b", files={})
    assert Source.of("org/name@v1", tmp_path / "elsewhere", {}).spec == "org/name@v1"


def test_a_missing_or_foreign_manifest_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read") as missing:
        Manifest.read(tmp_path)
    assert missing.value.hint == "give a folder that prunekit wrote"
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 0}))
    with pytest.raises(InputError, match="is not a prunekit manifest: schema_version"):
        Manifest.read(tmp_path)


def test_a_manifest_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest(Source.of("sample", tmp_path, {}), {}).prunekit = "9"  # type: ignore[misc]


def test_every_field_is_explained_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    names = [*Manifest.model_fields, *Source.model_fields, *Result.model_fields]
    assert [name for name in names if f"`{name}`" not in page] == []
