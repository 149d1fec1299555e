"""Every setting of a recipe that is also a command-line option, described once.

The recipe's fields take their sentence and their default from here, the command line its options, and both the choices.
Nothing here imports pydantic, so that the command line can show its help at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

METHOD, CALIBRATION, COMPUTE = "Method", "Calibration", "Compute"
EVALUATION, GATES, EXPORT = "Evaluation", "Gates", "Export"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Offload = Literal["memory", "disk"]
Protocol = Literal["sparsegpt", "wanda", "llm-pruner"]
Verify = Literal["auto", "full", "streaming", "off"]
TEXTS = ("sample", "wikitext2", "c4", "ptb")


@dataclass(frozen=True)
class Option:
    """One setting: where it stands in a recipe, one sentence, its default, and the option of the command line.

    `flags` are further names of the option, whose name is that in OPTIONS; `metavar` is None for a switch. `otherwise`
    says what the default means where a value does not. `panel` is the heading under which the help lists it.
    """

    paths: tuple[str, ...]
    text: str
    default: Any = None
    panel: str = METHOD
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    choices: Sequence[str] = ()
    otherwise: str = ""
    several: bool = False

    @property
    def help(self) -> str:
        """The sentence with the default, as the help of the command line shows it."""
        named = isinstance(self.default, str | int) and not isinstance(self.default, bool)
        shown = self.otherwise or (str(self.default) if named else "")
        stated = f" (default {shown})" if shown else ""
        again = "; repeatable" if self.several else ""
        return f"{self.text.removesuffix('.')}{again}{stated}."


OPTIONS: dict[str, Option] = {
    # what is done
    "method": Option(("method",), "Pruning method, or an allocator for wanda.", metavar="NAME", flags=("-m",)),
    "ratio": Option(
        ("ratio",),
        "Fraction of the decoder blocks' weights to remove, above 0 and below 1; an N:M pattern implies it.",
        metavar="R",
        flags=("-r",),
    ),
    "pattern": Option(
        ("pattern",),
        "Where zeros may be: unstructured, N:M to keep N of M consecutive inputs, or *:M for an N per linear.",
        "unstructured",
        metavar="PATTERN",
    ),
    "targets": Option(
        ("targets",),
        "Linears in which single weights are pruned: a glob of their paths, or re: and a regular expression; the ratio "
        "counts these only.",
        (),
        metavar="PATTERN",
        otherwise="all",
        several=True,
    ),
    "ignore": Option(
        ("ignore",),
        "Linears that are left as they are, named as in targets.",
        (),
        metavar="PATTERN",
        several=True,
    ),
    "protect_blocks": Option(
        ("protect_blocks",),
        "Blocks that stay where whole blocks are removed: first:N,last:M,i,j or none.",
        "first:1,last:1",
        metavar="BLOCKS",
    ),
    "layout": Option(
        ("layout",),
        "How blocks that lose neurons are written: uniform (all equally wide), per-layer (each as wide as it is) or "
        "padded (filled up with zeros).",
        "uniform",
        metavar="NAME",
        choices=("uniform", "per-layer", "padded"),
    ),
    "width_multiple": Option(
        ("width_multiple",),
        "Number that widths are multiples of.",
        metavar="N",
        otherwise="256, 64 or 8, by the model's width",
    ),
    "allocator": Option(
        ("allocator",), "What turns the ratio into one sparsity per linear.", "uniform", metavar="NAME"
    ),
    "recover": Option(
        ("recover",),
        "Stage after pruning that edits the weights which are left, with its default options.",
        (),
        metavar="NAME",
        several=True,
    ),
    # on which text
    "calib": Option(
        ("calibration.source",),
        "Calibration text: sample, wikitext2, c4, ptb, alpaca, pile, hf:repo[:config]:split:column, a path, or -.",
        panel=CALIBRATION,
        metavar="SOURCE",
        choices=(*TEXTS, "alpaca", "pile"),
        otherwise="sample for the sample model, else wikitext2",
    ),
    "calib_column": Option(
        ("calibration.column",), "Column of the text in a table.", panel=CALIBRATION, metavar="NAME"
    ),
    "samples": Option(("calibration.samples",), "Number of token sequences.", 128, CALIBRATION, "N"),
    "seq_len": Option(
        ("calibration.seq_len",),
        "Tokens per sequence.",
        panel=CALIBRATION,
        metavar="N",
        otherwise="2048, or the model's maximum if that is less",
    ),
    "seed": Option(("calibration.seed", "seed"), "Seed of every random choice.", 0, CALIBRATION, "N"),
    "batch_size": Option(
        ("calibration.batch_size",),
        "Sequences per forward pass.",
        panel=CALIBRATION,
        metavar="N",
        otherwise="as many as make 2048 tokens",
    ),
    # where and how precisely
    "device": Option(
        ("compute.device",),
        "Where to compute: auto, cpu, cuda, cuda:N or mps.",
        "auto",
        COMPUTE,
        "DEVICE",
        choices=("auto", "cpu", "cuda", "mps"),
    ),
    "dtype": Option(
        ("compute.dtype",),
        "Dtype of the computation: auto, float32, bfloat16 or float16; weights keep the dtype they are stored in.",
        "auto",
        COMPUTE,
        "DTYPE",
        choices=get_args(Dtype),
    ),
    "offload": Option(
        ("compute.offload",),
        "Where hidden states wait between two blocks: memory or disk.",
        "memory",
        COMPUTE,
        "PLACE",
        choices=get_args(Offload),
    ),
    "trust_remote_code": Option(("trust_remote_code",), "Let code that comes with the model run.", False, COMPUTE),
    # how good the result is
    "ppl": Option(
        ("evaluation.set",),
        "Text of the perplexity: sample, wikitext2, c4, ptb or a file.",
        panel=EVALUATION,
        metavar="SET",
        choices=TEXTS,
        otherwise="the evaluation part of the calibration text",
    ),
    "protocol": Option(
        ("evaluation.protocol",),
        "How the text is joined and cut into windows: sparsegpt, wanda or llm-pruner.",
        "sparsegpt",
        EVALUATION,
        "NAME",
        choices=get_args(Protocol),
    ),
    "eval_windows": Option(("evaluation.windows",), "Number of windows at most.", 32, EVALUATION, "N"),
    "eval_quick": Option(
        ("evaluation.quick",),
        "Measure perplexity before and after.",
        True,
        EVALUATION,
        flags=("--eval-quick/--no-eval-quick",),
        otherwise="yes",
    ),
    # limits that the result must keep
    "max_ppl": Option(("gates.max_ppl",), "Largest perplexity on any text.", panel=GATES, metavar="X"),
    "max_ppl_increase": Option(
        ("gates.max_ppl_increase",),
        "Largest increase of perplexity over the dense model's on any text, such as 15%.",
        panel=GATES,
        metavar="P%",
    ),
    "max_size": Option(
        ("gates.max_size",), "Largest size of the weight files, such as 9GB.", panel=GATES, metavar="SIZE"
    ),
    "max_params": Option(("gates.max_params",), "Largest number of parameters, such as 5B.", panel=GATES, metavar="N"),
    # what is written
    "max_shard_size": Option(("export.max_shard_size",), "Largest size of one weight file.", "5GB", EXPORT, "SIZE"),
    "verify": Option(
        ("export.verify",),
        "How the written folder is checked: auto (full if the model fits in memory), full, streaming or off.",
        "auto",
        EXPORT,
        "HOW",
        choices=get_args(Verify),
    ),
}
EVALUATION_GATES: dict[str, Option] = {  # limits that only an evaluation measures
    "min_acc": Option(
        ("gates.min_acc",),
        "Smallest accuracy of a task, or of one metric, from 0 to 1: piqa/acc_norm=0.6.",
        {},
        GATES,
        "TASK=A",
        several=True,
    ),
    "max_acc_drop": Option(
        ("gates.max_acc_drop",),
        "Largest loss of accuracy against the dense model's on any task, in points (1pt = 0.01), such as 2pt.",
        panel=GATES,
        metavar="Dpt",
    ),
    "max_kl": Option(
        ("gates.max_kl",),
        "Largest KL divergence from the dense model on any text, in nats per token.",
        panel=GATES,
        metavar="X",
    ),
    "min_speedup": Option(
        ("gates.min_speedup",),
        "Smallest speed of prefill and of decoding, in multiples of the dense model's.",
        panel=GATES,
        metavar="X",
    ),
}
