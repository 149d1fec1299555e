"""Blocks that fade out: their gates over time, what they compute, and how far the hidden states get from the dense."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.train.fading import Fading, course, mismatch, outputs_of


def test_gates_close_together_or_one_after_the_other() -> None:
    joint = course([4, 2], 8, within=0.5, to=0, one_by_one=False)
    assert [round(joint(update)[4].gate, 2) for update in range(8)] == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    assert joint(3)[2] == joint(3)[4] and joint(3)[2].penalised and not joint(5)[2].penalised
    later = course([4, 2], 8, within=0.5, to=0, one_by_one=True)
    assert [later(update)[4].gate for update in range(8)] == [1, 0.5, 0, 0, 0, 0, 0, 0]
    assert [later(update)[2].gate for update in range(8)] == [1, 1, 1, 1, 1, 0.5, 0, 0]
    assert not later(2)[2].penalised and later(4)[2].penalised


def test_without_fading_blocks_are_out_from_the_first_update_or_from_that_of_their_share() -> None:
    at_once = course([4, 2], 8, within=0, to=0, one_by_one=False)
    assert {fade.gate for update in range(8) for fade in at_once(update).values()} == {0}
    later = course([4, 2], 8, within=0, to=0, one_by_one=True)
    assert [later(update)[2].gate for update in range(8)] == [1, 1, 1, 1, 0, 0, 0, 0]


def test_gates_of_the_paper_stay_open_and_penalised() -> None:
    joint = course([4, 2], 8, within=1, to=1, one_by_one=False)
    assert all(joint(update)[2].gate == 1 and joint(update)[2].penalised for update in range(8))
    later = course([4, 2], 8, within=1, to=1, one_by_one=True)  # the authors' code bypasses a block after its time
    assert [later(update)[4].gate for update in range(8)] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [later(update)[2].penalised for update in range(8)] == [False] * 4 + [True] * 4


@pytest.mark.parametrize("tuples", [False, True])
def test_a_fading_block_is_itself_at_one_and_nothing_at_zero(tuples: bool) -> None:
    class Block(nn.Module):
        def forward(self, hidden_states: Tensor, scale: float = 2.0) -> Any:
            return (hidden_states * scale, "rest") if tuples else hidden_states * scale

    x = torch.randn(2, 3, 4)
    fading = Fading(Block(), lambda hidden: (hidden, "rest") if tuples else hidden, again=False)

    def pack(gate: float) -> Tensor:
        fading.__dict__.update(gate=gate, norm=2)
        found = fading(x, scale=3.0)
        assert isinstance(found, tuple) == tuples
        return found[0] if tuples else found

    assert torch.equal(pack(1.0), 3 * x)
    assert torch.allclose(pack(0.5), 2 * x)
    assert fading.distance.item() == pytest.approx((2 * x).flatten(1).norm(dim=1).mean().item(), rel=1e-6)
    assert torch.equal(pack(0.0), x)
    assert fading.distance is None, "a block that is bypassed is not penalised"


class Scale(nn.Module):
    def __init__(self, by: float, tuples: bool = False) -> None:
        super().__init__()
        self.by, self.tuples = by, tuples

    def forward(self, hidden_states: Tensor) -> Any:
        return (self.by * hidden_states,) if self.tuples else self.by * hidden_states


def test_the_states_that_leave_each_block_are_overheard_only_while_inside() -> None:
    blocks, x = [Scale(2), Scale(3, tuples=True)], torch.ones(1, 2, 4)
    with outputs_of(blocks) as seen:
        blocks[1](blocks[0](x))
    blocks[0](5 * x)
    assert {place: state.unique().tolist() for place, state in seen.items()} == {0: [2], 1: [6]}


def test_the_mismatch_is_relative_to_each_token_and_leaves_out_the_blocks_that_go() -> None:
    dense = {0: torch.tensor([[[1.0, 0.0], [1000.0, 0.0]]]), 1: torch.ones(1, 2, 2), 2: torch.ones(1, 2, 2)}
    found = {0: dense[0] * 1.5, 1: torch.zeros(1, 2, 2), 2: torch.ones(1, 2, 2)}
    assert mismatch(found, dense, without={1}).item() == pytest.approx((0.25 + 0) / 2)
    assert mismatch(found, dense, without=()).item() == pytest.approx((0.25 + 1 + 0) / 3)
