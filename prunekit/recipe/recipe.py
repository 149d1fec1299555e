"""Everything one run needs, as one object: what is pruned, how, on which text, where, and what is written.

The command line and a YAML file fill the same object (see `settings`); plans and manifests carry it along.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from prunekit.errors import UsageError
from prunekit.plan import Frozen, Layout, Pattern
from prunekit.recipe import registry
from prunekit.recipe.fields import described, fault, fields, nearest
from prunekit.recipe.limits import Gates
from prunekit.recipe.options import OPTIONS, Dtype, Offload, Protocol, Verify

if TYPE_CHECKING:
    from prunekit.contract import Allocator, Method, Recovery

FREE = ("options", "allocator_options")  # their keys belong to the plug-ins
_PlugIn = TypeVar("_PlugIn", bound=BaseModel)


class CalibrationRecipe(Frozen):
    """The text that statistics are collected on."""

    source: str | None = described("calib")
    column: str | None = described("calib_column")
    samples: int = described("samples", ge=1)
    seq_len: int | None = described("seq_len", ge=2)
    seed: int = Field(default=0, ge=0, description="Seed of the random crops.")
    batch_size: int | None = described("batch_size", ge=1)


class ComputeRecipe(Frozen):
    """Where and how precisely the work is done."""

    device: str = described("device")
    dtype: Dtype = described("dtype")
    offload: Offload = described("offload")


class EvaluationRecipe(Frozen):
    """The perplexity measured before and after pruning."""

    quick: bool = described("eval_quick")
    set: str | None = described("ppl")
    protocol: Protocol = described("protocol")
    windows: int = described("eval_windows", ge=1)


class ExportRecipe(Frozen):
    """The folder that is written."""

    max_shard_size: str = described("max_shard_size", pattern=r"^\d+(\.\d+)?([KMGT]i?)?B$", examples=["500MB", "5GB"])
    verify: Verify = described("verify")


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
    method: str = Field(description=OPTIONS["method"].text)
    ratio: float | None = described("ratio", gt=0, lt=1)
    pattern: str = described("pattern")
    targets: tuple[str, ...] = described("targets")
    ignore: tuple[str, ...] = described("ignore")
    protect_blocks: str = described("protect_blocks")
    layout: Layout = described("layout")
    width_multiple: int | None = described("width_multiple", ge=1)
    allocator: str = described("allocator")
    options: dict[str, Any] = Field(default={}, description="The method's own options.")
    allocator_options: dict[str, Any] = Field(default={}, description="The allocator's own options.")
    recover: tuple[RecoveryRecipe, ...] = described("recover")
    calibration: CalibrationRecipe = CalibrationRecipe()
    compute: ComputeRecipe = ComputeRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    export: ExportRecipe = ExportRecipe()
    gates: Gates = Gates()
    trust_remote_code: bool = described("trust_remote_code")
    seed: int = Field(default=0, ge=0, description="Seed of the method's own random choices.")

    @field_validator("targets", "ignore", "recover", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """One text as its words, as an environment variable or `--set` gives them."""
        return value.split() if isinstance(value, str) else value

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


def amount(recipe: Recipe) -> list[str]:
    """How much is removed, as parts of a name: `50`, `2-4`, or `N-8` and `50`."""
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
