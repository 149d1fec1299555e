"""Train a whole model in memory while some of its blocks fade out, so that it can be exported without them.

The loss is up to the caller's `Objective`: the language-model loss, the distance to the dense model's logits, and a
penalty on what the fading blocks still do. The state that is kept is the best one by the loss of the *pruned* model on
held-out sequences; training can be taken up again from any checkpoint, with the same result on one device.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prunekit.capture import HIDDEN, Answer, StandIn, standing_in
from prunekit.gates import gated
from prunekit.progress import Progress

Course = Callable[[int], dict[int, "Fade"]]  # update -> every fading block's part in it
STATE = "training.safetensors"
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fade:
    """How far a block is still there, from 1 to 0, and whether what it does is penalised."""

    gate: float
    penalised: bool = False


@dataclass(frozen=True)
class Objective:
    """What is minimised: (1 - distil) CE + distil KL(dense || student) + penalty * sum over P of ||F(x) - x||_q."""

    distil: float = 0.0
    penalty: float = 0.0
    norm: int = 2


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


class Fading(StandIn):
    """A block between 1, itself, and 0, where it is not run; and, if wanted, run again on the way back."""

    def __init__(self, block: nn.Module, answer: Answer, again: bool) -> None:
        super().__init__(block)
        self.__dict__.update(answer=answer, again=again, gate=1.0, norm=0, distance=None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs[HIDDEN]
        self.__dict__["distance"] = None
        if self.gate == 0:
            return self.answer(given)
        run = checkpoint if self.again and torch.is_grad_enabled() else _plain
        result = run(self.block, *args, **({"use_reentrant": False} if run is checkpoint else {}), **kwargs)
        output = result if isinstance(result, Tensor) else result[0]
        if self.norm:
            self.__dict__["distance"] = _distance(output - given, self.norm)
        mixed = output if self.gate == 1 else gated(output, given, self.gate, "branch")
        return mixed if isinstance(result, Tensor) else (mixed, *result[1:])


def _plain(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return block(*args, **kwargs)


def _distance(difference: Tensor, norm: int) -> Tensor:
    """Mean over sequences of R_q: the Frobenius norm, or the sum of magnitudes over the root of their number.

    The scale of R_1 is ours: it keeps R_1 below R_2, so that one lambda suits both.
    """
    each = difference.float().flatten(1)
    if norm == 2:
        return each.norm(dim=1).mean()
    return (each.abs().sum(dim=1) / math.sqrt(each.shape[1])).mean()


@dataclass
class Trainer:
    """One training run: the student with its fading blocks, the dense teacher, the text, and where it is kept.

    A student that is its own teacher is the dense model inside `dense()`.
    """

    student: PreTrainedModel
    stack_path: str
    answer: Answer
    teacher: PreTrainedModel | None
    trained: dict[str, nn.Parameter]
    ids: Tensor  # (sequences, tokens)
    held_out: Tensor
    objective: Objective
    schedule: Schedule
    course: Course
    seed: int
    folder: Path | None = None
    recompute: bool = False
    dense: Callable[[], AbstractContextManager[None]] = nullcontext
    progress: Progress | None = None
    update: int = 0
    best: float = math.inf
    history: list[tuple[int, float]] = field(default_factory=list)
    _best_state: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> None:
        """Train to the end, and leave the best state in the student."""
        optimizer = torch.optim.AdamW(self.trained.values(), lr=self.schedule.rate, weight_decay=0.0)
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
                if self.folder and self.update % self.schedule.save_every == 0:
                    self._save(optimizer)
                if self.progress:
                    self.progress.step(f"loss {loss:.4f}, held-out pruned loss {self.best:.4f}")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self._best_state[name])

    def held_out_loss(self, gate: float) -> float:
        """Mean loss of the held-out sequences with all fading blocks at this gate."""
        with self._fading() as blocks:
            return self._held_out(blocks, gate)

    def _step(self, optimizer: torch.optim.Optimizer, blocks: dict[int, Fading]) -> float:
        """One update; returns its loss, and changes nothing when that is no number."""
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.update)
        _set(blocks, self.course(self.update), self.objective.norm if self.objective.penalty else 0)
        rows, total = self._rows(), 0.0
        for part in rows.split(self.schedule.micro):
            loss = self._loss(part.to(self.student.device), blocks) * (len(part) / len(rows))
            loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.schedule.clip)
        if math.isfinite(total) and norm.isfinite():
            optimizer.step()
        else:
            total = math.nan
        optimizer.zero_grad()
        return total

    def _loss(self, ids: Tensor, blocks: dict[int, Fading]) -> Tensor:
        """The objective on some sequences (b, tokens)."""
        wanted = self._wanted(ids)
        logits = self._logits(self.student, ids)
        loss = (1 - self.objective.distil) * cross_entropy(logits, ids[:, 1:].flatten())
        if wanted is not None:
            apart = kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean")
            loss = loss + self.objective.distil * apart
        distances = [block.distance for block in blocks.values() if block.distance is not None]
        return loss + self.objective.penalty * torch.stack(distances).sum() if distances else loss

    @torch.no_grad()
    def _wanted(self, ids: Tensor) -> Tensor | None:
        """The dense model's logits, if there is a teacher; wanted first, for the student's graph must stay as it is."""
        if self.teacher is None:
            return None
        if self.teacher is not self.student:
            return self._logits(self.teacher, ids)
        stack = self._stack()
        blocks = [part.block for part in stack if isinstance(part, Fading)]
        with standing_in(stack, blocks), self.dense():  # in this order: a stand-in hides the modules of its block
            return self._logits(self.teacher, ids)

    def _stack(self) -> nn.ModuleList:
        stack = self.student.get_submodule(self.stack_path)
        assert isinstance(stack, nn.ModuleList)
        return stack

    def _logits(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Float32 logits (b * (tokens - 1), vocabulary) of all predicted tokens of sequences (b, tokens).

        Computed in bfloat16 over float32 weights on accelerators, and in float32 on a CPU.
        """
        device = model.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            return model(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)

    def _rows(self) -> Tensor:
        """The sequences of this update: each epoch is a permutation of its own, from the seed alone."""
        count, batch = len(self.ids), min(self.schedule.batch, len(self.ids))
        epoch, place = divmod(self.update, count // batch)
        seed = (self.seed * 1_000_003 + epoch) % 2**63  # what a generator takes
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return self.ids[order[place * batch : (place + 1) * batch]]

    @contextmanager
    def _fading(self) -> Iterator[dict[int, Fading]]:
        """Stand-ins in the place of all blocks; those of the fading ones by their index."""
        stack = self._stack()
        stands = [Fading(block, self.answer, self.recompute) for block in stack]
        with standing_in(stack, stands):
            yield {index: stands[index] for index in self.course(0)}

    @torch.no_grad()
    def _held_out(self, blocks: dict[int, Fading], gate: float) -> float:
        _set(blocks, dict.fromkeys(blocks, Fade(gate)))
        total = 0.0
        for rows in self.held_out.split(self.schedule.micro):
            ids = rows.to(self.student.device)
            total += cross_entropy(self._logits(self.student, ids), ids[:, 1:].flatten(), reduction="sum").item()
        return total / (self.held_out.shape[0] * (self.held_out.shape[1] - 1))

    def _look(self, blocks: dict[int, Fading]) -> None:
        """Measure the pruned model on the held-out sequences; keep the state if it is the best."""
        found = self._held_out(blocks, 0.0)
        self.history.append((self.update, found))
        if found < self.best or not self._best_state:
            self.best = found
            self._best_state = {name: part.detach().to("cpu", copy=True) for name, part in self.trained.items()}

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        """Weights, optimiser, best state and place, in files that appear whole."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            tensors[f"weight/{name}"] = parameter.detach().contiguous()
            state = optimizer.state[parameter]
            tensors.update({f"{key}/{name}": state[key].contiguous() for key in ADAM_STATE})
            tensors[f"best/{name}"] = self._best_state[name].contiguous()
        notes = {"update": self.update, "best": self.best, "history": self.history}
        partial = self.folder / f"{STATE}.partial"
        save_file(tensors, partial, {"notes": json.dumps(notes)})
        partial.replace(self.folder / STATE)

    def _resume(self, optimizer: torch.optim.Optimizer) -> bool:
        """Take up the last checkpoint, if there is one."""
        if self.folder is None or not (self.folder / STATE).is_file():
            return False
        with safe_open(self.folder / STATE, framework="pt") as saved, torch.no_grad():
            notes = json.loads(saved.metadata()["notes"])
            for name, parameter in self.trained.items():
                parameter.copy_(saved.get_tensor(f"weight/{name}"))
                optimizer.state[parameter] = {
                    key: saved.get_tensor(f"{key}/{name}").to("cpu" if key == "step" else parameter.device)
                    for key in ADAM_STATE
                }
                self._best_state[name] = saved.get_tensor(f"best/{name}")
        self.update, self.best = notes["update"], notes["best"]
        self.history = [(update, loss) for update, loss in notes["history"]]
        self._say(f"training goes on from update {self.update}")
        return True

    def _say(self, text: str) -> None:
        if self.progress:
            self.progress.note(text)


def _set(blocks: dict[int, Fading], fades: dict[int, Fade], norm: int = 0) -> None:
    for index, block in blocks.items():
        fade = fades[index]
        block.__dict__.update(gate=fade.gate, norm=norm if fade.penalised else 0)
