"""The documentation is executable: links resolve, recipes validate, commands exist, the example runs."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prunekit.recipe import registry, settings

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "methods" / "README.md", *(REPOSITORY / "docs").rglob("*.md")])
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
OWN = [plugin for plugin in registry.plugins() if plugin.built_in]
METHODS = [plugin.name for plugin in OWN if plugin.kind == "method"]
ALLOCATORS = [plugin.name for plugin in OWN if plugin.kind == "allocator"]


def read(*parts: str) -> str:
    return REPOSITORY.joinpath(*parts).read_text(encoding="utf-8")


def short(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_page_that_names_all_its_options_and_its_paper(name: str) -> None:
    page, method = read("docs", "methods", f"{name}.md"), registry.load(name)
    missing = [option for option in method.model_fields if f"| `{option}` |" not in page]
    assert not missing, f"docs/methods/{name}.md does not explain {missing}"
    number = re.search(r"arXiv:[\d.]+\d", method.paper)
    assert number is None or number[0] in page


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_listed_in_the_readme_and_the_index(name: str) -> None:
    assert f"(docs/methods/{name}.md)" in read("README.md")
    assert f"]({name}.md)" in read("docs", "methods", "README.md")


@pytest.mark.parametrize("name", ALLOCATORS)
def test_an_allocator_is_named_in_the_index_of_methods(name: str) -> None:
    assert f"`{name}`" in read("docs", "methods", "README.md")


@pytest.mark.parametrize("name", [name for name in ALLOCATORS if name != "uniform"])
def test_an_allocator_has_a_page_with_all_its_options_a_line_in_the_readme_and_a_recipe(name: str) -> None:
    page, allocator = read("docs", "methods", f"{name}.md"), registry.load(name, "allocator")
    missing = [option for option in allocator.model_fields if f"| `{option}` |" not in page]
    assert not missing, f"docs/methods/{name}.md does not explain {missing}"
    number = re.search(r"arXiv:[\d.]+\d", allocator.paper)
    assert number is None or number[0] in page
    assert f"(docs/methods/{name}.md)" in read("README.md")
    assert f"]({name}.md)" in read("docs", "methods", "README.md")
    assert any(settings.build(file=path, complete=False)[0].allocator == name for path in RECIPES)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_recipe(name: str) -> None:
    assert any(settings.build(file=path, complete=False)[0].method == name for path in RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=short)
def test_a_recipe_validates_and_begins_with_the_command_that_runs_it(path: Path) -> None:
    settings.build(file=path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# prunekit prune ")
    assert f"--recipe {short(path)}" in first


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_relative_link_of_a_page_resolves(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in target]
    missing = [target for target in targets if target and not (page.parent / target).exists()]
    assert not missing, f"{short(page)} links to {missing}"


def test_every_decision_is_in_the_index_of_decisions() -> None:
    index = read("docs", "decisions", "README.md")
    pages = [page.name for page in (REPOSITORY / "docs" / "decisions").glob("0*.md")]
    assert pages and all(f"({name})" in index for name in pages)


def test_every_make_command_of_a_page_is_a_target_with_help() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), flags=re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"`make ([a-z-]+)|^ +make ([a-z-]+)", page.read_text(), re.M)
    }
    assert {"demo", "test"} <= {name for pair in named for name in pair if name} <= targets


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `prunekit …` that a page shows, in code blocks and in running text."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^ {4}(prunekit .*)$|`(prunekit [a-z][^`\n]*)`|^(prunekit .*)$", text, re.M)
    for found in shown:
        for part in next(filter(None, found)).split("|"):
            words = shlex.split(part.replace("…", ""), comments=True)
            if words[:1] == ["prunekit"]:
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_every_command_of_a_page_exists_with_the_options_it_shows(page: Path) -> None:
    import typer

    from prunekit.cli.app import app

    for words in commands(page):
        command: Any = typer.main.get_command(app)
        for word in words:
            command = getattr(command, "commands", {}).get(word, command)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert not (unknown := used - known - {"--help"}), f"{short(page)}: {' '.join(words)}: no option {unknown}"


def test_every_recipe_that_a_command_of_a_page_names_exists() -> None:
    named = [word for page in PAGES for words in commands(page) for word in words if word.startswith("recipes/")]
    assert all(list(REPOSITORY.glob(word)) for word in named), named


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    script = runpy.run_path(str(REPOSITORY / "docs" / "scripts" / "cli_page.py"))
    assert read("docs", "cli.md") == script["page"](), "run: make docs"


def test_the_table_of_settings_is_up_to_date() -> None:
    script = runpy.run_path(str(REPOSITORY / "docs" / "scripts" / "settings_table.py"))
    page = read("docs", "recipes.md")
    assert page == script["page"](page), "run: make docs"


def test_the_constraints_pin_every_direct_dependency_within_its_range() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    pins = dict(line.split("==") for line in read(".ci", "constraints.txt").splitlines() if "==" in line)
    extras = project["optional-dependencies"].values()
    for text in (*project["dependencies"], *(text for extra in extras for text in extra)):
        requirement = Requirement(text)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f".ci/constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin), f"{text} does not allow the pinned {pin}"


def run(*words: str, folder: Path, path: Path) -> str:
    """What a command prints on stdout, run in a folder with one more place to import from."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_plug_in_that_the_page_shows_installs_is_listed_and_prunes(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    page = read("methods", "README.md")
    project, installed, text = tmp_path / "project", tmp_path / "installed", tmp_path / "text.txt"
    project.mkdir()
    for language, name in (("python", "ria.py"), ("toml", "pyproject.toml")):
        (project / name).write_text(re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)[0])
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        *offline,
        "--target",
        str(installed),
        ".",
        folder=project,
        path=tmp_path,
    )
    text.write_text(page)

    prunekit = (sys.executable, "-c", "from prunekit.cli import main; main()")
    assert "ria" in run(*prunekit, "methods", folder=tmp_path, path=installed)
    calibration = ("--calib", str(text), "--samples", "4", "--seq-len", "32", "--no-eval-quick", "--verify", "off")
    method = ("-m", "ria", "--ratio", "0.5", "--set", "power=1", *calibration)
    answer = run(*prunekit, "prune", str(tiny_llama()), *method, "-o", "out", "--json", folder=tmp_path, path=installed)
    assert json.loads(answer)["sparsity"] == pytest.approx(0.5, abs=0.001)
