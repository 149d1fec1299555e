"""All commands under one name, with one way to fail."""

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prunekit import __version__
from prunekit.cli import (
    apply,
    compare,
    doctor,
    eval,
    export,
    inspect,
    methods,
    plan,
    prune,
    push,
    recipe,
    sweep,
    verify,
)
from prunekit.cli.command import SETTINGS, Command
from prunekit.cli.failures import Stopped, reported


def known_options(commands: Mapping[str, Any]) -> dict[str, set[str]]:
    """Every command and the names of its options."""
    return {
        name: {option for part in command.params for option in (*part.opts, *part.secondary_opts)}
        for name, command in commands.items()
    }


class Root(TyperGroup):
    """The root command; whatever goes wrong below it is reported in one way."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = sys.argv[1:] if args is None else list(args)
        with reported(arguments, known_options(self.commands)):
            name = prog_name or "prunekit"
            code = super().main(arguments, name, complete_var, False, windows_expand_args, **extra)
            if code == 130:  # typer's answer to Ctrl-C while it reads the arguments
                raise KeyboardInterrupt
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped.by(interrupt) from interrupt


app = typer.Typer(
    name="prunekit",
    cls=Root,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)

for module in (prune, plan, apply, eval, compare, sweep, export, inspect, verify, push, methods, doctor):
    name = module.__name__.rpartition(".")[2]
    app.command(name, cls=Command, epilog=module.EXAMPLES, context_settings=SETTINGS)(getattr(module, name))
app.add_typer(recipe.app, name="recipe")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunekit {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Prune a Hugging Face causal language model and get an ordinary model folder back."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
