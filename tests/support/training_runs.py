"""Small training runs on a tiny Llama, for tests in one process and in several."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit import testing as checks
from prunekit.blockwise.capture import capture
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.progress import Silent
from prunekit.train.fading import Fade
from prunekit.train.lora import adapt
from prunekit.train.trainer import Objective, Schedule, Trainer

COUNTING = (torch.arange(16) + torch.arange(8)[:, None]) % 9  # a text that can be learned
SCHEDULE = Schedule(updates=6, batch=2, micro=1, rate=5e-3, check_every=2, save_every=2)


def trainer(source: Path, gone: tuple[int, ...] = (1,), **more: Any) -> Trainer:
    """A run that closes some gates within the first half, and distils from the dense model."""
    model = PrunableModel.open(Checkpoint.open(source), device="cpu")
    student, teacher = model.load(torch.float32), model.load(torch.float32)
    ids = checks.token_ids(model, samples=8, tokens=16)
    given: dict[str, Any] = {
        "objective": Objective(distil=0.5, penalty=1e-3),
        "schedule": SCHEDULE,
        "course": lambda update: dict.fromkeys(gone, Fade(max(0.0, 1 - update / 3), penalised=update < 3)),
        "seed": 0,
    }
    return Trainer(
        student=student,
        stack_path=model.stack_path,
        pack=capture(model, [ids[:1]]).pack,
        teacher=teacher,
        trained={name: part.requires_grad_() for name, part in student.named_parameters()},
        ids=ids[2:],
        held_out=ids[:2],
        **(given | more),
    )


def adapted(source: Path, **more: Any) -> Trainer:
    """The same with adapters on the blocks that stay, from the student itself as the dense model."""
    run = trainer(source, **more)
    run.student.requires_grad_(False)
    blocks = PrunableModel.open(Checkpoint.open(source), device="cpu").blocks
    adapters = adapt(
        run.student, [linear for block in blocks if block.index != 1 for linear in block.linears], run.ids[:1], 4, 0
    )
    return replace(
        run,
        trained=adapters.parameters(),
        teacher=run.student,
        dense=adapters.off,
        ids=COUNTING[2:],
        held_out=COUNTING[:2],
    )


def weights(run: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.student.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Stop(Exception):
    pass


class Stopper(Silent):
    """Ends a run after some updates."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, text: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop
