"""Fresh Python processes, which share neither memory nor imported modules with the process that starts them."""

import subprocess
import sys
from collections.abc import Sequence

from prunekit import distributed
from prunekit.quiet import OFFLINE, QUIET


def run_module(module: str, words: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run `python -m module words` to its end, quietly and offline, with both streams captured.

    `-P` keeps it from importing what lies in the working folder. It works alone, also when this process is one of
    several that torchrun started.
    """
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=distributed.environment() | QUIET | OFFLINE,
        check=False,
    )
