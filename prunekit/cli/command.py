"""How a command is declared, what it is given, and how its help looks."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from prunekit import distributed
from prunekit.cli.libraries import quiet_libraries
from prunekit.cli.models import read_model
from prunekit.cli.options import PANELS, SHOWN, Group
from prunekit.cli.screen import Screen
from prunekit.errors import UsageError

if TYPE_CHECKING:
    from prunekit.recipe.recipe import Recipe

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
VARIABLES = "Every option can also be given as a variable: PRUNEKIT_SEED=7 is --seed 7."


@dataclass(frozen=True)
class Run:
    """One call of a command: where to say things, all its options, and those of them that were typed."""

    screen: Screen
    values: dict[str, Any]
    typed: frozenset[str]

    @property
    def offline(self) -> bool:
        """Whether the network may not be used."""
        return bool(self.values.get("offline"))

    def recipe(self, model: str | None) -> "Recipe":
        """The recipe that flags, `--set`, environment and file make together, with the model that `-` stands for."""
        from prunekit.recipe import settings

        flags = self.flags() | ({} if model is None else {"model": model})
        recipe, _ = settings.build(flags, self.values["set"] or (), os.environ, self.values["recipe"])
        if recipe.model is None:
            raise UsageError("no model is given", hint="prunekit prune sample -m wanda -r 0.5")
        if recipe.model == recipe.calibration.source == "-":
            raise UsageError("MODEL and --calib cannot both be read from standard input", hint="give one a path")
        return recipe.model_copy(update={"model": read_model(recipe.model)})

    def flags(self) -> dict[str, Any]:
        """The recipe's settings among the options that were typed."""
        from prunekit.recipe import settings

        return {name: self.values[name] for name in self.typed if name in settings.SETTINGS}


class Command(TyperCommand):
    """A command whose help groups the options by what they are about, and ends with examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {title: [] for title in PANELS}
        for part in self.get_params(ctx):
            name, text = part.get_help_record(ctx) or ("", "")
            is_argument = part.param_type_name == "argument"
            title = PANELS[0] if is_argument else getattr(part, "rich_help_panel", None) or PANELS[-1]
            panels[title].append((name.partition(" <")[0] if is_argument else name, text.removesuffix("  [required]")))
        for title, records in panels.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        with formatter.section("Environment"):
            formatter.write_text(VARIABLES)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.epilog.strip().splitlines()))


def command(*groups: Group, shared_work: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function `(run, *own options)` the options of some groups, and a screen to work on.

    Where several processes were started, all call it with `shared_work`, else only the first: the others end at once.
    """
    shared = {name: entry for group in (*groups, SHOWN) for name, entry in group.items()}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function).parameters.values())[1:]

        def call(context: typer.Context, **values: Any) -> None:
            if not (shared_work or distributed.is_first()):
                return
            typed = frozenset(name for name in values if _is_typed(context, name))
            with quiet_libraries(values["verbose"], values.get("offline", False)), _screen(values) as screen:
                function(Run(screen, values, typed), **{part.name: values[part.name] for part in own})

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        _declare(call, own, shared)
        return call

    return decorate


def _declare(call: Any, own: list[inspect.Parameter], shared: Group) -> None:
    """Write the signature that typer reads: the context, the command's own options, then the shared ones."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parts = [inspect.Parameter("context", kind, annotation=typer.Context)]
    parts += [part.replace(kind=kind) for part in own]
    parts += [inspect.Parameter(name, kind, default=value, annotation=hint) for name, (hint, value) in shared.items()]
    call.__signature__ = inspect.Signature(parts)
    call.__annotations__ = {part.name: part.annotation for part in parts}


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _screen(values: dict[str, Any]) -> Screen:
    return Screen(values["json"], quiet=values["quiet"], progress=not values["no_progress"])
