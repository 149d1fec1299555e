"""Speed: the arithmetic of intervals on made-up timings, and what a row says; nothing here depends on the clock."""

import random
from collections.abc import Callable
from math import comb
from pathlib import Path
from statistics import median

import pytest
import torch

from prunekit.errors import UsageError
from prunekit.evaluate import side_by_side, timing
from prunekit.evaluate import speed as module
from prunekit.evaluate.intervals import FEWEST, median_interval, rate
from prunekit.evaluate.memory import peak_memory
from prunekit.evaluate.speed import Place, Round, Runner, SpeedOptions, beside, flops_per_token, summary, timed
from prunekit.model.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

Model = Callable[..., Path]
CPU = Place(torch.device("cpu"), torch.float32)
SHORT = SpeedOptions(batch_size=2, prompt_tokens=8, new_tokens=4, rounds=6)


def noisy(chance: random.Random, factor: float = 1.0) -> float:
    """A time with a long tail, as a busy machine makes them."""
    return factor * (1 + chance.expovariate(4) + (chance.random() < 0.1) * 5 * chance.random())


def test_an_interval_needs_enough_values() -> None:
    assert median_interval([]) is None
    assert median_interval([1.0] * (FEWEST - 1)) is None
    assert median_interval([6.0, 1.0, 5.0, 2.0, 4.0, 3.0]) == (1.0, 6.0)


@pytest.mark.parametrize("count", [6, 7, 9, 15, 16, 40, 101])
def test_an_interval_is_the_narrowest_that_misses_with_at_most_5_percent(count: int) -> None:
    def misses(left_out: int) -> float:
        return 2 * sum(comb(count, k) for k in range(left_out + 1)) / 2**count

    found = median_interval([float(n) for n in range(count)])
    assert found is not None
    left_out = int(found[0])
    assert found[1] == count - 1 - left_out
    assert misses(left_out) <= 0.05 < misses(left_out + 1)


def test_an_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    chance = random.Random(0)
    covered = 0
    for _ in range(400):
        dense = [noisy(chance) for _ in range(15)]
        found = rate([1 / noisy(chance) for _ in dense], [1 / one for one in dense])
        assert found.ratio_low is not None and found.ratio_high is not None
        covered += found.ratio_low <= 1 <= found.ratio_high
    assert covered >= 0.95 * 400, "both models are as fast as each other, so the true median of the ratio is 1"


def test_a_model_that_is_faster_is_found_to_be_so() -> None:
    chance = random.Random(0)
    found = rate([1 / noisy(chance, 0.5) for _ in range(101)], [1 / noisy(chance) for _ in range(101)])
    assert found.ratio_low is not None and found.ratio_high is not None
    assert 1.5 < found.ratio_low < 2 < found.ratio_high < 2.5


def test_a_ratio_is_taken_round_by_round_so_that_a_busy_round_slows_both() -> None:
    busy = [1.0, 1.0, 9.0, 1.0, 30.0, 1.0, 1.0]
    found = rate([2 / slow for slow in busy], [1 / slow for slow in busy])
    assert (found.ratio, found.ratio_low, found.ratio_high) == (2.0, 2.0, 2.0)
    assert found.value == median(2 / slow for slow in busy)
    assert rate([1.0, 2.0, 3.0]).ratio is None


def test_a_row_is_made_of_its_rounds() -> None:
    dense, mine = [Round(2.0, 3.0)] * 6, [Round(1.0, 2.0)] * 6
    own = summary(dense, None, SHORT, CPU, flops=100, peak=1000)
    found = beside(summary(mine, dense, SHORT, CPU, flops=75, peak=None), own)

    assert (found.prefill.value, found.prefill.ratio) == (2 * 8 / 1.0, 2.0)
    assert (found.decode.value, found.decode.ratio) == (2 * 3 / 2.0, 1.5), "the first new token belongs to the prefill"
    assert (found.first_token.value, found.first_token.ratio) == (1.0, 0.5)
    assert found.flops_per_token is not None and found.flops_per_token.ratio == 0.75
    assert found.peak_memory is None
    assert (found.rounds, found.device, found.dtype, found.compiled) == (6, "cpu", "float32", False)


def test_models_take_turns_and_the_first_rounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self) -> Round:
            called.append(self.name)
            return Round(float(len(called)), 1.0)

    found = timed([Fake("a"), Fake("b")], 4)  # pyright: ignore[reportArgumentType]
    turns = ["".join(called[start : start + 2]) for start in range(0, len(called), 2)]
    assert turns == ["ba", "ab"] * 3
    assert [len(rounds) for rounds in found] == [4, 4]
    assert min(one.first for rounds in found for one in rounds) > 2 * module.WARM_UP


def test_a_model_is_timed_token_by_token(tiny_llama: Model) -> None:
    runner = Runner.load(Checkpoint.open(tiny_llama(eos_token_id=3)), SHORT, CPU)
    assert runner.ids.shape == (2, 8)
    found = runner.run()
    assert found.first > 0 and found.rest > 0


def test_flops_are_counted_as_by_hand(tiny_llama: Model) -> None:
    hidden, inner, vocabulary, blocks, tokens = 32, 64, 320, 4, 16
    attention = 2 * hidden * hidden + 2 * hidden * hidden // 2  # q and o, k and v of half as many heads
    weights = blocks * (attention + 3 * hidden * inner) + vocabulary * hidden
    pairs = blocks * 2 * tokens * hidden  # scores and their sum of values, over all pairs
    checkpoint = Checkpoint.open(tiny_llama())
    assert flops_per_token(checkpoint, tokens) == 2 * (weights + pairs)


def test_what_cannot_be_timed_is_refused_before_the_work(tiny_llama: Model) -> None:
    checkpoint = Checkpoint.open(tiny_llama())
    with pytest.raises(UsageError, match=r"128 \+ 32 tokens are more than the 128"):
        SpeedOptions().refuse_senseless([checkpoint], False)
    with pytest.raises(UsageError, match="5 rounds give no interval; expected at least 6"):
        SpeedOptions(rounds=5, prompt_tokens=8).refuse_senseless([checkpoint], False)


@pytest.mark.fresh
def test_peak_memory_is_that_of_a_process_of_its_own(tiny_llama: Model) -> None:
    wide = tiny_llama(name="wide", hidden_size=512, intermediate_size=2048, vocab_size=8000)
    size = sum(path.stat().st_size for path in wide.glob("*.safetensors"))
    found = peak_memory(wide, SHORT, CPU)
    assert found is not None and 0.5 * size < found < 5 * size, "of the size of the weights, and not of the libraries"
    assert peak_memory(wide / "nowhere", SHORT, CPU) is None


def test_rows_hold_speeds_and_ratios_of_two_models(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "peak_memory", lambda *_: 1000)
    dense, shallow = str(tiny_llama(name="dense")), str(tiny_llama(name="shallow", num_hidden_layers=2))
    done = side_by_side.evaluate(
        [shallow], side_by_side.Questions(texts=side_by_side.Texts(["none"]), speed=SHORT), baseline=dense
    )
    first, second = (row.speed for row in done.models)

    assert first is not None and second is not None
    assert first.prefill.ratio is None and second.prefill.ratio is not None
    assert second.decode.ratio_low is not None and second.decode.ratio_low <= second.decode.ratio
    assert second.flops_per_token is not None and second.flops_per_token.ratio is not None
    assert 0.4 < second.flops_per_token.ratio < 0.8
    assert second.peak_memory is not None and second.peak_memory.ratio == 1.0
    alone = (
        side_by_side.evaluate([dense], side_by_side.Questions(texts=side_by_side.Texts(["none"]), speed=SHORT))
        .models[0]
        .speed
    )
    assert alone is not None and alone.prefill.ratio is None and alone.decode.value > 0
