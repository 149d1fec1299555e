"""A training run on disk, from which it can continue: weights, AdamW's moments, the best weights so far, its step.

Of several processes the first one reads and writes the file, whole tensors; the others help, without a folder.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit import distributed
from prunekit.files import storage_errors, sync
from prunekit.train.fsdp import gathered, own, scattered

STATE = "training.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    folder: Path | None,
    trained: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    notes: dict[str, Any],
) -> None:
    """Write everything to one file that appears whole; raises ResourceError when the disk is full."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        tensors[f"weight/{name}"] = gathered(parameter.detach()).contiguous()
        tensors[f"best/{name}"] = gathered(best[name], parameter).contiguous()
        for key, value in optimizer.state[parameter].items():  # none of a parameter that nothing has moved yet
            tensors[f"{key}/{name}"] = gathered(value).contiguous()
    if folder is None:
        return
    path, partial = folder / STATE, folder / f"{STATE}.partial"
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, {"notes": json.dumps(notes)})
        sync(partial)
        partial.replace(path)
        sync(folder)


def resume(
    folder: Path | None, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Put back what was saved last; returns the best weights and the notes, or None when nothing was."""
    path, best = folder and folder / STATE, dict[str, Tensor]()
    with ExitStack() as opened, torch.no_grad():
        saved = opened.enter_context(safe_open(path, framework="pt")) if path and path.is_file() else None
        notes = distributed.from_first(None if saved is None else json.loads(saved.metadata()["notes"]))
        if notes is None:
            return None
        names = set() if saved is None else set(saved.keys())
        for name, parameter in trained.items():
            kinds = ("weight", "best", "step", *MOMENTS)
            keys = {kind: f"{kind}/{name}" for kind in kinds}
            found = {kind: saved.get_tensor(key) if saved and key in names else None for kind, key in keys.items()}
            step = distributed.from_first(None if found["step"] is None else found["step"].item())
            parameter.copy_(scattered(found["weight"], parameter))
            best[name] = own(scattered(found["best"], parameter)).cpu()
            if step is not None:
                optimizer.state[parameter] = {key: scattered(found[key], parameter) for key in MOMENTS}
                optimizer.state[parameter]["step"] = torch.tensor(step)
    return best, notes
