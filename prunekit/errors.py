"""Every error prunekit raises on purpose, and the exit code each one means.

    PrunekitError            70  internal
    ├── GateFailure           1  it worked, and a limit the user set was missed
    ├── DifferenceFound       1  it worked, and a repeated run gave something else
    ├── UsageError            2  a flag, option or value is wrong
    │   └── RecipeError       2  the same, in a recipe file
    ├── UnsupportedError      3  this model, method or layout is not supported
    ├── InputError            4  an input is missing or corrupt
    ├── ResourceError         5  out of memory or disk; what was done is kept
    └── VerificationError     6  the exported folder is not what was meant

A message says what was found and what was expected; the hint is the next thing to type or to try.
"""

from typing import ClassVar


class PrunekitError(Exception):
    """Base of all errors that a user may see; carries a message, an optional hint and an exit code."""

    exit_code: ClassVar[int] = 70
    kind: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, dict[str, object]]:
        """The object printed on stdout under `--json`: code, kind, message and hint."""
        return {"error": {"code": self.exit_code, "kind": self.kind, "message": self.message, "hint": self.hint}}


class GateFailure(PrunekitError):
    """The work was done and a limit that the user set was missed."""

    exit_code = 1
    kind = "gate"


class DifferenceFound(PrunekitError):
    """A run was repeated from its manifest, and other weights came out."""

    exit_code = 1
    kind = "differs"


class UsageError(PrunekitError):
    """A flag, an option or its value cannot be used."""

    exit_code = 2
    kind = "usage"


class RecipeError(UsageError):
    """A recipe file cannot be read or holds something unknown."""

    kind = "recipe"


class UnsupportedError(PrunekitError):
    """The input is sound, but prunekit does not handle it; the message gives the reason."""

    exit_code = 3
    kind = "unsupported"


class InputError(PrunekitError):
    """A model, a text or a plan is missing, corrupt or not what it claims to be."""

    exit_code = 4
    kind = "input"


class ResourceError(PrunekitError):
    """Memory or disk ran out; finished blocks are kept and the same command continues from them."""

    exit_code = 5
    kind = "resource"


class VerificationError(PrunekitError):
    """The exported folder does not load as the model that was meant; nothing was moved into place."""

    exit_code = 6
    kind = "verification"
