import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer

from prunekit.cli import options
from prunekit.cli.app import app
from prunekit.recipe.recipe import Recipe, value_at
from prunekit.recipe.settings import SETTINGS

from .conftest import Run

COMMANDS = [
    "prune",
    "plan",
    "apply",
    "eval",
    "compare",
    "sweep",
    "export",
    "inspect",
    "verify",
    "push",
    "methods",
    "doctor",
    "recipe",
]


def parts(command: str) -> list[Any]:
    return typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]


def test_the_root_names_every_command_with_a_whole_sentence(run: Run) -> None:
    result = run("--help")
    listed = re.findall(r"^  ([a-z]+)  +([A-Z].*)$", result.stdout.split("Commands:")[1], re.M)

    assert [name for name, _ in listed] == COMMANDS
    assert all(text.endswith(".") and not text.endswith("...") for _, text in listed)
    assert run("-h").stdout == result.stdout


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "recipe"])
def test_every_command_explains_its_options_and_ends_with_examples(run: Run, command: str) -> None:
    text = run(command, "--help").stdout

    assert "Environment:" in text
    assert f"  prunekit {command}" in text.split("Examples:")[1]
    for part in parts(command):
        assert (part.help or "").endswith("."), part.name


def test_every_option_is_also_a_variable_but_the_file_of_a_plan() -> None:
    for command in COMMANDS[:-1]:
        for part in parts(command):
            if (command, part.name) == ("plan", "output"):
                assert part.envvar is None and "it has no variable" in part.help
            elif part.param_type_name == "option" and part.name != "help":
                long = next(name for name in part.opts if name.startswith("--"))
                assert part.envvar == f"PRUNEKIT_{long[2:].replace('-', '_').upper()}"


def test_every_setting_of_a_recipe_is_an_option_of_prune() -> None:
    assert {part.name for part in parts("prune")} >= set(SETTINGS)


def test_the_defaults_that_the_help_states_are_those_of_the_recipe() -> None:
    recipe = Recipe(method="wanda")
    stated = {part.name: re.search(r"\(default ([^ )]+)\)", part.help) for part in parts("prune")}
    found = {name: match[1] for name, match in stated.items() if match and name in SETTINGS and name != "targets"}

    assert len(found) >= 10
    for name, text in found.items():
        value = value_at(recipe, SETTINGS[name][0])
        assert text == ("yes" if value is True else str(value)), name


def test_panels_name_every_panel_that_an_option_uses() -> None:
    used = {part.rich_help_panel for name in COMMANDS[:-1] for part in parts(name) if hasattr(part, "rich_help_panel")}

    assert used - {None} <= set(options.PANELS)


def test_the_version_is_printed(run: Run) -> None:
    assert re.fullmatch(r"prunekit \d+\.\d+\.\d+\S*\n", run("--version").stdout)


def test_help_takes_less_than_four_tenths_of_a_second_of_a_core() -> None:
    times: list[float] = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "prunekit", "--help"], check=True, capture_output=True, timeout=60)
        after = os.times()
        user = after.children_user - before.children_user
        times.append(user + after.children_system - before.children_system)
    assert min(times) < 0.4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("prunekit pru", "prune"),
        ("prunekit prune sample -m magn", "magnitude"),
        ("prunekit prune sample --offload d", "disk"),
        ("prunekit methods spars", "sparsegpt"),
        ("prunekit recipe val", "validate"),
    ],
)
def test_the_shell_completes_commands_methods_and_choices(words: str, expected: str) -> None:
    environment = {**os.environ, "_PRUNEKIT_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split()) - 1)
    done = subprocess.run(
        [sys.executable, "-m", "prunekit"], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.stdout.split() == [expected]
    assert done.stderr == ""
