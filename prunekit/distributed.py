"""Several processes that share the work of one run, as `torchrun` or `accelerate launch` start them.

Only the first process prints and writes. The others compute their shares beside it, inside `joined`.
Everywhere else, and where nobody launched several, there is one process, and every function here hands back what it is
given. What is exchanged is small and stays on the CPU; weights are the business of `sharding`.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from prunekit.errors import InputError, ResourceError, UsageError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
S = TypeVar("S", list, "torch.Tensor")
LAUNCHER = re.compile(r"((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
PATIENCE = timedelta(days=7)  # the others wait while the first measures a large model
LOST = ("onnection", "imed out", "remote process exit")  # in what gloo and NCCL say of a process that has ended
_size = 1


def started() -> int:
    """How many processes were launched together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return _number("RANK", 0) if started() > 1 else 0


def local_rank() -> int:
    """Its number among those on this machine, which is that of its GPU."""
    return _number("LOCAL_RANK", 0)


def is_first() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def speaker() -> str:
    """What a process is called towards the user; nothing when it is the first."""
    return "" if is_first() else f"process {rank() + 1} of {started()}: "


def size() -> int:
    """How many processes share the work now: 1 outside of `joined`."""
    return _size


@contextmanager
def joined(device: "torch.device") -> Iterator[None]:
    """Connect the processes of this run for a while.

    Raises UsageError for a device on which work cannot be shared, and, when another process ends before, ResourceError
    in the first and SystemExit in the others: the one that ended has said why.
    """
    global _size
    if started() == 1:
        yield
        return
    _connect(device)
    try:
        yield
        leave()
    except RuntimeError as error:
        if not any(word in str(error) for word in LOST):
            raise
        if not is_first():
            raise SystemExit(ResourceError.exit_code) from error
        raise ResourceError(
            f"one of the {started()} processes of this run has ended",
            hint="see what it said; the same command goes on from what is kept",
        ) from error
    finally:
        _size = 1  # after an error the group goes with the process: to take it down might mean to wait for the others


def _connect(device: "torch.device") -> None:
    global _size
    import torch

    if device.type not in BACKENDS:
        raise UsageError(f"processes cannot share work on {device.type}", hint="--device cuda or --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(BACKENDS[device.type], timeout=PATIENCE)
    _size = started()


def leave() -> None:
    """Part from the others: what follows is done by one process."""
    global _size
    if _size > 1:
        import torch

        _size = 1
        torch.distributed.destroy_process_group()


def share(items: S) -> S:
    """Every n-th of some items, or rows of a tensor, for n processes; all shares together are all of them."""
    return items if _size == 1 else items[rank() :: _size]


def summed(values: list[float]) -> list[float]:
    """The sums of some numbers over all processes, the same in each of them to the bit."""
    if _size == 1:
        return values
    import torch

    total = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(total)
    return total.tolist()


def from_first(value: T) -> T:
    """The first process's value, which is JSON, in every process."""
    if _size == 1:
        return value
    import torch

    text = json.dumps(value).encode() if is_first() else b""
    length = torch.tensor([len(text)])
    torch.distributed.broadcast(length, 0)
    data = torch.frombuffer(bytearray(text.ljust(int(length))), dtype=torch.uint8)
    torch.distributed.broadcast(data, 0)
    return value if is_first() else json.loads(data.numpy().tobytes())


def refuse_standard_input() -> None:
    """Raise InputError where several processes would each take a part of the one standard input."""
    if started() > 1:
        raise InputError(f"{started()} processes cannot all read standard input", hint="give the name of a file")


def environment() -> dict[str, str]:
    """This process's environment without what a launcher put there, for a process that works alone."""
    return {name: value for name, value in os.environ.items() if not LAUNCHER.fullmatch(name)}


def _number(variable: str, otherwise: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else otherwise
