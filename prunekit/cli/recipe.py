"""`prunekit recipe`: look at recipes, check them, and begin a new one."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options
from prunekit.cli.command import SETTINGS, Command, Run, command
from prunekit.cli.screen import table
from prunekit.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from prunekit.recipe.recipe import Recipe

File = Annotated[Path | None, typer.Argument(metavar="FILE", help="Recipe to begin with.", show_default=False)]
Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Recipes to check.")]

app = typer.Typer(help="Show, check and begin recipes.", rich_markup_mode=None)


@command(options.PLANNING, options.MEASURING, options.LIMITS, options.WRITING)
def show(run: Run, file: File = None) -> None:
    """Show every setting of a run with its value and where that comes from.

    Precedence: flag, --set, PRUNEKIT_ variable, recipe, default.
    """
    from prunekit.recipe import settings
    from prunekit.recipe.recipe import value_at

    if file is not None and run.values["recipe"] is not None:
        raise UsageError(f"two recipes are given, {file} and {run.values['recipe']}", hint="leave --recipe out")
    chosen = file or run.values["recipe"]
    found, origins = settings.build(run.flags(), run.values["set"] or (), os.environ, chosen, complete=False)
    rows = [(path, as_yaml(value_at(found, path)), origin) for path, origin in origins.items()]
    data = {"recipe": found.model_dump(mode="json"), "origins": origins}
    run.screen.result(data, table("setting", "value", "from", rows=rows))


@command()
def validate(run: Run, files: Files) -> None:
    """Check recipes, down to the options of their methods."""
    errors = {str(file): problem(file) for file in files}
    valid = [file for file, error in errors.items() if error is None]
    checked = [
        {"file": file, "valid": error is None, "error": error and error.as_json()["error"]}
        for file, error in errors.items()
    ]
    bad = [error for error in errors.values() if error is not None]
    if len(bad) == 1:
        raise bad[0]
    for error in bad:
        run.screen.say(f"{error.message}; {error.hint}" if error.hint else error.message)
    if bad:
        raise RecipeError(f"{len(bad)} of {len(errors)} recipes are not valid")
    run.screen.result({"files": checked}, *(f"{file}: ok" for file in valid))


def problem(file: Path) -> UsageError | None:
    """What is wrong with a recipe file, if anything."""
    from prunekit.recipe import recipe as recipes
    from prunekit.recipe import settings

    try:
        found, _ = settings.build(file=file, complete=False)
        recipes.method(found)
        recipes.allocator(found)
    except UsageError as error:
        named = str(file) in error.message
        return error if named else RecipeError(f"{file}: {error.message}", hint=error.hint)
    return None


@command()
def schema(run: Run) -> None:
    """Print the JSON Schema of recipes, for editors and other programs."""
    from prunekit.recipe.recipe import Recipe

    made = Recipe.model_json_schema()
    run.screen.result(made, json.dumps(made, indent=2))


@command()
def init(run: Run, method: options.MethodName = None) -> None:
    """Print a recipe with every setting, its default, and what it means."""
    from prunekit.recipe import settings

    begun, _ = settings.build({"method": method or settings.DEFAULT_BASE}, complete=False)
    text = template(begun)
    run.screen.result({"recipe": text}, text.rstrip("\n"))


def template(begun: "Recipe") -> str:
    """A commented recipe: the settings of the recipe, then those of its method."""
    from prunekit.recipe import registry
    from prunekit.recipe.fields import fields
    from prunekit.recipe.recipe import Recipe, leaves

    groups = {path.partition(".")[0] for path in leaves() if "." in path}
    lines = ["# prunekit prune MODEL --recipe THIS-FILE", ""]
    for entry in fields(Recipe):
        value = getattr(begun, entry.name)
        if entry.name in groups:
            lines += _section(entry.name, fields(type(value)), value)
        elif entry.name == "options":
            lines += _section("options", fields(registry.load(begun.method)))
        elif entry.name == "allocator_options":
            lines += _section("allocator_options", fields(registry.load(begun.allocator, "allocator")))
        else:
            shown = {"model": "sample", "ratio": 0.5}.get(entry.name, value)
            lines += [f"# {entry.description}", f"{entry.name}: {as_yaml(shown)}", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _section(name: str, entries: list[Any], values: Any = None) -> list[str]:
    """One group of settings, indented; `{}` when it has none."""
    if not entries:
        return [f"{name}: {{}}", ""]
    lines = [f"{name}:"]
    for entry in entries:
        value = entry.default if values is None else getattr(values, entry.name)
        lines += [f"  # {entry.description}", f"  {entry.name}: {as_yaml(value)}"]
    return [*lines, ""]


def as_yaml(value: object) -> str:
    """A value as it may stand in a recipe."""
    plain = isinstance(value, str) and value.replace("-", "").replace("/", "").isalnum()
    return str(value) if plain and value not in ("true", "false", "null") else json.dumps(value)


SHOW = """
prunekit recipe show recipes/wanda-50.yaml --ratio 0.6
prunekit recipe show -m sparsegpt --pattern 2:4 --json
"""
VALIDATE = "prunekit recipe validate recipes/*.yaml"
SCHEMA = "prunekit recipe schema > recipe.schema.json"
INIT = "prunekit recipe init -m sparsegpt > recipe.yaml"

for function, examples in ((show, SHOW), (validate, VALIDATE), (schema, SCHEMA), (init, INIT)):
    app.command(function.__name__, cls=Command, epilog=examples, context_settings=SETTINGS)(function)
