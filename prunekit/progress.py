"""What long work tells whoever watches: stages, steps and remarks. The command line draws it; tests collect it."""

from typing import Protocol


class Progress(Protocol):
    """A listener: work calls `stage`, then `step` up to `total` times, and `note` when there is something to say."""

    def stage(self, title: str, total: int) -> None:
        """A new stage of `total` steps begins; it ends when the next one begins or the run ends."""
        ...

    def step(self, text: str = "") -> None:
        """One step of the stage is done; `text` describes it in a few words."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know, in one line."""
        ...


class Silent:
    """A listener that says nothing."""

    def stage(self, title: str, total: int) -> None:
        pass

    def step(self, text: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass
