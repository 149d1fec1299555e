"""Everything one run needs, as one object: what is pruned, how, on which text, where, and what is written.

The command line and a YAML file fill the same object (see `settings`); plans and manifests carry it along.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from prunekit.errors import UsageError
from prunekit.plan import Frozen, Pattern
from prunekit.recipe import registry
from prunekit.recipe.fields import fault, fields, nearest
from prunekit.recipe.limits import Gates

if TYPE_CHECKING:
    from prunekit.contract import Allocator, Method, Recovery

FREE = ("options", "allocator_options")  # their keys belong to the plug-ins
_PlugIn = TypeVar("_PlugIn", bound=BaseModel)


class CalibrationRecipe(Frozen):
    """The text that statistics are collected on."""

    source: str | None = Field(
        default=None,
        description="sample, wikitext2, c4, ptb, alpaca, pile, hf:repo[:config]:split:column, a path, or -.",
    )
    column: str | None = Field(default=None, description="Column of the text in a JSON, JSONL or Parquet file.")
    samples: int = Field(default=128, ge=1, description="Number of token sequences.")
    seq_len: int | None = Field(
        default=None, ge=2, description="Tokens per sequence; null means min(2048, the model's maximum)."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the random crops.")
    batch_size: int | None = Field(
        default=None, ge=1, description="Sequences per forward pass; null lets prunekit choose."
    )


class ComputeRecipe(Frozen):
    """Where and how precisely the work is done."""

    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Dtype of the computation; the weights keep the dtype they are stored in."
    )
    offload: Literal["memory", "disk"] = Field(
        default="memory", description="Where hidden states wait between two blocks."
    )


class EvaluationRecipe(Frozen):
    """The perplexity measured before and after pruning."""

    quick: bool = Field(default=True, description="Whether to measure it at all.")
    set: str | None = Field(
        default=None, description="sample, wikitext2, c4, ptb or a file; null follows the calibration text."
    )
    protocol: Literal["sparsegpt", "wanda", "llm-pruner"] = Field(
        default="sparsegpt", description="How the text is joined and cut into windows."
    )
    windows: int = Field(default=32, ge=1, description="Number of windows at most.")


class ExportRecipe(Frozen):
    """The folder that is written."""

    max_shard_size: str = Field(
        default="5GB",
        pattern=r"^\d+(\.\d+)?([KMGT]i?)?B$",
        examples=["500MB", "5GB"],
        description="Largest size of one weight file.",
    )
    verify: Literal["auto", "full", "streaming", "off"] = Field(
        default="auto",
        description="How the exported folder is checked; auto is full when the model fits in memory.",
    )


class RecoveryRecipe(Frozen):
    """A stage after pruning; its name alone stands for it with its default options."""

    method: str = Field(description="Name of the recovery; prunekit methods lists them.")
    options: dict[str, Any] = Field(default={}, description="The recovery's own options.")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value


class Recipe(Frozen):
    """One run. `model` may stay open in a file and come from the command line."""

    model: str | None = Field(default=None, description="Hub id, id@revision, folder, or sample.")
    method: str = Field(description="Name of the method; prunekit methods lists them.")
    ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Fraction of the decoder blocks' weights to remove; an N:M pattern implies it.",
    )
    pattern: str = Field(
        default="unstructured",
        description="unstructured, N:M: keep N of every M consecutive inputs, or *:M: each linear its own N.",
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="Linears that single weights are pruned in: globs of their paths, or re: and a regular expression; "
        "empty means all. The ratio counts these only.",
    )
    ignore: tuple[str, ...] = Field(default=(), description="Linears that are left as they are, as targets names them.")
    protect_blocks: str = Field(
        default="first:1,last:1",
        description="Blocks that stay where whole blocks go: first:N, last:M and single indices, or none.",
    )
    layout: Literal["uniform", "per-layer", "padded"] = Field(
        default="uniform",
        description="How blocks that lose neurons are written: all equally wide, each as wide as it is, or filled up.",
    )
    width_multiple: int | None = Field(
        default=None, ge=1, description="What widths are multiples of; null means 256, 64 or 8, by the model's width."
    )
    allocator: str = Field(default="uniform", description="What turns the ratio into one sparsity per linear.")
    options: dict[str, Any] = Field(default={}, description="The method's own options.")
    allocator_options: dict[str, Any] = Field(default={}, description="The allocator's own options.")
    recover: tuple[RecoveryRecipe, ...] = Field(
        default=(), description="Stages after pruning that edit the weights which are left, one after the other."
    )
    calibration: CalibrationRecipe = CalibrationRecipe()
    compute: ComputeRecipe = ComputeRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    export: ExportRecipe = ExportRecipe()
    gates: Gates = Gates()
    trust_remote_code: bool = Field(default=False, description="Whether code that comes with the model may run.")
    seed: int = Field(default=0, ge=0, description="Seed of the method's own random choices.")

    @model_validator(mode="after")
    def _ratio_agrees_with_pattern(self) -> "Recipe":
        implied = Pattern.parse(self.pattern).sparsity
        if implied is not None and self.ratio is not None and abs(self.ratio - implied) > 1e-9:
            raise UsageError(
                f"ratio {self.ratio:g} contradicts pattern {self.pattern}, which zeroes {implied:g}",
                hint=f"leave the ratio out, or say {implied:g}",
            )
        return self

    @property
    def sparsity(self) -> float:
        """The ratio, given or implied by the pattern; raises UsageError when there is neither."""
        implied = Pattern.parse(self.pattern).sparsity
        ratio = self.ratio if self.ratio is not None else implied
        if ratio is None:
            raise UsageError(
                "no ratio is given, and an unstructured pattern implies none",
                hint="--ratio 0.5 prunes one half",
            )
        return ratio


def method(recipe: Recipe) -> "Method":
    """The method with its options; imports it. Raises UsageError naming an option that does not fit."""
    return _instance(registry.load(recipe.method), recipe.method, recipe.options)


def allocator(recipe: Recipe) -> "Allocator":
    """The allocator with its options; imports it. Raises UsageError as `method` does."""
    return _instance(registry.load(recipe.allocator, "allocator"), recipe.allocator, recipe.allocator_options)


def recoveries(recipe: Recipe) -> "tuple[Recovery, ...]":
    """The recoveries with their options; imports them. Raises UsageError as `method` does."""
    return tuple(_instance(registry.load(one.method, "recovery"), one.method, one.options) for one in recipe.recover)


def refuse_needless_selection(recipe: Recipe, needs_budget: bool) -> None:
    """Raise UsageError when linears are selected for a method that prunes no single weights."""
    given = "targets" if recipe.targets else "ignore" if recipe.ignore else None
    if given and not needs_budget:
        raise UsageError(
            f"{recipe.method} prunes no single weights, so {given} means nothing to it",
            hint=f"leave {given} out, or choose a method that prunes weights: prunekit methods",
        )


def refuse_needless_protection(recipe: Recipe, removes_blocks: bool) -> None:
    """Raise UsageError when blocks are protected from a method that removes none, or just those that are named."""
    if recipe.protect_blocks != Recipe.model_fields["protect_blocks"].default and not removes_blocks:
        raise UsageError(
            f"{recipe.method} does not choose blocks, so protect_blocks {recipe.protect_blocks} means nothing to it",
            hint="leave --protect-blocks out",
        )


def refuse_needless_layout(recipe: Recipe, cuts_widths: bool) -> None:
    """Raise UsageError when it is said how widths are written and the method leaves them as they are."""
    given = "layout" if recipe.layout != "uniform" else "width_multiple" if recipe.width_multiple else None
    if given and not cuts_widths:
        raise UsageError(
            f"{recipe.method} leaves every block as wide as it is, so {given} means nothing to it",
            hint=f"leave --{given.replace('_', '-')} out, or choose a method that cuts neurons: --method comp",
        )


def refuse_needless_allocator(recipe: Recipe, needs_budget: bool, cuts_widths: bool = False) -> None:
    """Raise UsageError when an allocator is asked for and the method, or the layout, leaves it nothing to decide."""
    if recipe.allocator == "uniform":
        return
    if cuts_widths and recipe.layout == "uniform":
        raise UsageError(
            f"layout uniform gives all blocks one width, so the allocator {recipe.allocator} has nothing to do",
            hint="--layout per-layer, or --layout padded",
        )
    if not needs_budget and not cuts_widths:
        raise UsageError(
            f"{recipe.method} takes no budget, so the allocator {recipe.allocator} has nothing to do",
            hint="leave --allocator out, or choose a method that prunes weights: prunekit methods",
        )


def amount(recipe: Recipe) -> list[str]:
    """How much goes, as parts of a name: `50`, `2-4`, or `N-8` and `50`."""
    parts = [] if recipe.pattern == "unstructured" else [recipe.pattern.replace("*", "N").replace(":", "-")]
    if recipe.ratio is not None and Pattern.parse(recipe.pattern).sparsity is None:
        parts.append(f"{recipe.ratio * 100:g}")
    return parts


def leaves(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Dotted paths of all settings of fixed name: `ratio`, `calibration.samples` …"""
    paths: list[str] = []
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            paths += leaves(info.annotation, f"{prefix}{name}.")
        elif name not in FREE:
            paths.append(prefix + name)
    return paths


def value_at(recipe: Recipe, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = recipe
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def _instance(plugin: type[_PlugIn], name: str, options: Mapping[str, Any]) -> _PlugIn:
    try:
        return plugin.model_validate(dict(options))
    except ValidationError as error:
        option, problem = fault(plugin, error)
        if option in plugin.model_fields:
            raise UsageError(f"{name}: option {option} {problem}", hint=f"prunekit methods {name}") from error
        raise UsageError(f"{name} has no option {option!r}", hint=_instead(option, plugin, name)) from error


def _instead(option: str, plugin: type[BaseModel], name: str) -> str:
    """What an unknown option was probably meant to be: another option, or a setting of the recipe."""
    places = {path.rpartition(".")[2]: path for path in leaves()} | {part.name: part.name for part in fields(plugin)}
    near = nearest(option, list(places))
    return f"did you mean {places[near]}?" if near else f"prunekit methods {name}"
