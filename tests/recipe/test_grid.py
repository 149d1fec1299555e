"""A recipe with lists is the grid of runs that it stands for, in order, each once, under names that differ."""

from pathlib import Path

import pytest

from prunekit.errors import RecipeError, UsageError
from prunekit.recipe.grid import Cell, expand
from prunekit.recipe.settings import collect

SWEEPS = sorted((Path(__file__).parents[2] / "recipes" / "sweeps").glob("*.yaml"))


def cells(text: str, folder: Path, **flags: object) -> list[Cell]:
    file = folder / "grid.yaml"
    file.write_text(text)
    return expand(collect(flags, file=file), file)


def names(found: list[Cell]) -> list[str]:
    return [cell.name for cell in found]


def test_every_combination_is_a_run_the_methods_in_turn(tmp_path: Path) -> None:
    found = cells("ratio: [0.1, 0.25]\nmethod: [magnitude, shortgpt]\nmodel: sample", tmp_path)
    assert names(found) == ["magnitude-10", "magnitude-25", "shortgpt-10", "shortgpt-25"]
    assert [(cell.recipe.method, cell.recipe.ratio) for cell in found[1:3]] == [("magnitude", 0.25), ("shortgpt", 0.1)]


def test_a_recipe_without_lists_is_a_grid_of_one(tmp_path: Path) -> None:
    assert names(cells("method: wanda\npattern: 2:4", tmp_path)) == ["wanda-2-4"]


def test_options_under_a_methods_name_are_for_that_method_and_may_be_lists(tmp_path: Path) -> None:
    text = "method: [wanda, magnitude]\nratio: 0.5\noptions:\n  wanda: {variant: [true, false]}"
    found = cells(text, tmp_path)
    assert names(found) == ["wanda-50-variant-True", "wanda-50-variant-False", "magnitude-50"]
    assert [cell.recipe.options for cell in found] == [{"variant": True}, {"variant": False}, {}]


def test_a_list_that_an_option_takes_is_one_value(tmp_path: Path) -> None:
    (cell,) = cells("method: layers\noptions:\n  layers: {blocks: [1, 2]}", tmp_path)
    assert (cell.name, cell.recipe.options) == ("layers-blocks-1-2", {"blocks": [1, 2]})


def test_what_means_nothing_to_a_method_is_left_out_and_equal_runs_are_run_once(tmp_path: Path) -> None:
    text = (
        "method: [magnitude, shortgpt, layers]\nratio: [0.1, 0.2]\nprotect_blocks: first:2\n"
        "calibration: {samples: [8, 16]}\noptions:\n  layers: {blocks: '1'}"
    )
    found = cells(text, tmp_path)
    assert names(found) == [
        "magnitude-10",
        "magnitude-20",
        *(f"shortgpt-{percent}-samples-{samples}" for percent in (10, 20) for samples in (8, 16)),
        "layers",
    ]
    assert found[0].recipe.protect_blocks == "first:1,last:1" and found[2].recipe.protect_blocks == "first:2"
    assert found[-1].recipe.ratio is None


def test_a_flag_wins_over_the_lists(tmp_path: Path) -> None:
    assert names(cells("method: [magnitude, wanda]\nratio: [0.1, 0.2]", tmp_path, ratio="0.3")) == [
        "magnitude-30",
        "wanda-30",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: []\nratio: 0.1", "method is an empty list"),
        ("method: wanda\nratio: [0.1, 1.5]", "ratio is 1.5; expected a number above 0"),
        ("method: [wanda, wnda]\nratio: 0.1", "no method or allocator is called 'wnda'"),
        ("ratio: [0.1, 0.2]", "no method is given"),
        ("method: wanda\nratio: 0.1\noptions: {wanda: {varint: true}}", "wanda has no option 'varint'"),
        ("method: wanda\nratio: 0.1\noptions: {trsp: {stage2: none}}", "holds options for trsp, which the grid does"),
        ("method: wanda\nratos: [0.1]", "unknown key 'ratos'"),
    ],
)
def test_what_is_wrong_with_any_run_is_said_before_the_first(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises((RecipeError, UsageError)) as error:
        cells(text, tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_a_recipe_of_a_sweep_expands_and_begins_with_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# prunekit sweep recipes/sweeps/{path.name} MODEL"
    assert len(expand(collect({"model": "sample"}, file=path), path)) > 1
