"""Whether `torch.compile` works on a device, found out before the work; and in words why it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from prunekit.errors import UnsupportedError, UsageError

WITHOUT = "leave --compile out"


def refuse_without_compiler(device: torch.device) -> None:
    """Compile an addition, and nothing from a cache; raises as `compilation` does."""
    with compilation():
        add: Any = torch.compile(torch.add, options={"fx_graph_cache": False})
        add(torch.zeros(8, device=device), 1)


@contextmanager
def compilation() -> Iterator[None]:
    """Raise UsageError where torch.compile finds no compiler, UnsupportedError where it fails in another way.

    One of these ways is that it has compiled too often, after which it would run what is not compiled, and not say so.
    """
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        said = str(error).strip().splitlines()[0]
        if "compiler" in said and ("No working" in said or "Failed to find" in said):
            raise UsageError(
                f"--compile needs a C++ compiler, which torch.compile did not find: {said}",
                hint=f"apt-get install g++ (or name one in the variable CXX), or {WITHOUT}",
            ) from error
        raise UnsupportedError(f"torch.compile fails: {said}", hint=WITHOUT) from error
