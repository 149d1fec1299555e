"""What pruning does to the loss: of the whole model, and of one place in it that loses more or less than it does now.

One pass serves all trials: where the stream of the pruned model meets the place of a trial, a branch leaves it, so that
no block before that place is run again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from prunekit.blockwise.loss import mean_loss, summed_loss
from prunekit.blockwise.statistics import Hessian, InputNorm, Statistics
from prunekit.blockwise.stream import Stream, grouped, split, waiting
from prunekit.blockwise.walk import LoadedLinear, Visit, observe
from prunekit.contract import Budget, Context
from prunekit.plan import Pattern
from prunekit.weights.masks import keep_above_threshold, keep_per_row
from prunekit.weights.obs import inverse_factor, prune

Score = Literal["magnitude", "wanda", "sparsegpt"]
SCORES: tuple[Score, ...] = get_args(Score)
Cut = Callable[[float], Tensor]  # a sparsity -> what is left of a weight, (outputs, inputs)
LOT = 8  # trials that are measured together at least, however little memory there is for their hidden states
DAMPENING, COLUMNS = 0.01, 128  # SparseGPT's own


@dataclass(frozen=True)
class Trial:
    """One place, which is some linears of one block, and the sparsity that they all get."""

    block: int
    linears: tuple[str, ...]
    sparsity: float


@dataclass
class Sensitivity:
    """Token ids (sequences, tokens) to measure on, the score by which weights are removed, and the work done so far.

    `forwards` counts the blocks that were run, each over all sequences. A model must not be resident, since what is
    pruned here is forgotten when its block is freed.
    """

    ctx: Context
    ids: Tensor
    score: Score
    forwards: float = field(default=0, init=False)

    @property
    def passes(self) -> float:
        """The work done, in forward passes of the whole model over the ids."""
        return self.forwards / max(1, len(self.ctx.model.kept))

    @torch.no_grad()
    def loss(self, budget: Budget) -> float:
        """The mean loss of the model when every linear is pruned as the budget says: two passes."""
        stream = Stream(self.ctx.model, split(self.ids, self.ctx.batch_size), self.ctx.offload)
        for visit in observe(self.ctx, STATISTICS[self.score], stream):
            cut(visit, self.score, budget)
        self.forwards += 2 * len(self.ctx.model.kept)
        return or_inf(mean_loss(stream.logits(), self.ids))

    @torch.no_grad()
    def losses(self, trials: Sequence[Trial], budget: Budget) -> list[float]:
        """The mean loss for each trial, all other places being pruned as the budget says.

        Two passes, and for each trial as many blocks as there are from its own on. Trials whose hidden states would not
        fit together are measured in lots, of LOT or more, each with two passes of its own. Where not even a lot fits,
        its sequences are taken in groups, whose statistics are then those of a group.
        """
        batches, totals = split(self.ids, self.ctx.batch_size), dict.fromkeys(trials, 0.0)
        width = self.ctx.model.config.get_text_config().hidden_size
        state = self.ctx.batch_size * self.ids.shape[1] * width * self.ctx.model.dtype.itemsize
        size = max(LOT, waiting(state * len(batches)) - 1)
        for lot in (trials[start : start + size] for start in range(0, len(trials), size)):
            for group in grouped(batches, state * (len(lot) + 1), resident=False):
                for trial, found in self._branch(group, lot, budget).items():
                    totals[trial] += found
            self.forwards += self._blocks_run(lot)
        return [or_inf(totals[trial] / (self.ids.shape[0] * (self.ids.shape[1] - 1))) for trial in trials]

    def _blocks_run(self, trials: Sequence[Trial]) -> int:
        """Two passes, and for each trial the blocks from its own on."""
        places = {block.index: place for place, block in enumerate(self.ctx.model.kept)}
        return 2 * len(places) + sum(len(places) - places[trial.block] for trial in trials)

    def _branch(self, batches: Sequence[Tensor], trials: Sequence[Trial], budget: Budget) -> dict[Trial, float]:
        """The summed loss of some batches for each trial."""
        stream = Stream(self.ctx.model, batches)
        branches: dict[Trial, list[Tensor]] = {}
        for visit in observe(self.ctx, STATISTICS[self.score], stream):
            left = cut(visit, self.score, budget)
            for states in branches.values():
                states[:] = self._run(stream, visit, states)
            for trial in trials:
                if trial.block == visit.block.index:
                    places = [linear for linear in visit.linears if linear.path in trial.linears]
                    now = [linear.weight.clone() for linear in places]
                    for linear in places:
                        linear.write(left[linear.path](trial.sparsity))
                    branches[trial] = self._run(stream, visit, stream.hidden)
                    for linear, weight in zip(places, now, strict=True):
                        linear.write(weight)
        found: dict[Trial, float] = {}
        for trial, states in branches.items():
            logits = zip(stream.logits(hidden=states), batches, strict=True)
            found[trial] = sum(summed_loss(part, ids) for part, ids in logits)
        return found

    def _run(self, stream: Stream, visit: Visit[Statistics], states: Sequence[Tensor]) -> list[Tensor]:
        module = self.ctx.model.stack[visit.block.index]
        return [stream.run(module, visit.block, batch, state).cpu() for batch, state in enumerate(states)]


def or_inf(loss: float) -> float:
    """A loss that is not a number is that of a ruined model."""
    return math.inf if math.isnan(loss) else loss


def cut(visit: Visit[Statistics], score: Score, budget: Budget) -> dict[str, Cut]:
    """Prune every linear of a block in memory as the budget says; linear path -> how its dense weight is pruned."""
    cuts = {linear.path: CUTS[score](linear.weight.clone(), visit, linear) for linear in visit.linears}
    for linear in visit.linears:
        linear.write(cuts[linear.path](budget[linear.path]))
    return cuts


def _by_size(weight: Tensor, visit: Visit[Statistics], linear: LoadedLinear) -> Cut:
    size = weight.float().abs()
    return lambda sparsity: weight.masked_fill(~keep_above_threshold(size, sparsity), 0)


def _by_norm(weight: Tensor, visit: Visit[Statistics], linear: LoadedLinear) -> Cut:
    statistics = visit.statistics[linear.path]
    assert isinstance(statistics, InputNorm)
    scores = weight.float().abs() * statistics.norms
    return lambda sparsity: weight.masked_fill(~keep_per_row(scores, sparsity, Pattern()), 0)


def _by_surgery(weight: Tensor, visit: Visit[Statistics], linear: LoadedLinear) -> Cut:
    """As SparseGPT; where the Hessian cannot be inverted even with much dampening, as if it were its diagonal."""
    statistics = visit.statistics[linear.path]
    assert isinstance(statistics, Hessian)
    factor = inverse_factor(statistics.matrix, DAMPENING)
    if factor is None:
        factor = statistics.matrix.diagonal().clamp(min=1e-12).rsqrt().diag()
    return partial(_operate, weight.float().masked_fill(statistics.total.diagonal() == 0, 0), factor)


def _operate(weight: Tensor, factor: Tensor, sparsity: float) -> Tensor:
    return prune(weight, factor, sparsity, Pattern(), COLUMNS) if sparsity else weight


STATISTICS: dict[str, type[Statistics]] = {"magnitude": InputNorm, "wanda": InputNorm, "sparsegpt": Hessian}
CUTS: dict[str, Callable[[Tensor, Visit[Statistics], LoadedLinear], Cut]] = {
    "magnitude": _by_size,
    "wanda": _by_norm,
    "sparsegpt": _by_surgery,
}
