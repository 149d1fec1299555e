"""Every command-line option, declared once; each can also be given as `PRUNEKIT_<OPTION>`.

Values reach the recipe as the texts they were typed as, so that a flag, a variable and a recipe file are
checked in one place and refused in the same words.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

METHOD, CALIBRATION, COMPUTE = "Method", "Calibration", "Compute"
EVALUATION, EXPORT, VERIFYING = "Evaluation", "Export", "Verification"
GATES = "Gates"
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

# what is done
Method = Annotated[
    str | None,
    option(
        METHOD,
        "NAME",
        "Pruning method, or an allocator for wanda.",
        "-m",
        "--method",
        autocompletion=method_names,
    ),
]
Ratio = Annotated[
    str | None,
    option(
        METHOD,
        "R",
        "Fraction of the decoder blocks' weights to remove, above 0 and below 1.",
        "-r",
        "--ratio",
    ),
]
PatternOption = Annotated[
    str | None,
    option(
        METHOD,
        "PATTERN",
        "unstructured, N:M to keep N of M consecutive inputs, or *:M (default unstructured).",
        "--pattern",
    ),
]
ProtectBlocks = Annotated[
    str | None,
    option(
        METHOD,
        "BLOCKS",
        "Blocks that stay where whole blocks go: first:N,last:M,i,j or none (default first:1,last:1).",
        "--protect-blocks",
    ),
]
Layout = Annotated[
    str | None,
    option(
        METHOD,
        "NAME",
        "How blocks that lose neurons are written: uniform, per-layer or padded (default uniform).",
        "--layout",
        autocompletion=one_of("uniform", "per-layer", "padded"),
    ),
]
WidthMultiple = Annotated[
    str | None,
    option(METHOD, "N", "What widths are multiples of (default 256, 64 or 8, by the model).", "--width-multiple"),
]
Allocator = Annotated[
    str | None,
    option(
        METHOD,
        "NAME",
        "What gives each linear its sparsity (default uniform).",
        "--allocator",
        autocompletion=allocator_names,
    ),
]
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
TrustRemoteCode = Annotated[
    bool | None, option(COMPUTE, None, "Let code that comes with the model run.", "--trust-remote-code")
]

# on which text
Calib = Annotated[
    str | None,
    option(
        CALIBRATION,
        "SOURCE",
        "sample, wikitext2, c4, ptb, alpaca, pile, hf:repo[:config]:split:column, a file, a folder or - "
        "(default sample for the sample model, else wikitext2).",
        "--calib",
        autocompletion=one_of("sample", "wikitext2", "c4", "ptb", "alpaca", "pile"),
    ),
]
CalibColumn = Annotated[str | None, option(CALIBRATION, "NAME", "Column of the text in a table.", "--calib-column")]
Samples = Annotated[str | None, option(CALIBRATION, "N", "Number of token sequences (default 128).", "--samples")]
SeqLen = Annotated[
    str | None,
    option(
        CALIBRATION,
        "N",
        "Tokens per sequence (default 2048, or the model's maximum if that is less).",
        "--seq-len",
    ),
]
Seed = Annotated[str | None, option(CALIBRATION, "N", "Seed of every random choice (default 0).", "--seed")]
BatchSize = Annotated[str | None, option(CALIBRATION, "N", "Sequences per forward pass.", "--batch-size")]

# where and how precisely
Device = Annotated[
    str | None,
    option(
        COMPUTE,
        "DEVICE",
        "auto, cpu, cuda, cuda:N or mps (default auto).",
        "--device",
        autocompletion=one_of("auto", "cpu", "cuda", "mps"),
    ),
]
Dtype = Annotated[
    str | None,
    option(
        COMPUTE,
        "DTYPE",
        "Dtype of the computation: auto, float32, bfloat16 or float16; stored dtypes stay (default auto).",
        "--dtype",
        autocompletion=one_of("auto", "float32", "bfloat16", "float16"),
    ),
]
Offload = Annotated[
    str | None,
    option(
        COMPUTE,
        "PLACE",
        "Where hidden states wait: memory or disk (default memory).",
        "--offload",
        autocompletion=one_of("memory", "disk"),
    ),
]
Offline = Annotated[bool, option(COMPUTE, None, "Never use the network; what is not cached is missing.", "--offline")]

# how good the result is
Ppl = Annotated[
    str | None,
    option(
        EVALUATION,
        "SET",
        "Text of the perplexity: sample, wikitext2, c4, ptb or a file.",
        "--ppl",
        autocompletion=one_of("sample", "wikitext2", "c4", "ptb"),
    ),
]
Protocol = Annotated[
    str | None,
    option(
        EVALUATION,
        "NAME",
        "How the text is joined and cut: sparsegpt, wanda or llm-pruner (default sparsegpt).",
        "--protocol",
        autocompletion=one_of("sparsegpt", "wanda", "llm-pruner"),
    ),
]
EvalWindows = Annotated[str | None, option(EVALUATION, "N", "Windows of text at most (default 32).", "--eval-windows")]
EvalQuick = Annotated[
    bool | None,
    option(EVALUATION, None, "Measure perplexity before and after (default yes).", "--eval-quick/--no-eval-quick"),
]
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

# limits that the result must keep
MaxPpl = Annotated[str | None, option(GATES, "X", "Largest perplexity on any text.", "--max-ppl")]
MaxPplIncrease = Annotated[
    str | None,
    option(GATES, "P%", "Largest increase of perplexity over the dense model's, such as 15%.", "--max-ppl-increase"),
]
MinAcc = Annotated[
    list[str] | None,
    option(
        GATES, "TASK=A", "Smallest accuracy of a task, or of one metric: piqa/acc_norm=0.6; repeatable.", "--min-acc"
    ),
]
MaxAccDrop = Annotated[
    str | None,
    option(GATES, "Dpt", "Largest loss of accuracy on any task, in points, such as 2pt.", "--max-acc-drop"),
]
MaxKl = Annotated[
    str | None, option(GATES, "X", "Largest KL divergence from the dense model, in nats per token.", "--max-kl")
]
MinSpeedup = Annotated[
    str | None,
    option(GATES, "X", "Smallest speed of prefill and decoding, in multiples of the dense model's.", "--min-speedup"),
]
MaxSize = Annotated[str | None, option(GATES, "SIZE", "Largest size of the weight files, such as 9GB.", "--max-size")]
MaxParams = Annotated[str | None, option(GATES, "N", "Largest number of parameters, such as 5B.", "--max-params")]
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
PlanForce = Annotated[bool, option(EXPORT, None, "Replace FILE even if it is no plan.", "--force")]
MaxShardSize = Annotated[str | None, option(EXPORT, "SIZE", "Largest weight file (default 5GB).", "--max-shard-size")]
Verify = Annotated[
    str | None,
    option(
        EXPORT,
        "HOW",
        "How the written folder is checked: auto, full, streaming or off (default auto).",
        "--verify",
        autocompletion=one_of("auto", "full", "streaming", "off"),
    ),
]
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
LOADING: Group = {"trust_remote_code": (TrustRemoteCode, None), "offline": (Offline, False)}
COMPUTING: Group = {"device": (Device, None), "dtype": (Dtype, None), **LOADING}
WALKING: Group = {**COMPUTING, "offload": (Offload, None)}
PLANNING: Group = {
    "method": (Method, None),
    "ratio": (Ratio, None),
    "pattern": (PatternOption, None),
    "protect_blocks": (ProtectBlocks, None),
    "layout": (Layout, None),
    "width_multiple": (WidthMultiple, None),
    "allocator": (Allocator, None),
    "set": (Set, None),
    "recipe": (RecipeFile, None),
    "calib": (Calib, None),
    "calib_column": (CalibColumn, None),
    "samples": (Samples, None),
    "seq_len": (SeqLen, None),
    "seed": (Seed, None),
    "batch_size": (BatchSize, None),
    **WALKING,
}
MEASURING: Group = {
    "ppl": (Ppl, None),
    "protocol": (Protocol, None),
    "eval_windows": (EvalWindows, None),
    "eval_quick": (EvalQuick, None),
}
LIMITS: Group = {  # on what every run counts
    "max_ppl": (MaxPpl, None),
    "max_ppl_increase": (MaxPplIncrease, None),
    "max_size": (MaxSize, None),
    "max_params": (MaxParams, None),
}
EVALUATION_LIMITS: Group = {
    "min_acc": (MinAcc, None),
    "max_acc_drop": (MaxAccDrop, None),
    "max_kl": (MaxKl, None),
    "min_speedup": (MinSpeedup, None),
}
JUDGING: Group = {"exit_zero": (ExitZero, False)}
PROTOCOL: Group = {"protocol": MEASURING["protocol"]}
WRITING: Group = {"max_shard_size": (MaxShardSize, None), "verify": (Verify, None)}
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
