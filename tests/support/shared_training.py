"""A training run that several processes share: `torchrun shared_training.py SOURCE FOLDER`, for test_processes.

It is run twice, once through and once stopped and taken up again; the first process writes what came out.
"""

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit import distributed
from prunekit.train.fsdp import whole, whole_state
from prunekit.train.trainer import Trainer
from training_runs import SCHEDULE, Stop, Stopper, trainer


def trained(source: Path, **more: Any) -> tuple[Trainer, list[float]]:
    """A run over rows that two processes cannot share evenly, and the norm of each update's gradient."""
    run = trainer(source, schedule=replace(SCHEDULE, batch=3), recompute=True, **more)
    norms, clip = [], nn.utils.clip_grad_norm_

    def noted(*given: Any) -> Tensor:
        norms.append(whole(norm := clip(*given)).item())
        return norm

    with patch.object(nn.utils, "clip_grad_norm_", noted):
        run.run()
    return run, norms


def write(run: Trainer, norms: list[float], path: Path) -> None:
    state = whole_state(run.student)
    if distributed.is_first():
        save_file(state, path, {"history": json.dumps(run.history), "norms": json.dumps(norms)})


def main(source: Path, folder: Path) -> None:
    kept = folder / "state" if distributed.is_first() else None
    with distributed.joined(torch.device("cpu")):
        write(*trained(source), folder / "whole.safetensors")
        with suppress(Stop):
            trained(source, folder=kept, progress=Stopper(3))
        write(*trained(source, folder=kept), folder / "resumed.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
