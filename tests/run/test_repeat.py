"""A manifest repeats: the same bytes come out, and where they do not, what is different is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from forks import Ended, Server
from prunekit.errors import InputError, UsageError
from prunekit.export.manifest import MANIFEST, Manifest
from prunekit.run.repeat import compared, default_output, read, recipe_of
from prunekit.testing import bytes_of

pytestmark = pytest.mark.slow

Call = Callable[..., Ended]
NAME = "model.layers.1.mlp.up_proj.weight"
WEIGHTS = "model.safetensors"


@pytest.fixture
def call(server: Server, inputs: Path, tmp_path: Path) -> Call:
    """Runs the command line in a folder where `source` and `text.txt` lie, as their owner would."""
    for name in ("source", "text.txt"):
        (tmp_path / name).symlink_to(inputs / name)
    return lambda *words: server.run(*words, cwd=tmp_path)


@pytest.fixture
def first(call: Call, tmp_path: Path) -> Path:
    words = ("-m", "wanda", "-r", "0.5", "--calib", "text.txt", "--samples", "4", "--seq-len", "32", "--verify", "off")
    ended = call("prune", "source", *words, "--eval-windows", "2", "--protocol", "llm-pruner", "-o", "first")
    assert ended.code == 0, ended.stderr
    return tmp_path / "first"


def edit(path: Path, **changes: Any) -> None:
    """Change top-level fields of a manifest."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def test_a_run_is_repeated_to_the_byte_from_its_manifest(call: Call, first: Path, tmp_path: Path) -> None:
    ended = call("prune", "--from", "first/prunekit.json")
    assert (ended.code, ended.stdout) == (0, "source-wanda-50-again\n"), ended.stderr
    assert bytes_of(tmp_path / "source-wanda-50-again") == bytes_of(first)
    for line in ("environment  the same", "settings     the same", "record       the same", "equal to the byte"):
        assert line in ended.stderr


def test_another_environment_and_other_weights_are_named_and_end_with_1(call: Call, first: Path) -> None:
    manifest = Manifest.read(first)
    edit(first / MANIFEST, versions=manifest.versions | {"torch": "2.0"}, computed=manifest.computed | {"threads": 99})
    tensors = load_file(first / WEIGHTS)
    tensors[NAME][0, :4] += 1
    save_file(tensors, first / WEIGHTS, metadata={"format": "pt"})
    ended = call("prune", "--from", "first", "-o", "second", "--json")
    found = ended.json()["repeat"]
    assert ended.code == 1
    assert (
        found["weights"] == "differ" and f"1 of 39 tensors differ; in the first, {NAME}, 0.20%" in found["difference"]
    )
    assert found["environment"] == {
        "computed.threads": f"{manifest.computed['threads']}, was 99",
        "versions.torch": f"{manifest.versions['torch']}, was 2.0",
    }
    assert (found["settings"], found["record"]) == ({}, {})
    assert "error: the run gave something else" in ended.stderr
    assert "hint: not the same as then: computed.threads, versions.torch" in ended.stderr


def test_a_setting_that_is_given_wins_and_is_named(call: Call, first: Path) -> None:
    ended = call("prune", "--from", "first", "-r", "0.6", "--set", "calibration.samples=5", "-o", "second", "--json")
    found = ended.json()["repeat"]
    assert ended.code == 1
    assert found["settings"] == {"calibration.samples": "5, was 4", "ratio": "0.6, was 0.5"}
    assert "plan.ratio" in found["record"] and "perplexity.after" in found["record"]


def test_an_edited_plan_is_carried_out_as_it_is(call: Call, tmp_path: Path) -> None:
    words = ("-m", "magnitude", "-r", "0.5", "--no-eval-quick", "--verify", "off")
    assert call("plan", "source", *words, "-o", "plan.json").code == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["actions"][0]["sparsity"] = 0.25
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert call("apply", "plan.json", "-o", "first").code == 0
    ended = call("prune", "--from", "first", "-o", "second")
    assert ended.code == 0, ended.stderr
    assert bytes_of(tmp_path / "second") == bytes_of(tmp_path / "first")


def test_a_manifest_without_its_weights_compares_the_records(call: Call, first: Path) -> None:
    (first / WEIGHTS).unlink()
    ended = call("prune", "--from", "first", "-o", "second")
    assert ended.code == 0 and "not compared: none lie beside the manifest" in ended.stderr
    plan = json.loads((first / MANIFEST).read_text())["plan"]
    edit(first / MANIFEST, plan=plan | {"evidence": {"of": "another version"}})
    assert call("prune", "--from", "first", "-o", "again").code == 0
    result = json.loads((first / MANIFEST).read_text())["result"]
    edit(first / MANIFEST, result=result | {"zeros": 1})
    ended = call("prune", "--from", "first", "-o", "third")
    assert ended.code == 1 and "the record differs: result.zeros" in ended.stderr


def test_another_model_is_refused_before_any_work(call: Call, first: Path, tmp_path: Path) -> None:
    source = json.loads((first / MANIFEST).read_text())["source"]
    edit(first / MANIFEST, source=source | {"files": source["files"] | {"config.json": "00"}})
    ended = call("prune", "--from", "first", "-o", "second")
    assert ended.code == 4 and "the manifest was made for another model: config.json" in ended.stderr
    assert not (tmp_path / "second").exists()


def test_local_files_that_are_not_here_are_asked_for_by_option(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, manifest = read(first / MANIFEST)
    monkeypatch.chdir(first)
    with pytest.raises(InputError, match="the local model source without its place") as model:
        recipe_of(manifest)
    assert model.value.hint == "prunekit prune PATH/TO/source --from prunekit.json"
    with pytest.raises(InputError, match=r"the local text text\.txt without its place") as text:
        recipe_of(manifest, "../source")
    assert text.value.hint == "--calib PATH/TO/text.txt"
    recipe = recipe_of(manifest, "../source", {"calib": "../text.txt"})
    assert (recipe.calibration.source, default_output(recipe)) == ("../text.txt", Path("source-wanda-50-again"))


def test_what_is_no_manifest_or_not_alone_is_refused(call: Call, first: Path) -> None:
    with pytest.raises(InputError, match=r"is not called prunekit\.json"):
        read(first / "config.json")
    assert "--from and --recipe both say what to do" in call("prune", "--from", "first", "--recipe", "x.yaml").stderr
    edit(first / MANIFEST, recipe=Manifest.read(first).recipe | {"trust_remote_code": True})
    with pytest.raises(UsageError, match="the manifest wants to run code"):
        recipe_of(Manifest.read(first), "sample")


def test_files_that_are_cut_otherwise_are_told_from_other_numbers(first: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for name in ("config.json", MANIFEST):
        (second / name).write_bytes((first / name).read_bytes())
    tensors = load_file(first / WEIGHTS)
    save_file(tensors, second / WEIGHTS, metadata={"format": "pt", "other": "header"})
    found = compared(first, Manifest.read(first), second)
    assert found.difference == "every tensor is equal, but the files are cut or ordered otherwise"
    tensors["new"] = torch.zeros(1)
    save_file(tensors, second / WEIGHTS, metadata={"format": "pt"})
    assert compared(first, Manifest.read(first), second).difference == "new is new"
