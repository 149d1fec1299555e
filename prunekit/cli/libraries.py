"""Keep other libraries off both streams: their bars, their logging, their warnings."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from prunekit.quiet import NO_BARS, OFFLINE, SILENT


@contextmanager
def quiet_libraries(verbose: bool, offline: bool) -> Iterator[None]:
    """Silence them for the time of a command; with `verbose` only their progress bars stay away."""
    wanted = NO_BARS | ({} if verbose else SILENT) | (OFFLINE if offline else {})
    before = {name: os.environ.get(name) for name in wanted}
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        os.environ.update({name: value for name, value in wanted.items() if before[name] is None or name in OFFLINE})
        _quiet_what_is_imported()
        try:
            yield
        finally:
            logging.disable(level)
            _restore(before)


def _quiet_what_is_imported() -> None:
    """A library that is imported already has read its environment; tell it directly."""
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
