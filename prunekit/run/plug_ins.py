"""The plug-ins of a run, imported, and refused where they cannot do what the recipe asks."""

from dataclasses import dataclass
from typing import Self

from prunekit import distributed
from prunekit.contract import Allocator, Method, Recovery
from prunekit.errors import UsageError
from prunekit.plan import Pattern
from prunekit.recipe import recipe as recipes
from prunekit.recipe import registry
from prunekit.recipe.meaning import refuse_idle
from prunekit.recipe.recipe import Recipe
from prunekit.weights.allocation import refuse_unequal


@dataclass(frozen=True)
class PlugIns:
    """Instances with their options; `origins` says which distribution, in which version, brought each by name."""

    method: Method
    allocator: Allocator
    recoveries: tuple[Recovery, ...]
    origins: dict[str, str]

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Import what a recipe names; raises UsageError for settings that mean nothing to it, before any work."""
        named = [registry.find(recipe.method, "method"), registry.find(recipe.allocator, "allocator")]
        named += [registry.find(one.method, "recovery") for one in recipe.recover]
        origins = {plugin.name: f"{plugin.distribution} {plugin.version}".strip() for plugin in named}
        found = cls(recipes.method(recipe), recipes.allocator(recipe), recipes.recoveries(recipe), origins)
        refuse_idle(recipe, found.method.needs)
        if not found.allocator.uniform:
            refuse_unequal(Pattern.parse(recipe.pattern), recipe.allocator)
        found.refuse_processes(distributed.started())
        return found

    def refuse_processes(self, started: int) -> None:
        """Raise UsageError if several processes were started for a plug-in that works in one.

        Every recovery does: only the first process has the pruned blocks, in its staging folder.
        """
        alone = [] if self.method.needs.processes else [self.method.name]
        alone += [recovery.name for recovery in self.recoveries]
        if started > 1 and alone:
            raise UsageError(
                f"{alone[0]} works in one process, and {started} were started",
                hint="start it without torchrun or accelerate launch",
            )

    @property
    def calibrated(self) -> bool:
        """Whether one of them needs a calibration set."""
        return any(plugin.needs.calibration for plugin in (self.method, self.allocator, *self.recoveries))
