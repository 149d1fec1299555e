"""The settings of a run from all the places where a user may give them, put together into one recipe.

Precedence: flag > `--set key=value` > `PRUNEKIT_*` > recipe file > default. Nothing here imports torch, but
to learn which options belong to an allocator that was named as the method.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from prunekit.errors import RecipeError, UsageError
from prunekit.recipe import registry, yaml
from prunekit.recipe.fields import fault, nearest, shorten
from prunekit.recipe.limits import Gates
from prunekit.recipe.options import OPTIONS
from prunekit.recipe.recipe import FREE, ComputeRecipe, ExportRecipe, Recipe, leaves

Origin = Literal["flag", "--set", "environment", "recipe", "default"]
PRECEDENCE: tuple[Origin, ...] = get_args(Origin)
DEFAULT_BASE = "wanda"
SETTINGS: dict[str, tuple[str, ...]] = {  # name of a command-line option -> what it fills
    "model": ("model",),
    **{name: option.paths for name, option in OPTIONS.items()},
}


class Given(NamedTuple):
    """A value that somebody gave, where, and the name it has there (`--ratio`, `PRUNEKIT_RATIO` …)."""

    value: Any
    origin: Origin
    name: str


def build(
    flags: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
    *,
    complete: bool = True,
) -> tuple[Recipe, dict[str, Origin]]:
    """The recipe of a run, and where each of its values comes from.

    `flags` holds the command-line options that were given, under the names in SETTINGS. `environ` is a whole
    environment, of which `PRUNEKIT_<OPTION>` is read. With `complete`, only the model may be left open, and a file
    may not let the model's own code run. Raises UsageError, or RecipeError for a file, naming what was found and what
    was expected.
    """
    return finish(collect(flags, sets, environ, file), file, complete=complete)


def collect(
    flags: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> dict[str, Given]:
    """What was given for each dotted path, from the strongest place, as it was given."""
    return _from_file(file) | _from_environment(environ or {}) | _from_sets(sets) | _from_flags(flags or {})


def finish(
    given: dict[str, Given], file: Path | None = None, *, complete: bool = True
) -> tuple[Recipe, dict[str, Origin]]:
    """The recipe that `collect`ed values make; see `build`."""
    _name_the_method(given)
    recipe = _validate(given)
    registry.find(recipe.allocator, "allocator")
    if complete:
        _refuse_foreign_trust(recipe, given, f"the recipe {file}")
    if registry.find(recipe.method, "method").needs_ratio and complete:
        _ = recipe.sparsity
    paths = (*leaves(), *_free_paths(given))
    return recipe, {path: given[path].origin if path in given else "default" for path in paths}


def variable(option: str) -> str:
    """The environment variable of a command-line option: `seq_len` -> `PRUNEKIT_SEQ_LEN`."""
    return f"PRUNEKIT_{option.upper()}"


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Given]:
    def name(option: str) -> str:
        return "MODEL" if option == "model" else f"--{option.replace('_', '-')}"

    return {path: Given(value, "flag", name(option)) for option, value in flags.items() for path in SETTINGS[option]}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    present = {option: environ[variable(option)] for option in SETTINGS if environ.get(variable(option))}
    return {
        path: Given(value, "environment", variable(option))
        for option, value in present.items()
        for path in SETTINGS[option]
    }


def _from_sets(sets: Iterable[str]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {text!r} is not key=value", hint="--set calibration.samples=64")
        path = _set_path(key.strip())
        given[path] = Given(yaml.parse(value, name=f"--set {key}"), "--set", f"--set {key}")
    return given


def _set_path(key: str) -> str:
    """A dotted recipe path, a top-level setting of the recipe, or else an option of the method."""
    if key in leaves() or _is_free(key):
        return key
    if "." in key:
        raise UsageError(f"the recipe has no setting {key!r}", hint=_suggest(key, "prunekit recipe show"))
    if key in Recipe.model_fields:
        raise UsageError(f"{key} is a group of settings", hint=f"name one of them, such as {_first_below(key)}")
    return f"options.{key}"


def _first_below(group: str) -> str:
    return next((path for path in leaves() if path.startswith(f"{group}.")), f"{group}.NAME=VALUE")


def _is_free(path: str) -> bool:
    return path.partition(".")[0] in FREE and path.partition(".")[2] != ""


def _free_paths(given: Mapping[str, Given]) -> list[str]:
    return sorted(path for path in given if _is_free(path))


def _from_file(file: Path | None) -> dict[str, Given]:
    if file is None:
        return {}
    content = yaml.parse(_read(file), name=str(file))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(
            f"{file} holds {shorten(content)}; a mapping of settings was expected",
            hint="prunekit recipe init",
        )
    return {path: Given(value, "recipe", f"{file}: {path}") for path, value in _flatten(content, file)}


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"cannot read the recipe {file}: {error.strerror}", hint="prunekit recipe init > recipe.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _flatten(content: Mapping[Any, Any], file: Path) -> Iterable[tuple[str, Any]]:
    """Dotted path and value of every setting of a file; raises RecipeError for a key that no recipe has."""
    known = leaves()
    groups = {path.partition(".")[0] for path in known if "." in path} | set(FREE)
    for key, value in content.items():
        if key not in groups:
            yield _known(str(key), known, file), value
        elif isinstance(value, dict):
            paths = {f"{key}.{inner}": part for inner, part in value.items()}
            yield from ((path if key in FREE else _known(path, known, file), part) for path, part in paths.items())
        elif value is not None:
            raise RecipeError(f"{file}: {key} is {shorten(value)}; a mapping was expected")


def _known(path: str, known: Sequence[str], file: Path) -> str:
    if path in known:
        return path
    raise RecipeError(f"{file}: unknown key {path!r}", hint=_suggest(path, "prunekit recipe schema"))


def _suggest(path: str, otherwise: str) -> str:
    near = nearest(path, [*leaves(), *FREE])
    return f"did you mean {near}?" if near else otherwise


def _name_the_method(given: dict[str, Given]) -> None:
    """Check the method's name; an allocator's name makes it allocate for `options.base`, or for wanda."""
    chosen = given.get("method")
    if chosen is None or not isinstance(chosen.value, str):
        return
    if not registry.is_allocator(chosen.value):
        registry.find(chosen.value)
        return
    other = given.get("allocator", chosen)
    if other.value != chosen.value and PRECEDENCE.index(other.origin) <= PRECEDENCE.index(chosen.origin):
        raise UsageError(
            f"{chosen.name} {chosen.value} is an allocator, and {other.name} names another, {other.value}",
            hint=f"--method {DEFAULT_BASE} --allocator {other.value}",
        )
    given["allocator"] = chosen
    given["method"] = given.pop("options.base", Given(DEFAULT_BASE, "default", "method"))
    registry.find(str(given["method"].value), "method")
    _hand_options_to_allocator(given, chosen.value)


def _hand_options_to_allocator(given: dict[str, Given], name: str) -> None:
    """Options that the allocator knows are its own, since the user named it as the method."""
    paths = _free_paths(given)
    own = set(registry.load(name, "allocator").model_fields) if paths else set()
    for path in paths:
        group, _, key = path.partition(".")
        if group == "options" and key in own:
            given.setdefault(f"allocator_options.{key}", given.pop(path))


def _validate(given: Mapping[str, Given]) -> Recipe:
    try:
        return Recipe.model_validate(_nest(given))
    except ValidationError as error:
        path, problem = fault(Recipe, error)
        raise _refusal(path, problem, given.get(path) or given.get(path.rpartition(".")[0])) from error


def _refusal(path: str, problem: str, source: Given | None) -> UsageError:
    if source is None and path == "method":
        return UsageError("no method is given", hint="--method wanda; prunekit methods lists them all")
    if source is None:
        return UsageError(f"{path} {problem}")
    return (RecipeError if source.origin == "recipe" else UsageError)(f"{source.name} {problem}")


def _nest(given: Mapping[str, Given]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, (value, _, _) in given.items():
        group, dot, key = path.partition(".")
        if dot:
            nested.setdefault(group, {})[key] = value
        else:
            nested[path] = value
    return nested


def override(
    recipe: Mapping[str, Any], flags: Mapping[str, Any], sets: Iterable[str] = (), *, name: str = "the plan"
) -> Recipe:
    """A recipe that a plan or a manifest carries, with the settings that are given now put over it.

    Raises UsageError as `build` does, also when it is what `name` stands for alone that lets the model's own code run.
    """
    carried = {path: Given(value, "recipe", f"{name}'s {path}") for path, value in _flatten(recipe, Path(name))}
    given = carried | _from_sets(sets) | _from_flags(flags)
    found = _validate(given)
    _refuse_foreign_trust(found, given, name)
    return found


def compute(**flags: Any) -> ComputeRecipe:
    """Where a command without a recipe computes, from some of the options device, dtype and offload."""
    return _without_method(flags).compute


def writing(**flags: Any) -> ExportRecipe:
    """How a command without a recipe writes a folder, from some of the options max_shard_size and verify."""
    return _without_method(flags).export


def _without_method(flags: Mapping[str, Any]) -> Recipe:
    given = _from_flags({option: value for option, value in flags.items() if value is not None})
    return _validate({"method": Given(DEFAULT_BASE, "default", "method")} | given)


def gates(flags: Mapping[str, Any]) -> Gates:
    """The quality gates of a command without a recipe, from those of its options that are set."""
    given = {
        f"gates.{name}": Given(value, "flag", f"--{name.replace('_', '-')}")
        for name, value in flags.items()
        if name in Gates.model_fields and value not in (None, [])
    }
    return _validate({"method": Given(DEFAULT_BASE, "default", "method")} | given).gates


def _refuse_foreign_trust(recipe: Recipe, given: Mapping[str, Given], name: str) -> None:
    """Files come from other people: code that comes with a model runs when the user says so, not when a file does."""
    if recipe.trust_remote_code and given["trust_remote_code"].origin == "recipe":
        raise UsageError(
            f"{name} wants to run code that comes with the model", hint="read it, then add --trust-remote-code"
        )
