"""Which settings mean something to which method: one table, by what the method declares that it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.errors import UsageError
from prunekit.recipe.recipe import Recipe

if TYPE_CHECKING:
    from prunekit.contract import Needs

WEIGHTS = "choose a method that prunes weights: prunekit methods"


@dataclass(frozen=True)
class Rule:
    """A setting, when it means something, and what is said of it otherwise; `{method}` and `{value}` are filled in."""

    setting: str
    means: "Callable[[Needs, str], bool]"  # of the method's needs and the layout
    refusal: str
    hint: str | None = None


RULES = (
    Rule(
        "allocator",
        lambda needs, layout: needs.budget or (needs.widths and layout != "uniform"),
        "{method} takes no budget, so the allocator {value} has nothing to do",
        f"leave --allocator out, or {WEIGHTS}",
    ),
    Rule(
        "protect_blocks",
        lambda needs, _: needs.blocks,
        "{method} does not choose blocks, so protect_blocks {value} means nothing to it",
        "leave --protect-blocks out",
    ),
    *(
        Rule(
            name,
            lambda needs, _: needs.widths,
            f"{{method}} leaves every block as wide as it is, so {name} means nothing to it",
            f"leave --{name.replace('_', '-')} out, or choose a method that removes neurons: --method comp",
        )
        for name in ("layout", "width_multiple")
    ),
    *(
        Rule(
            name,
            lambda needs, _: needs.budget,
            f"{{method}} prunes no single weights, so {name} means nothing to it",
            f"leave --{name} out, or {WEIGHTS}",
        )
        for name in ("targets", "ignore")
    ),
    Rule(
        "ratio",
        lambda needs, _: needs.ratio,
        "{method} is told what to remove, so a ratio means nothing to it",
        "leave --ratio out",
    ),
    Rule(
        "pattern",
        lambda needs, _: needs.budget,
        "{method} prunes no single weights, so pattern {value} means nothing to it",
    ),
)


def idle(needs: "Needs", layout: str) -> list[str]:
    """The settings that mean nothing to a method, in the layout that was chosen."""
    return [rule.setting for rule in RULES if not rule.means(needs, layout)]


def refuse_idle(recipe: Recipe, needs: "Needs") -> None:
    """Raise UsageError if a setting is given that means nothing to the method."""
    if recipe.allocator != "uniform" and needs.widths and recipe.layout == "uniform":
        raise UsageError(
            f"layout uniform gives all blocks one width, so the allocator {recipe.allocator} has nothing to do",
            hint="--layout per-layer, or --layout padded",
        )
    defaults = Recipe(method=recipe.method)
    for rule in RULES:
        value = getattr(recipe, rule.setting)
        if value != getattr(defaults, rule.setting) and not rule.means(needs, recipe.layout):
            raise UsageError(rule.refusal.format(method=recipe.method, value=value), hint=rule.hint)
