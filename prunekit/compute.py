"""Where a run computes, and in which precision; how weights are stored is another question."""

import torch

from prunekit.checkpoint import STORED_DTYPES, Checkpoint
from prunekit.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device a run computes on: `auto` takes the first accelerator there is, else the CPU."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).sum().item()
    except Exception as error:  # each backend has its own way to be absent
        raise UsageError(
            f"device {name!r} is not available here: {str(error).splitlines()[0]}",
            hint="prunekit doctor lists the devices",
        ) from error
    return device


def choose_dtype(name: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype blocks are computed in: `auto` is the stored one on an accelerator and float32 on a CPU."""
    if name != "auto":
        if name not in DTYPES:
            raise UsageError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return STORED_DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), torch.float32)
