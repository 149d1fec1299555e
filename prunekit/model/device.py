"""Where a run computes, and in which precision; how weights are stored is another question."""

import ctypes
import platform
import sys
from functools import cache

import torch

from prunekit import distributed
from prunekit.errors import UsageError
from prunekit.model.checkpoint import STORED_DTYPES, Checkpoint

DEVICES = "auto, cpu, cuda, cuda:N or mps"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device a run computes on: `auto` takes the first accelerator there is, else the CPU.

    Of several processes each takes the card of its own number, unless one is named.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = (found or torch.device("cpu")).type
        if name != "cuda" or distributed.started() == 1:
            return torch.device(name)
    if name == "cuda" and distributed.started() > 1:
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:  # its text lists every backend that torch was ever built with
        raise _unavailable(name, f"; expected {DEVICES}") from error
    try:
        torch.zeros(1, device=device).sum().item()
    except Exception as error:  # each backend has its own way to be absent
        raise _unavailable(name, f": {str(error).splitlines()[0]}") from error
    return device


def _unavailable(name: str, why: str) -> UsageError:
    return UsageError(f"device {name!r} is not available here{why}", hint="prunekit doctor lists the devices")


def choose_dtype(name: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype blocks are computed in: `auto` is the stored one on an accelerator and float32 on a CPU."""
    if name != "auto":
        if name not in DTYPES:
            raise UsageError(
                f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}",
                hint="--dtype auto is right for most models",
            )
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return STORED_DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), torch.float32)


def computed_on(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """What rounding depends on beside the versions: the kind of processor, the dtype, threads and processes."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": device.type,
        "processor": processor,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": distributed.started(),
    }


def give_back_memory() -> None:
    """Return what was freed to the system: glibc keeps it in pieces, so that memory would grow with the depth."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> "ctypes._NamedFuncPointer | None":
    """Glibc's function of that name; None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
    except (AttributeError, OSError):
        return None
