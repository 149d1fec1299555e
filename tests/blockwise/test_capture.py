"""How blocks are called, learned from toy models whose forward does one unusual thing each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import families
from prunekit.blockwise.capture import Call, alike, capture, logits_of, same
from prunekit.errors import UnsupportedError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel

IDS = torch.randint(0, 11, (5, 6), generator=torch.Generator().manual_seed(3))


class ToyBlock(nn.Module):
    kind = "attentive"

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = hidden_states * self.scale + 1
        return (out, out.mean(), None) if self.returns_tuple else out


class Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


Around = Callable[[list[nn.Module], Tensor, Tensor], Tensor]


class Toy:
    """What `capture` needs of a model; `around` is what it does with its blocks, the hidden states and the ids."""

    def __init__(self, around: Around, *, returns_tuple: bool = False) -> None:
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 4)
        self.stack = nn.ModuleList(ToyBlock(returns_tuple) for _ in range(3))
        self.blocks = list(self.stack)
        self.device = torch.device("cpu")
        self.around = around
        self.runs = 0

    def skeleton(self, input_ids: Tensor, use_cache: bool) -> Output:
        assert not use_cache
        self.runs += 1
        return Output(self.around(list(self.stack), self.embedding(input_ids), input_ids))

    @contextmanager
    def outside(self, *, head: bool = True) -> Iterator[Any]:
        yield self

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        yield self.blocks[index]

    @property
    def as_model(self) -> PrunableModel:
        return cast(PrunableModel, self)


def chain(*args: Any, **kwargs: Any) -> Around:
    """A forward that hands the same arguments to every block."""

    def around(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
        for block in blocks:
            result = block(hidden, *args, **kwargs)
            hidden = result[0] if isinstance(result, tuple) else result
        return hidden

    return around


def by_name(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
    for block in blocks:
        hidden = block(mask=1, hidden_states=hidden)
    return hidden


def replay(toy: Toy, batches: list[Tensor]) -> list[Tensor]:
    """Logits by running the blocks one by one, batch after batch, as the walker does."""
    captured = capture(toy.as_model, batches)
    for index, block in enumerate(toy.blocks):
        captured.hidden = [captured.calls[batch][index](block, hidden) for batch, hidden in enumerate(captured.hidden)]
    return [
        logits_of(toy.as_model, ids, hidden, captured.pack)
        for ids, hidden in zip(batches, captured.hidden, strict=True)
    ]


@pytest.mark.parametrize(
    ("around", "returns_tuple"),
    [(chain(), False), (chain("mask", rotary=(1, 2)), False), (chain(1), True), (by_name, False)],
)
@torch.no_grad()
def test_blocks_run_one_by_one_give_the_models_own_result(around: Around, returns_tuple: bool) -> None:
    toy, batches = Toy(around, returns_tuple=returns_tuple), list(IDS.split(2))

    expected = [toy.skeleton(ids, use_cache=False).logits for ids in batches]

    assert all(map(torch.equal, replay(toy, batches), expected))


@torch.no_grad()
def test_arguments_are_kept_as_they_were_given() -> None:
    mask, rotary = torch.ones(2), (torch.zeros(1), torch.ones(1))

    call = capture(Toy(chain(mask, rotary=rotary)).as_model, [IDS]).calls[0][1]

    assert call.args == (mask,)
    assert call.kwargs == {"rotary": rotary}
    assert not call.by_name


@torch.no_grad()
def test_the_models_blocks_are_back_in_place_afterwards() -> None:
    toy = Toy(chain())

    replay(toy, [IDS])

    assert list(toy.stack) == toy.blocks


@torch.no_grad()
def test_a_stand_in_has_the_attributes_of_its_block() -> None:
    def around(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
        assert all(block.kind == "attentive" and cast(Tensor, block.scale).shape == (4,) for block in blocks)
        return chain()(blocks, hidden, ids)

    assert replay(Toy(around), [IDS])


@torch.no_grad()
def test_batches_that_are_called_alike_share_their_calls_and_an_uneven_last_one_has_its_own() -> None:
    def around(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
        return chain(torch.ones(hidden.shape[:2]))(blocks, hidden, ids)

    calls = capture(Toy(around).as_model, list(IDS.split(2))).calls

    assert calls[0] is calls[1]
    assert calls[2] is not calls[0]
    assert calls[2][0].args[0].shape == (1, 6)


@torch.no_grad()
def test_arguments_that_depend_on_the_tokens_are_kept_per_batch_even_after_two_equal_batches() -> None:
    def around(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
        return chain(tokens=ids * 2)(blocks, hidden, ids)

    first, other = IDS[:2], IDS[2:4]
    calls = capture(Toy(around).as_model, [first, first.clone(), other, first]).calls

    assert calls[0] is calls[1] is calls[3]
    assert torch.equal(calls[2][0].kwargs["tokens"], other * 2)


@torch.no_grad()
def test_a_container_that_passes_through_several_blocks_is_never_shared_between_batches() -> None:
    def around(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
        return chain(shared={})(blocks, hidden, ids)

    calls = capture(Toy(around).as_model, [IDS, IDS]).calls

    assert calls[0][0].kwargs["shared"] is calls[0][2].kwargs["shared"]
    assert calls[1][0].kwargs["shared"] is not calls[0][0].kwargs["shared"]


def skipping(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
    return chain()(blocks[:2], hidden, ids)


def backwards(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
    return chain()(blocks[::-1], hidden, ids)


def repeating(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
    return chain()([blocks[0], *blocks], hidden, ids)


def rescaling(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
    return blocks[2](blocks[1](blocks[0](hidden)) / 2)


def unusual(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
    return blocks[0](x=hidden)


@pytest.mark.parametrize(
    ("around", "reason"),
    [
        (skipping, "called 2 of its 3 blocks"),
        (backwards, "ToyBlocks are not called once each, in order: 2 came as 0"),
        (repeating, "ToyBlocks are not called once each, in order: 0 came as 1"),
        (rescaling, "the hidden states are changed between two ToyBlocks"),
        (unusual, "ToyBlock is not called with hidden states first"),
    ],
)
@torch.no_grad()
def test_a_model_whose_blocks_are_no_chain_is_refused(around: Around, reason: str) -> None:
    toy = Toy(around)

    with pytest.raises(UnsupportedError, match=reason) as caught:
        capture(toy.as_model, [IDS])

    assert caught.value.exit_code == 3
    assert list(toy.stack) == toy.blocks


@torch.no_grad()
def test_a_model_that_hands_a_blocks_second_result_to_the_next_one_is_refused() -> None:
    def around(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
        extra = None
        for block in blocks:
            hidden, extra, _ = block(hidden, extra=None if extra is None else extra + 1)
        return hidden

    with pytest.raises(UnsupportedError, match="hands more than hidden states from block to block"):
        capture(Toy(around, returns_tuple=True).as_model, [IDS])


@torch.no_grad()
def test_a_model_that_goes_through_its_blocks_twice_is_refused() -> None:
    def around(blocks: list[nn.Module], hidden: Tensor, ids: Tensor) -> Tensor:
        return chain()([*blocks, *blocks], hidden, ids)

    with pytest.raises(UnsupportedError, match="each ToyBlock is called more than once"):
        replay(Toy(around), [IDS])


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("zaya", {}, "ZayaForCausalLM hands more than hidden states"),
        ("rwkv", {"num_hidden_layers": 7}, "changed between two RwkvBlocks"),
    ],
)
def test_families_whose_blocks_are_no_chain_are_refused_by_name(
    tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    model = PrunableModel.open(Checkpoint.open(families.save(family, tmp_path / "m", **changes)), device="cpu")

    with pytest.raises(UnsupportedError, match=reason):
        capture(model, [IDS])


def test_a_block_is_run_with_the_token_dependent_arguments_of_its_own_batch(tmp_path: Path) -> None:
    model = PrunableModel.open(Checkpoint.open(families.save("gemma3n", tmp_path / "m")), device="cpu")

    calls = capture(model, list(IDS.split(2))).calls

    assert calls[0] is not calls[1]
    assert not same(calls[0][0].values, calls[1][0].values)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (torch.ones(2), torch.ones(2), True),
        (torch.ones(2), torch.zeros(2), False),
        (torch.ones(2), torch.ones(1), False),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2), None, False),
        ((1, [torch.ones(2)]), (1, [torch.ones(2)]), True),
        ((1, torch.ones(2)), (1, torch.zeros(2)), False),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, True),
        ({"a": 1}, {"b": 1}, False),
        ("full", "full", True),
        (object(), object(), False),
    ],
)
def test_arguments_are_compared_by_value(one: object, other: object, equal: bool) -> None:
    assert same(one, other) is equal
    assert same(other, one) is equal
    assert same(one, one)


def test_objects_that_cannot_be_compared_are_taken_to_differ() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("ambiguous")

        __hash__ = object.__hash__

    call = Call((Odd(),), {}, by_name=False)
    assert not alike([call], [Call((Odd(),), {}, by_name=False)])
