"""A recipe with lists, and the runs that it stands for: one for every combination of their values.

    method: [trsp, shortgpt]
    ratio: [0.1, 0.2, 0.3]
    options:
      trsp: {stage2: none}        # options under a method's name are for that method only

A list is a list of values to try, unless the setting itself takes a list. Settings that mean nothing to a method (a
ratio where it is told what goes, a pattern where it zeroes nothing) are left out for it, and equal runs are run once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunekit.errors import RecipeError, UsageError
from prunekit.model.hub import short_name
from prunekit.recipe import recipe as recipes
from prunekit.recipe import registry
from prunekit.recipe.meaning import idle
from prunekit.recipe.recipe import Recipe, value_at
from prunekit.recipe.settings import DEFAULT_BASE, Given, finish

NAMED = ("method", "allocator", "ratio", "pattern", "model")  # axes that have their place in a cell's name
Values = dict[str, Given]


@dataclass(frozen=True)
class Cell:
    """One run of a grid; `name` is that of its folder."""

    name: str
    recipe: Recipe


def expand(given: Mapping[str, Given], file: Path | None = None) -> list[Cell]:
    """The runs that collected settings stand for (see `settings.collect`), in the order of their lists.

    Raises UsageError, or RecipeError for a file, for whatever is wrong with any of them, down to the methods' options.
    """
    general, special = _by_method(given)
    found: dict[str, tuple[Recipe, Values]] = {}
    for chosen in _combined(general, [path for path in general if not _is_option(path)]):
        method = str(chosen["method"].value) if "method" in chosen else ""
        own = chosen | special.get(method, {})
        for cell in _combined(own, [path for path in own if _is_option(path) and not _takes_list(method, path, own)]):
            recipe = _fitted(finish(dict(cell), file)[0])
            found.setdefault(recipe.model_dump_json(), (recipe, cell))
    _refuse_strangers(special, [recipe for recipe, _ in found.values()], given)
    axes = [path for path, entry in given.items() if isinstance(entry.value, list)]
    axes += [path for options in special.values() for path, entry in options.items() if isinstance(entry.value, list)]
    return _named(list(found.values()), list(dict.fromkeys(axes)))


def _by_method(given: Mapping[str, Given]) -> tuple[Values, dict[str, Values]]:
    """Settings for all methods, and options for one: what stands as a mapping under the method's name."""
    general, special = dict(given), dict[str, Values]()
    for path, (value, origin, name) in given.items():
        method = path.removeprefix("options.")
        if path.startswith("options.") and isinstance(value, dict):
            del general[path]
            special[method] = {f"options.{key}": Given(part, origin, f"{name}.{key}") for key, part in value.items()}
    return general, special


def _combined(given: Values, axes: Sequence[str]) -> Iterator[Values]:
    """One mapping for each combination of the values of the axes, the method first and then in their order."""
    varied = sorted((path for path in axes if isinstance(given[path].value, list)), key=lambda path: path != "method")
    for path in varied:
        if not given[path].value:
            raise RecipeError(f"{given[path].name} is an empty list; expected at least one value")
    for values in product(*(given[path].value for path in varied)):
        yield given | {path: given[path]._replace(value=value) for path, value in zip(varied, values, strict=True)}


def _is_option(path: str) -> bool:
    return path.startswith(("options.", "allocator_options."))


def _takes_list(method: str, path: str, given: Values) -> bool:
    """Whether an option's value is a list, rather than a list of values to try."""
    group, _, key = path.partition(".")
    value = given[path].value
    if not isinstance(value, list) or not method:
        return True
    if group == "allocator_options":
        plugin: Any = registry.load(str(given["allocator"].value), "allocator") if "allocator" in given else None
    else:
        plugin = registry.load(_base(method, given))
    try:
        plugin.model_validate({key: value})
    except (ValidationError, UsageError, AttributeError):
        return False
    return True


def _base(method: str, given: Values) -> str:
    """The method that is meant by a name, which may be an allocator's."""
    if not registry.is_allocator(method):
        return method
    return str(given["options.base"].value) if "options.base" in given else DEFAULT_BASE


def _fitted(recipe: Recipe) -> Recipe:
    """The recipe without settings that mean nothing to its method; its options are checked."""
    needs, defaults = recipes.method(recipe).needs, Recipe(method=recipe.method)
    useless = idle(needs, recipe.layout)
    useless += ["allocator_options"] if "allocator" in useless else []
    recipe = recipe.model_copy(update={name: getattr(defaults, name) for name in useless})
    if needs.calibration or recipes.allocator(recipe).needs.calibration:
        return recipe
    read = {"source": recipe.calibration.source, "column": recipe.calibration.column}  # perplexity follows these
    return recipe.model_copy(update={"calibration": defaults.calibration.model_copy(update=read)})


def _refuse_strangers(special: Mapping[str, Values], found: Sequence[Recipe], given: Mapping[str, Given]) -> None:
    """Raise RecipeError for options under a name that no run has."""
    known = {name for recipe in found for name in (recipe.method, recipe.allocator)}
    for method in special:
        if method not in known:
            raise RecipeError(
                f"{given[f'options.{method}'].name} holds options for {method}, which the grid does not run",
                hint=f"it runs {', '.join(sorted(known - {'uniform'}))}",
            )


def _named(found: Sequence[tuple[Recipe, Values]], axes: Sequence[str]) -> list[Cell]:
    """Cells with names that differ: method, amount, and the values of whatever else varies."""
    several = len({recipe.model for recipe, _ in found}) > 1
    cells: list[Cell] = []
    for recipe, given in found:
        parts = [short_name(recipe.model or "model")] if several else []
        parts += [recipe.method, *([recipe.allocator] if recipe.allocator != "uniform" else [])]
        parts += recipes.amount(recipe)
        others = [
            path for path in axes if path in given and path not in NAMED and _has(recipe, given[path].value, path)
        ]
        parts += [f"{path.rpartition('.')[2]}-{given[path].value}" for path in others]
        name = re.sub(r"[^\w.=]+", "-", "-".join(parts)).strip("-")
        taken = sum(cell.name == name or cell.name.startswith(f"{name}~") for cell in cells)
        cells.append(Cell(f"{name}~{taken + 1}" if taken else name, recipe))
    return cells


def _has(recipe: Recipe, value: Any, path: str) -> bool:
    """Whether a setting still has the value that was given, and was not left out."""
    group, _, key = path.partition(".")
    return key in getattr(recipe, group) if _is_option(path) else value_at(recipe, path) == value
