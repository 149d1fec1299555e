"""Width pruning: how many neurons every block keeps, and leaving the others out.

A method decides how important blocks and neurons are; how many neurons are removed follows from the ratio. `neurons`
cuts a block, `config` finds how config.json says so.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prunekit.contract import Context
from prunekit.depth.actions import RemoveBlock
from prunekit.depth.removal import plan_removal, runs_own_code
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.model.modeling_file import MODULE
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import FFN
from prunekit.plan import PrunePlan
from prunekit.width.actions import Narrow
from prunekit.width.config import NEITHER, default_multiple, find_width_key
from prunekit.width.neurons import find_ffns


@dataclass(frozen=True)
class Neurons:
    """The feed-forward neurons of a model: where they are, how many a block has, what one costs in parameters."""

    ffns: Mapping[int, FFN]
    units: int
    cost: int
    parameters: Mapping[int, int]  # of every block
    multiple: int

    def gone(self, ratio: float, removed: Collection[int] = ()) -> float:
        """How many neurons of the other blocks must be removed when these blocks are.

        Raises UsageError when there are not so many.
        """
        total = sum(self.parameters.values())
        wanted = (ratio * total - sum(self.parameters[index] for index in removed)) / self.cost
        blocks = len(self.parameters) - len(removed)
        most = blocks * (self.units - self.multiple)
        if wanted > most:
            reach = (most * self.cost + sum(self.parameters[index] for index in removed)) / total
            raise UsageError(
                f"ratio {ratio:g} needs {wanted:,.0f} neurons out of {blocks} blocks that have {self.units} each; "
                f"at least {self.multiple} must stay in each",
                hint=f"--ratio {int(reach * 100) / 100:g}" if reach >= 0.01 else "--width-multiple 1",
            )
        return max(0.0, wanted)

    def widths(self, gone: float, blocks: Collection[int], shares: Mapping[int, float] | None = None) -> dict[int, int]:
        """Block -> how many neurons stay when `gone` are removed: equally many each, or in proportion to `shares`.

        Widths are multiples, and together as near as these can be.
        """
        if shares is None:
            return dict.fromkeys(blocks, self._rounded(self.units - gone / len(blocks)))
        cuts = spread(gone, [shares[block] for block in blocks], self.units - self.multiple)
        return dict(zip(blocks, self._rounded_together([self.units - cut for cut in cuts]), strict=True))

    def ratio(self, removed: Collection[int], widths: Mapping[int, int]) -> float:
        """The fraction of the blocks' parameters that these blocks and widths remove."""
        gone = sum(self.parameters[index] for index in removed)
        gone += sum(self.cost * (self.units - width) for width in widths.values())
        return gone / sum(self.parameters.values())

    def _rounded(self, width: float) -> int:
        return min(self.units, max(self.multiple, round(width / self.multiple) * self.multiple))

    def _rounded_together(self, widths: list[float]) -> list[int]:
        """Multiples whose sum is nearest to that of the widths (largest remainder)."""
        steps = [width / self.multiple for width in widths]
        found = [max(1, int(step)) for step in steps]
        order = sorted(range(len(steps)), key=lambda place: int(steps[place]) - steps[place])
        for place in order[: max(0, round(sum(steps)) - sum(found))]:
            found[place] += 1
        return [min(self.units, step * self.multiple) for step in found]


def spread(total: float, shares: Iterable[float], limit: float) -> list[float]:
    """`total` in proportion to shares, none above `limit`; what does not fit goes to the others in proportion."""
    wanted = list(shares)
    found, free, left = [0.0] * len(wanted), set(range(len(wanted))), total
    while free and left > 1e-9:
        each_share = left / (sum(wanted[place] for place in free) or 1.0)
        over = {place for place in free if wanted[place] * each_share >= limit}
        for place in over or free:
            found[place] = limit if over else wanted[place] * each_share
        left = 0.0 if not over else left - limit * len(over)
        free -= over or free
    return found


def neurons(ctx: Context) -> Neurons:
    """Find the neurons of a model's feed-forward layers, all blocks equally wide.

    Raises UnsupportedError when they cannot be cut, or when config.json could not say so; before any long work.
    """
    model = ctx.model
    if ctx.layout == "per-layer":
        refuse_per_layer(model)
    ffns = find_ffns(model)
    ffn = next(iter(ffns.values()))
    multiple = ctx.width_multiple or default_multiple(ffn.units)
    if multiple >= ffn.units:
        raise UsageError(
            f"blocks of {ffn.units} neurons cannot be cut to a multiple of {multiple}", hint="--width-multiple 1"
        )
    find_width_key(model, ffns, multiple)
    return Neurons(ffns, ffn.units, _cost(model, ffn), _parameters(model), multiple)


def allotted(ctx: Context, found: Neurons) -> dict[int, float] | None:
    """How many neurons blocks lose by an allocator's budget, relative to each other; None without one.

    A block's share is the mean sparsity of the linears that make and read its neurons, weighted by their size.
    """
    if ctx.budget is None:
        return None
    linears, shares = ctx.model.linears(), {}
    for index, ffn in found.ffns.items():
        paths = [f"{ctx.model.blocks[index].path}.{name}" for name in (*ffn.writers, ffn.reader)]
        zeros = sum(linears[path].parameters * ctx.budget[path] for path in paths)
        shares[index] = zeros / sum(linears[path].parameters for path in paths)
    return shares


def plan_narrowing(
    ctx: Context,
    method: str,
    found: Neurons,
    widths: Mapping[int, int],
    removed: Collection[int] = (),
    evidence: dict[str, Any] | None = None,
) -> PrunePlan:
    """A plan that removes some blocks and leaves the others so many neurons wide, with a note where rounding shows."""
    if removed:
        plan_removal(ctx.model, removed)
    reached = found.ratio(removed, widths)
    if reached == 0:
        raise UsageError(
            f"ratio {ctx.ratio:g} is less than one step: widths are multiples of {found.multiple} neurons",
            hint=f"--width-multiple {max(1, found.multiple // 8)}, or a larger ratio",
        )
    if abs(reached - ctx.ratio) > 5e-4:
        ctx.note(
            f"{reached:.2%} of the blocks' parameters are removed, since widths are multiples of {found.multiple}; "
            f"{ctx.ratio:.2%} were asked for"
        )
    actions = [RemoveBlock(block=index) for index in sorted(removed)]
    actions += [Narrow(block=index, units=units) for index, units in sorted(widths.items())]
    return PrunePlan(method=method, ratio=ctx.ratio, actions=tuple(actions), evidence=evidence or {})


def check_narrowing(ctx: Context, plan: PrunePlan) -> dict[int, FFN]:
    """Where a plan, which a person may have edited, narrows the blocks of a model that it was applied to.

    Raises InputError when it asks for what is not there, UsageError when its widths do not fit the layout.
    """
    depth, removed = len(ctx.model.blocks), plan.removed_blocks()
    widths = plan.widths()
    if len(widths) + len(removed) < len(plan.actions):
        fitting = {f"block {index}" for index in removed} | {f"the mlp of block {index}" for index in widths}
        other = next(action for action in plan.actions if action.place not in fitting)
        can = f"{plan.method} removes blocks and neurons only"
        raise InputError(f"the plan wants {other.kind} for {other.place}; {can}")
    if missing := sorted(set(range(depth)) - widths.keys() - set(removed)):
        raise InputError(f"the plan has no action for block {missing[0]}", hint="give it all its neurons to keep them")
    if beyond := sorted(index for index in (*widths, *removed) if index >= depth):
        raise InputError(f"the plan names block {beyond[0]}; the model has blocks 0 to {depth - 1}")
    if removed:
        plan_removal(ctx.model, removed)
    if ctx.layout == "per-layer":
        refuse_per_layer(ctx.model)
    ffns = ctx.model.ffns
    find_width_key(ctx.model, ffns, max(widths.values()))
    for index, units in widths.items():
        if units > ffns[index].units:
            raise InputError(f"the plan leaves {units} neurons in block {index}, which has {ffns[index].units}")
    if ctx.layout == "uniform" and len(set(widths.values())) > 1:
        raise UsageError(
            f"the plan leaves {min(widths.values())} to {max(widths.values())} neurons in a block; uniform means one",
            hint=NEITHER,
        )
    return ffns


def planned_ratio(model: PrunableModel, plan: PrunePlan) -> float:
    """The fraction of the blocks' parameters that a plan removes."""
    ffn = next(iter(find_ffns(model).values()))
    found = Neurons({}, ffn.units, _cost(model, ffn), _parameters(model), 1)
    known = [index for index in plan.removed_blocks() if index < len(model.blocks)]  # others are refused later
    return found.ratio(known, plan.widths())


def _parameters(model: PrunableModel) -> dict[int, int]:
    """Block -> its parameters."""
    names = {block.index: model.block_tensors(block.index) for block in model.kept}
    return {index: _count(model.tensors[name].shape for name in held) for index, held in names.items()}


def refuse_per_layer(model: PrunableModel) -> None:
    """The model file of layout per-layer derives from a class of transformers' own, for a config without sections."""
    name = type(model.skeleton).__name__
    reason = None
    if runs_own_code(model):
        reason = f"{name} is built by code that came with the model"
    elif model.config.get_text_config() is not model.config:
        reason = f"the config of {name} has a section for text"
    if reason:
        raise UnsupportedError(f"layout per-layer writes a {MODULE} for plain models; {reason}", hint="--layout padded")


def _cost(model: PrunableModel, ffn: FFN) -> int:
    """Parameters of one neuron: what the block loses with it."""
    block = model.blocks[ffn.block]
    shapes = {name: model.tensors[name].shape for name in model.block_tensors(ffn.block)}
    fewer = [
        ffn.shape(name.removeprefix(f"{block.path}."), shape, ffn.units - 1, model.is_transposed(name))
        for name, shape in shapes.items()
    ]
    return _count(shapes.values()) - _count(fewer)


def _count(shapes: Iterable[Iterable[int]]) -> int:
    return sum(int(torch.Size(shape).numel()) for shape in shapes)
