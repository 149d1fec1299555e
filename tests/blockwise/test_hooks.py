"""Which inputs reach which accumulator, and how much of a block is run for it."""

from typing import Self

import pytest
import torch
from torch import Tensor, nn

from prunekit.blockwise.hooks import collect, find_groups
from prunekit.blockwise.statistics import InputNorm, Statistics

BATCHES = [torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


class Sum(Statistics):
    """Keeps the sum of all inputs and how often it was fed."""

    def __init__(self) -> None:
        self.total, self.times = 0.0, 0

    @classmethod
    def begin(cls, inputs: int, device: torch.device) -> Self:
        assert inputs == 4
        return cls()

    def add(self, x: Tensor) -> None:
        self.total, self.times = self.total + float(x.double().sum()), self.times + 1

    def problem(self) -> str | None:
        return None if self.times else "nothing"


class Attention(nn.Module):
    """q, k and v read one tensor, o another, and `tail` comes after them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
        self.tails = 0

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        out = self.o(q * k + self.v(x))
        self.tails += 1
        return out


class Twice(nn.Module):
    """`a` is called twice, `b` only for sums above zero, `c` never."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.a(x))
        return self.b(x) if x.sum() > 0 else x


def parts(block: nn.Module) -> dict[str, nn.Module]:
    return dict(block.named_children())


def run(block: nn.Module, groups: list[list[str]] | None) -> dict[str, Sum]:
    forwards = [lambda x=x: block(x) for x in BATCHES]
    return collect(parts(block), dict.fromkeys(parts(block), 4), Sum, forwards, groups)


def total(x: list[Tensor]) -> float:
    return float(sum(part.double().sum() for part in x))


@torch.no_grad()
def test_linears_that_read_one_tensor_are_one_group_in_the_order_they_are_called() -> None:
    block = Attention()

    assert find_groups(parts(block), lambda: block(BATCHES[0])) == [["q", "k", "v"], ["o"]]


@torch.no_grad()
def test_equal_tensors_that_are_not_the_same_and_tensors_changed_in_place_are_told_apart() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.a(x), self.b(x.clone())
            x += 1
            return first + second + self.c(x)

    block = Changing()

    assert find_groups(parts(block), lambda: block(BATCHES[0].clone())) == [["a"], ["b"], ["c"]]


@torch.no_grad()
def test_a_shared_input_is_accumulated_once_for_all_that_read_it() -> None:
    found = run(Attention(), [["q", "k", "v"], ["o"]])

    assert found["q"] is found["k"] is found["v"] is not found["o"]
    assert found["q"].times == found["o"].times == len(BATCHES)
    assert found["q"].total == pytest.approx(total(BATCHES))


@torch.no_grad()
def test_a_run_of_the_block_ends_at_the_last_input_that_is_wanted() -> None:
    block = Attention()

    run(block, [["q", "k", "v"], ["o"]])

    assert block.tails == 0


@torch.no_grad()
def test_one_group_alone_can_be_collected() -> None:
    assert list(run(Attention(), [["o"]])) == ["o"]
    assert list(run(Attention(), [["q", "k", "v"]])) == ["q", "k", "v"]


@torch.no_grad()
def test_linears_called_twice_or_never_make_the_block_irregular() -> None:
    block = Twice()

    assert find_groups(parts(block), lambda: block(BATCHES[0])) is None
    assert find_groups({"a": block.a}, lambda: block(BATCHES[0])) is None
    assert find_groups({"c": block.c}, lambda: block(BATCHES[0])) is None


@torch.no_grad()
def test_in_an_irregular_block_every_call_counts() -> None:
    block = Twice()

    found = run(block, None)

    assert list(found) == ["a", "b", "c"]
    assert found["a"].times == 2 * len(BATCHES)
    assert found["a"].total == pytest.approx(total([*BATCHES, *(block.a(x) for x in BATCHES)]), rel=1e-5)
    outputs = [block.a(block.a(x)) for x in BATCHES]
    assert found["b"].times == sum(bool(x.sum() > 0) for x in outputs)
    assert found["c"].problem() == "nothing"


@torch.no_grad()
def test_a_block_that_breaks_the_promise_of_its_groups_is_collected_call_by_call() -> None:
    found = run(Twice(), [["a"], ["c"], ["b"]])

    assert found["a"].times == 2 * len(BATCHES)
    assert found["c"].times == 0


@torch.no_grad()
def test_groups_of_another_block_do_not_mix_inputs_that_this_one_keeps_apart() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(2 * x)

    found = run(Apart(), [["a", "b"]])

    assert found["a"].total == pytest.approx(total(BATCHES))
    assert found["b"].total == pytest.approx(2 * total(BATCHES), rel=1e-5)
    assert found["a"].times == found["b"].times == len(BATCHES)


@torch.no_grad()
def test_an_input_given_by_name_is_heard() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(input=x)

    assert run(ByName(), [["a"]])["a"].total == pytest.approx(total(BATCHES))


@torch.no_grad()
@pytest.mark.parametrize("groups", [[["q", "k", "v"], ["o"]], None])
def test_no_hook_is_left_behind_even_after_an_error(groups: list[list[str]] | None) -> None:
    block = Attention()

    with pytest.raises(RuntimeError):
        collect(parts(block), dict.fromkeys(parts(block), 4), InputNorm, [lambda: block(torch.ones(5))], groups)

    assert not any(part._forward_pre_hooks for part in block.modules())
