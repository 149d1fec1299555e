"""Which linears of a model a method touches: patterns for their paths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from prunekit.errors import UsageError

REGULAR = "re:"


@dataclass(frozen=True)
class Selection:
    """The paths that match one of `targets`, or all if there are none, and none of `ignore`.

    A pattern is a glob for the whole path or for its last parts (`*.mlp.*`, `q_proj`), or `re:` and a regular
    expression that matches the path from its beginning, as in compressed-tensors. Raises UsageError for a regular
    expression that cannot be read.
    """

    targets: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            if pattern.startswith(REGULAR):
                try:
                    re.compile(pattern.removeprefix(REGULAR))
                except re.error as error:
                    raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error

    @property
    def patterns(self) -> tuple[str, ...]:
        """All patterns."""
        return (*self.targets, *self.ignore)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def __contains__(self, path: str) -> bool:
        wanted = not self.targets or any(matches(pattern, path) for pattern in self.targets)
        return wanted and not any(matches(pattern, path) for pattern in self.ignore)

    def check(self, paths: Sequence[str]) -> None:
        """Raise UsageError for a pattern that matches none of these paths, and if none of them is selected."""
        example = f"a path looks like {paths[0]}" if paths else None
        for pattern in self.patterns:
            if not any(matches(pattern, path) for path in paths):
                raise UsageError(f"the pattern {pattern!r} matches no linear of this model", hint=example)
        if not any(path in self for path in paths):
            raise UsageError("targets and ignore leave no linear to prune", hint=example)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern matches the path of a linear."""
    if pattern.startswith(REGULAR):
        return re.match(pattern.removeprefix(REGULAR), path) is not None
    return any(fnmatchcase(path, form) for form in (pattern, f"*.{pattern}"))
