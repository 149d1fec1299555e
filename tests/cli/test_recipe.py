import json
from pathlib import Path

import pytest

from prunekit.recipe import yaml
from prunekit.recipe.recipe import Recipe

from .conftest import Run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: wanda\npattern: 2:4\ncalibration: {samples: 64}\n")
    return path


def test_show_gives_every_value_its_origin(run: Run, file: Path) -> None:
    result = run("recipe", "show", file, "--seq-len", "32", "--set", "variant=true", PRUNEKIT_DEVICE="cpu")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[2:]}

    assert result.exit_code == 0, result.stderr
    assert rows["method"] == ["wanda", "recipe"]
    assert rows["pattern"] == ['"2:4"', "recipe"]
    assert rows["calibration.samples"] == ["64", "recipe"]
    assert rows["calibration.seq_len"] == ["32", "flag"]
    assert rows["options.variant"] == ["true", "--set"]
    assert rows["compute.device"] == ["cpu", "environment"]
    assert rows["seed"] == ["0", "default"]


def test_show_as_json_holds_the_recipe_and_the_origins(run: Run, file: Path) -> None:
    shown = json.loads(run("recipe", "show", "--recipe", file, "--json").stdout)

    assert shown["schema_version"] == 1
    assert Recipe.model_validate(shown["recipe"]).calibration.samples == 64
    assert shown["origins"]["calibration.samples"] == "recipe"


def test_show_takes_one_recipe(run: Run, file: Path) -> None:
    result = run("recipe", "show", file, "--recipe", file)

    assert result.exit_code == 2
    assert "two recipes are given" in result.stderr


def test_validate_says_ok_or_what_is_wrong_and_where(run: Run, file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    assert run("recipe", "validate", file).stdout == f"{file}: ok\n"
    for text, said in (
        ("method: wanda\nration: 1", "unknown key 'ration'"),
        ("method: wanda\noptions: {no_such: 1}", f"{bad}: wanda has no option 'no_such'"),
        ("method: wnda", "did you mean wanda?"),
        ("method: !!python/object:os.system {}", "the tag !!python/object:os.system"),
    ):
        bad.write_text(text)
        result = run("recipe", "validate", file, bad)
        assert result.exit_code == 2
        assert said in result.stderr
        assert str(bad) in result.stderr
    result = run("recipe", "validate", bad, tmp_path / "absent.yaml", "--json")
    assert json.loads(result.stdout)["error"]["message"] == "2 of 2 recipes are not valid"


def test_validate_as_json_lists_the_files(run: Run, file: Path) -> None:
    found = json.loads(run("recipe", "validate", file, "--json").stdout)
    assert found["files"] == [{"file": str(file), "valid": True, "error": None}]


def test_the_schema_is_that_of_the_recipe(run: Run) -> None:
    assert json.loads(run("recipe", "schema").stdout) == Recipe.model_json_schema()
    assert json.loads(run("recipe", "schema", "--json").stdout)["title"] == "Recipe"


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_recipe_that_init_begins_is_valid_and_holds_every_default(run: Run, tmp_path: Path, method: str) -> None:
    text = run("recipe", "init", "-m", method).stdout
    (tmp_path / "begun.yaml").write_text(text)
    recipe = Recipe.model_validate(yaml.parse(text, name="begun"))

    assert run("recipe", "validate", tmp_path / "begun.yaml").exit_code == 0
    assert recipe.model_copy(update={"options": {}}) == Recipe(model="sample", method=method, ratio=0.5)
    assert text.startswith("# prunekit prune ")


def test_init_as_json_carries_the_text(run: Run) -> None:
    assert "method: wanda" in json.loads(run("recipe", "init", "--json").stdout)["recipe"]
