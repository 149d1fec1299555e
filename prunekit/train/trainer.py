"""Train a whole model in memory while some of its blocks fade out, so that it can be exported without them.

The loss is up to the caller's `Objective`: the language-model loss, the distance to the dense model's logits and to its
hidden states, and a penalty on what the fading blocks still do. The state that is kept is the best one of the *pruned*
model on held-out sequences; training can be taken up again from where it was saved, with the same result on a CPU.
Several processes train on a share of the rows each, and keep a share of the weights (`sharding`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from prunekit import distributed
from prunekit.blockwise.capture import Pack, replaced
from prunekit.progress import Progress
from prunekit.train import fsdp, state
from prunekit.train.fading import Course, Fade, Fading, fade, mismatch, outputs_of

Seen = tuple[Tensor, dict[int, Tensor]]  # logits of the predicted tokens, hidden states after the blocks


@dataclass(frozen=True)
class Objective:
    """What is minimised, with P the fading blocks.

    (1 - distil) CE + distil KL(dense || student) + match * mismatch(student, dense) + penalty * sum_P ||F(x) - x||_q
    """

    distil: float = 0.0
    match: float = 0.0
    penalty: float = 0.0
    norm: int = 2

    @property
    def looks_at_dense(self) -> bool:
        """Whether a teacher is needed."""
        return self.distil > 0 or self.match > 0


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `updates` AdamW steps, linear warm-up, linear decay, clipping of the gradient's norm."""

    updates: int
    batch: int  # sequences per update
    micro: int  # sequences per forward pass
    rate: float
    warmup: float = 0.03  # of all updates
    clip: float = 1.0
    check_every: int = 16  # updates between two looks at the held-out sequences
    save_every: int = 50

    def rate_at(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        rising = min(1.0, (update + 1) / max(1.0, self.warmup * self.updates))
        return self.rate * rising * (1 - update / self.updates)


class Look(NamedTuple):
    """What the pruned model was worth on the held-out sequences after some updates.

    `loss` is the language-model loss. States are chosen by `judged`, (1 - distil) loss + distil KL(dense || student):
    a text that the dense model knows by heart would speak against every change, were it asked alone.
    """

    update: int
    loss: float
    judged: float


@dataclass
class Trainer:
    """One training run: the student with its fading blocks, the dense teacher, the text, and where it is kept.

    A student that is its own teacher is the dense model inside `dense()`.
    """

    student: PreTrainedModel
    stack_path: str
    pack: Pack
    teacher: PreTrainedModel | None
    trained: dict[str, nn.Parameter]
    ids: Tensor  # (sequences, tokens)
    held_out: Tensor
    objective: Objective
    schedule: Schedule
    course: Course
    seed: int
    device: torch.device | None = None  # where several processes train; else it is where the student is
    folder: Path | None = None
    recompute: bool = False
    dense: Callable[[], AbstractContextManager[None]] = nullcontext
    progress: Progress | None = None
    update: int = 0
    best: Look | None = None
    history: list[Look] = field(default_factory=list)
    _best_state: dict[str, Tensor] = field(default_factory=dict)  # of several processes: each one's share

    def __post_init__(self) -> None:
        for model in dict.fromkeys((self.student, self.teacher or self.student)):
            fsdp.spread(model, self.stack_path, self.device or model.device)
        parameters = dict(self.student.named_parameters())  # others than before, where they were shared out
        self.trained = {name: parameters[name] for name in self.trained}

    def run(self) -> None:
        """Train to the end, and leave the best state in the student."""
        optimizer = torch.optim.AdamW(self.trained.values(), lr=self.schedule.rate, weight_decay=0.0)
        keeps = distributed.from_first(self.folder is not None)
        with self._fading() as blocks:
            if not self._resume(optimizer):
                self._look(blocks)
            while self.update < self.schedule.updates:
                loss = self._step(optimizer, blocks)
                if not math.isfinite(loss):
                    self._say(f"update {self.update}: the loss is {loss}; the best state so far is kept")
                    break
                self.update += 1
                if self.update % self.schedule.check_every == 0 or self.update == self.schedule.updates:
                    self._look(blocks)
                if keeps and self.update % self.schedule.save_every == 0:
                    self._save(optimizer)
                if self.progress and self.best:
                    self.progress.step(f"loss {loss:.4f}, best on held-out text {self.best.loss:.4f}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                fsdp.own(parameter).copy_(self._best_state[name])

    def held_out_loss(self, gate: float) -> float:
        """Mean language-model loss of the held-out sequences with all fading blocks at this gate."""
        with self._fading() as blocks:
            return self._held_out(blocks, gate).loss

    def _step(self, optimizer: torch.optim.Optimizer, blocks: dict[int, Fading]) -> float:
        """One update; returns its loss, and changes nothing when that is not a number."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.update)
        fade(blocks, self.course(self.update), self.objective.norm if self.objective.penalty else 0)
        rows, total = self._rows(), 0.0
        for part, counts in fsdp.parts(rows, self.schedule.micro):
            loss = self._loss(part.to(self.student.device), blocks) * (counts * len(part) / len(rows))
            (loss * distributed.size()).backward()  # the gradients are averaged, and shall be summed
            total += loss.item()
        (total,) = distributed.summed([total])
        norm = fsdp.whole(nn.utils.clip_grad_norm_(self.trained.values(), self.schedule.clip))
        if math.isfinite(total) and norm.isfinite():
            optimizer.step()
        else:
            total = math.nan
        optimizer.zero_grad()
        return total

    def _loss(self, ids: Tensor, blocks: dict[int, Fading]) -> Tensor:
        """The objective on some sequences (b, tokens)."""
        wanted, goal = self._wanted(ids), self.objective
        logits, states = self._see(self.student, ids)
        loss = (1 - goal.distil) * cross_entropy(logits, ids[:, 1:].flatten())
        if wanted and goal.distil:
            loss = loss + goal.distil * _apart(logits, wanted[0], "batchmean")
        if wanted and goal.match:
            loss = loss + goal.match * mismatch(states, wanted[1], without=blocks)
        distances = [block.distance for block in blocks.values() if block.distance is not None]
        return loss + goal.penalty * torch.stack(distances).sum() if distances else loss

    @torch.no_grad()
    def _wanted(self, ids: Tensor) -> Seen | None:
        """What the dense model sees, if there is a teacher; before the student's graph is built."""
        if self.teacher is None:
            return None
        if self.teacher is not self.student:
            return self._see(self.teacher, ids)
        with replaced(self._stack(), self._blocks()), self.dense():  # a stand-in hides the modules of its block
            return self._see(self.teacher, ids)

    def _see(self, model: PreTrainedModel, ids: Tensor) -> Seen:
        """A model's logits, and its hidden states where these are matched."""
        with outputs_of(self._blocks(model) if self.objective.match else ()) as states:
            return self._logits(model, ids), states

    def _logits(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Float32 logits (b * (tokens - 1), vocabulary) of all predicted tokens of sequences (b, tokens).

        Computed in bfloat16 over float32 weights on accelerators, and in float32 on a CPU.
        """
        device = model.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            return model(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)

    def _stack(self, model: PreTrainedModel | None = None) -> nn.ModuleList:
        stack = (model or self.student).get_submodule(self.stack_path)
        assert isinstance(stack, nn.ModuleList)
        return stack

    def _blocks(self, model: PreTrainedModel | None = None) -> Sequence[nn.Module]:
        """The blocks themselves, whatever stands in for them."""
        return [part.block if isinstance(part, Fading) else part for part in self._stack(model)]

    def _rows(self) -> Tensor:
        """The sequences of this update: each epoch is a permutation of its own, determined by the seed."""
        count, batch = len(self.ids), min(self.schedule.batch, len(self.ids))
        epoch, place = divmod(self.update, count // batch)
        seed = (self.seed * 1_000_003 + epoch) % 2**63  # what a generator takes
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return self.ids[order[place * batch : (place + 1) * batch]]

    @contextmanager
    def _fading(self) -> Iterator[dict[int, Fading]]:
        """Stand-ins in the place of all blocks; those of the fading ones by their index."""
        stack = self._stack()
        stands = [Fading(block, self.pack, self.recompute) for block in stack]
        with replaced(stack, stands):
            yield {index: stands[index] for index in self.course(0)}

    @torch.no_grad()
    def _held_out(self, blocks: dict[int, Fading], gate: float) -> Look:
        fade(blocks, dict.fromkeys(blocks, Fade(gate)))
        loss = apart = 0.0
        for rows, counts in fsdp.parts(self.held_out, self.schedule.micro):
            ids = rows.to(self.student.device)
            wanted = self._wanted(ids) if self.objective.distil else None
            logits = self._logits(self.student, ids)
            loss += counts * cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").item()
            apart += counts * _apart(logits, wanted[0], "sum").item() if wanted else 0.0
        predicted, distil = self.held_out.shape[0] * (self.held_out.shape[1] - 1), self.objective.distil
        loss, apart = (total / predicted for total in distributed.summed([loss, apart]))
        return Look(self.update, loss, (1 - distil) * loss + distil * apart)

    def _look(self, blocks: dict[int, Fading]) -> None:
        """Measure the pruned model on the held-out sequences; keep the state if it is the best."""
        found = self._held_out(blocks, 0.0)
        self.history.append(found)
        if self.best is None or math.isnan(self.best.judged) or found.judged < self.best.judged:
            self.best = found
            for name, part in self.trained.items():  # one after the other, so that no two whole states are in memory
                self._best_state[name] = fsdp.own(part.detach()).to("cpu", copy=True)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        notes = {"update": self.update, "best": self.best, "history": self.history}  # as lists of numbers
        state.save(self.folder, self.trained, optimizer, self._best_state, notes)

    def _resume(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take up the last checkpoint, if there is one."""
        found = state.resume(self.folder, self.trained, optimizer)
        if found is None:
            return False
        self._best_state, notes = found
        self.update, self.best = notes["update"], Look(*notes["best"])
        self.history = [Look(*each) for each in notes["history"]]
        if self.progress:
            for _ in range(self.update):
                self.progress.step("from before")
        self._say(f"training goes on from update {self.update}")
        return True

    def _say(self, text: str) -> None:
        if self.progress:
            self.progress.note(text)


def set_aside(ids: Tensor, part: float) -> tuple[Tensor, Tensor]:
    """Sequences to train on, and a part of all (n, tokens), at least one and not all, held out; of one, it is both."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    count = min(max(1, round(part * len(ids))), max(1, len(ids) - 1))
    return ids[order[count:]] if len(ids) > 1 else ids, ids[order[:count]]


def _apart(logits: Tensor, dense: Tensor, reduction: str) -> Tensor:
    """KL(dense || student) over predicted tokens, from logits (n, vocabulary)."""
    return kl_div(logits.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction=reduction)
