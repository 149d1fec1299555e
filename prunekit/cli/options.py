"""Every command-line option, declared once; each can also be given as `PRUNEKIT_<OPTION>`.

Values reach the recipe as the texts they were typed as, so that a flag, a variable and a recipe file are
checked in one place and refused in the same words.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.recipe.options import (
    CALIBRATION,
    COMPUTE,
    EVALUATION,
    EVALUATION_GATES,
    EXPORT,
    GATES,
    METHOD,
    OPTIONS,
    Option,
)

VERIFYING = "Verification"
SHOWING, GENERAL = "What is shown", "General"
PANELS = ("Arguments", METHOD, CALIBRATION, COMPUTE, EVALUATION, GATES, EXPORT, VERIFYING, SHOWING, GENERAL)


def option(panel: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:
    """A typer option with its panel, its help, and the variable that its long name makes."""
    variable = f"PRUNEKIT_{names[-1].partition('/')[0].lstrip('-').replace('-', '_').upper()}"
    shown: dict[str, Any] = {
        "help": text,
        "rich_help_panel": panel,
        "envvar": variable,
        "show_default": False,
        "show_envvar": False,  # the help states the rule once
    }
    return typer.Option(*names, metavar=metavar, **shown | more)


def method_names(incomplete: str) -> list[str]:
    """Names of methods and allocators that begin so, for the shell."""
    from prunekit.recipe import registry

    return [name for name in registry.names() if name.startswith(incomplete)]


def allocator_names(incomplete: str) -> list[str]:
    """Names of allocators that begin so, for the shell."""
    from prunekit.recipe import registry

    return [name for name in registry.names("allocator") if name.startswith(incomplete)]


def one_of(*values: str) -> Any:
    """Completion from a fixed list."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


MODEL_HELP = "Hub id, id@revision, folder, sample, or - to read the path from standard input."
Model = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
OneModel = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
Models = Annotated[list[str], typer.Argument(metavar="MODEL", help=MODEL_HELP)]


def setting(name: str, told: Option) -> Any:
    """The annotation of an option that fills a setting of the recipe; texts are read as the recipe reads them."""
    long = f"--{name.replace('_', '-')}"
    names = [flag for flag in told.flags if not flag.startswith("--")]
    names.append(next((flag for flag in told.flags if flag.startswith("--")), long))
    more: dict[str, Any] = {}
    if complete := {"method": method_names, "allocator": allocator_names}.get(name):
        more["autocompletion"] = complete
    elif told.choices:
        more["autocompletion"] = one_of(*told.choices)
    kind = (bool if told.metavar is None else list[str] if told.several else str) | None
    return Annotated[kind, option(told.panel, told.metavar, told.help, *names, **more)]


SETTINGS: dict[str, Any] = {name: setting(name, told) for name, told in (OPTIONS | EVALUATION_GATES).items()}

# the same, where a command declares one of them itself
MethodName = Annotated[
    str | None, option(METHOD, "NAME", OPTIONS["method"].help, "-m", "--method", autocompletion=method_names)
]
LayoutName = Annotated[
    str | None,
    option(METHOD, "NAME", OPTIONS["layout"].help, "--layout", autocompletion=one_of(*OPTIONS["layout"].choices)),
]

# what is done
Set = Annotated[
    list[str] | None,
    option(
        METHOD,
        "KEY=VALUE",
        "An option of the method, or a dotted setting of the recipe; repeatable.",
        "--set",
    ),
]
RecipeFile = Annotated[
    Path | None,
    option(METHOD, "FILE", "YAML file with any of these settings; flags win over it.", "--recipe"),
]
# where
Offline = Annotated[bool, option(COMPUTE, None, "Never use the network; what is not cached is missing.", "--offline")]

# how good the result is
Ppls = Annotated[
    list[str] | None,
    option(
        EVALUATION,
        "SET",
        "Text to measure on: sample, wikitext2, c4, ptb or a file; repeatable.",
        "--ppl",
        autocompletion=one_of("sample", "wikitext2", "c4", "ptb"),
    ),
]
PplColumn = Annotated[
    str | None, option(EVALUATION, "NAME", "Column of the text, where --ppl is a table.", "--ppl-column")
]
Windows = Annotated[int | None, option(EVALUATION, "N", "Windows of text at most (default all).", "--windows", min=1)]
Baseline = Annotated[str | None, option(EVALUATION, "MODEL", "Model that the others are compared with.", "--baseline")]
TaskNames = Annotated[
    list[str] | None,
    option(
        EVALUATION,
        "NAMES",
        "Tasks of lm-eval, by name or as a YAML file, separated by commas; sample needs no network.",
        "--tasks",
    ),
]
IncludePath = Annotated[
    list[Path] | None, option(EVALUATION, "FOLDER", "More task files for --tasks; repeatable.", "--include-path")
]
TaskLimit = Annotated[
    int | None, option(EVALUATION, "N", "Documents of each task at most (default all).", "--limit", min=1)
]
FewShot = Annotated[
    int | None,
    option(EVALUATION, "N", "Solved examples before each question (default the task's own).", "--num-fewshot", min=0),
]
SpeedOption = Annotated[
    bool, option(EVALUATION, None, "Measure speed and memory; models are loaded whole, two at a time.", "--speed")
]
SpeedBatch = Annotated[
    int, option(EVALUATION, "N", "Sequences at once in tasks and speed (default 1).", "--batch-size", min=1)
]
PromptTokens = Annotated[
    int, option(EVALUATION, "N", "Tokens of the prompt that is timed (default 128).", "--prompt-tokens", min=1)
]
NewTokens = Annotated[
    int, option(EVALUATION, "N", "Tokens that are generated and timed (default 32).", "--new-tokens", min=2)
]
Rounds = Annotated[
    int, option(EVALUATION, "N", "Rounds of timing, each of both models in turn (default 15).", "--rounds", min=6)
]
Compile = Annotated[bool, option(EVALUATION, None, "Time the models compiled, with a static cache.", "--compile")]

ExitZero = Annotated[bool, option(GATES, None, "Report gates that failed, and end with 0 all the same.", "--exit-zero")]

# what is written
Output = Annotated[
    Path | None, option(EXPORT, "OUT", "Folder to write (default ./MODEL-METHOD-PERCENT).", "-o", "--output")
]
PlanOutput = Annotated[  # no variable: PRUNEKIT_OUTPUT is a folder
    Path | None,
    option(
        EXPORT,
        "FILE",
        "File to write (default standard output); it has no variable.",
        "-o",
        "--output",
        envvar=None,
    ),
]
PlanForce = Annotated[bool, option(EXPORT, None, "Replace FILE even if it is not a plan.", "--force")]
Force = Annotated[bool, option(EXPORT, None, "Replace what is in OUT.", "--force")]
Restart = Annotated[bool, option(EXPORT, None, "Drop what an interrupted run has finished.", "--restart")]

From = Annotated[
    Path | None,
    option(METHOD, "MANIFEST", "Repeat the run that left this prunekit.json, and compare what comes out.", "--from"),
]

SweepOutput = Annotated[
    Path | None, option(EXPORT, "OUT", "Folder of the sweep (default ./RECIPE-sweep).", "-o", "--output")
]
SweepForce = Annotated[bool, option(EXPORT, None, "Replace cells that are the result of another run.", "--force")]
SweepRestart = Annotated[bool, option(EXPORT, None, "Run everything again, whatever is finished.", "--restart")]
Jobs = Annotated[
    int, option(COMPUTE, "N", "Cells that run at once, each in a process of its own (default 1).", "--jobs", min=1)
]

ReportFile = Annotated[
    Path | None, option(EXPORT, "FILE", "Also write a report: FILE.html, FILE.md or FILE.json.", "--report")
]

# what is shown
Json = Annotated[bool, option(GENERAL, None, "Print one JSON object on standard output, errors too.", "--json")]
Quiet = Annotated[bool, option(GENERAL, None, "Say nothing but errors.", "-q", "--quiet")]
Verbose = Annotated[bool, option(GENERAL, None, "Show what other libraries say, too.", "-v", "--verbose")]
NoProgress = Annotated[bool, option(GENERAL, None, "No progress bar and no progress lines.", "--no-progress")]
Debug = Annotated[bool, option(GENERAL, None, "Show the traceback of an internal error.", "--debug")]

Group = dict[str, tuple[Any, Any]]  # parameter name -> (annotation, default)

SHOWN: Group = {
    "json": (Json, False),
    "quiet": (Quiet, False),
    "verbose": (Verbose, False),
    "no_progress": (NoProgress, False),
    "debug": (Debug, False),
}


def settings(*names: str) -> Group:
    """Options that fill settings of the recipe; what is not given stays None."""
    return {name: (SETTINGS[name], None) for name in names}


LOADING: Group = {**settings("trust_remote_code"), "offline": (Offline, False)}
COMPUTING: Group = {**settings("device", "dtype"), **LOADING}
WALKING: Group = {**COMPUTING, **settings("offload")}
PLANNING: Group = {
    **settings(
        *("method", "ratio", "pattern", "targets", "ignore", "protect_blocks"),
        *("layout", "width_multiple", "allocator", "recover"),
    ),
    "set": (Set, None),
    "recipe": (RecipeFile, None),
    **settings("calib", "calib_column", "samples", "seq_len", "seed", "batch_size"),
    **WALKING,
}
MEASURING: Group = settings("ppl", "protocol", "eval_windows", "eval_quick")
LIMITS: Group = settings("max_ppl", "max_ppl_increase", "max_size", "max_params")  # on what every run counts
EVALUATION_LIMITS: Group = settings(*EVALUATION_GATES)
JUDGING: Group = {"exit_zero": (ExitZero, False)}
PROTOCOL: Group = {"protocol": MEASURING["protocol"]}
WRITING: Group = settings("max_shard_size", "verify")
REPLACING: Group = {"force": (Force, False), "restart": (Restart, False)}
REPORTING: Group = {"report": (ReportFile, None)}
TASKING: Group = {  # what compare and sweep ask runs beyond their manifests
    "tasks": (TaskNames, None),
    "include_path": (IncludePath, None),
    "limit": (TaskLimit, None),
    "num_fewshot": (FewShot, None),
}
TIMING: Group = {
    "speed": (SpeedOption, False),
    "prompt_tokens": (PromptTokens, 128),
    "new_tokens": (NewTokens, 32),
    "rounds": (Rounds, 15),
}
