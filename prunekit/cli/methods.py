"""`prunekit methods`: the installed plug-ins, and the options of one of them."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli import options
from prunekit.cli.command import Run, command
from prunekit.cli.screen import facts, table
from prunekit.recipe import registry

if TYPE_CHECKING:
    from prunekit.recipe.fields import FieldText
    from prunekit.recipe.registry import Plugin

EXAMPLES = """
prunekit methods
prunekit methods sparsegpt
"""
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="Show the options of this one.",
        autocompletion=options.method_names,
        show_default=False,
    ),
]


@command()
def methods(run: Run, name: Name = None) -> None:
    """List methods, allocators and recoveries, or the options of one."""
    if name is None:
        _list(run)
    else:
        _show(run, registry.find(name))


def _list(run: Run) -> None:
    found = registry.plugins()
    rows = [(plugin.name, plugin.kind, _summary(plugin), origin(plugin)) for plugin in found]
    listed = table("name", "kind", "what it does", "from", rows=rows)
    run.screen.result({"methods": [describe(plugin) for plugin in found]}, listed)


def _show(run: Run, plugin: "Plugin") -> None:
    """Options come from the class itself, which is imported for that."""
    from prunekit.recipe.fields import fields

    loaded = registry.load(plugin.name, plugin.kind)
    wanted = fields(loaded)
    needs = [need for need in ("calibration", "gradients", "budget", "blocks", "widths") if getattr(loaded.needs, need)]
    data = describe(plugin) | {"needs": needs, "options": [vars(option) for option in wanted]}
    about = [(plugin.kind, plugin.name), ("what it does", plugin.summary), ("paper", loaded.paper)]
    about += [("needs", ", ".join(needs) or "nothing but the model"), ("from", origin(plugin))]
    run.screen.result(data, facts(about), _options(wanted, plugin))


def _options(wanted: "list[FieldText]", plugin: "Plugin") -> Any:
    if not wanted:
        return "no options"
    rows = [(option.name, option.accepts, _default(option.default), option.description) for option in wanted]
    heads = {"method": "--set …", "allocator": "--set allocator_options.…", "recovery": "options of the stage"}
    return table(heads[plugin.kind], "accepts", "default", "meaning", rows=rows)


def _default(value: object) -> str:
    return (
        {True: "true", False: "false", None: "-"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def _summary(plugin: "Plugin") -> str:
    return f"BROKEN: {plugin.problem}" if plugin.problem else plugin.summary


def origin(plugin: "Plugin") -> str:
    """Which distribution brings a plug-in."""
    return f"{plugin.distribution} {plugin.version}".strip()


def describe(plugin: "Plugin") -> dict[str, Any]:
    """A plug-in as JSON."""
    shown = ("name", "kind", "summary", "paper", "distribution", "version", "problem")
    return {field: getattr(plugin, field) for field in shown}
