"""How fast models generate, beside the baseline: timed in turn, in one process, so that a busy machine slows both.

    first_token   seconds from the prompt to the first new token, by `generate`
    prefill       prompt tokens of all sequences / first_token
    decode        new tokens of all sequences after the first / the seconds that they took

A round times the baseline and the model once each, and the next round in the other order. A ratio is that of one round;
what is reported is the median of all rounds' ratios with its interval. FLOPs are counted, on the meta device.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark.utils.timer import timer  # waits for the accelerator
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from prunekit.errors import UnsupportedError, UsageError
from prunekit.evaluate.compiling import compilation
from prunekit.evaluate.intervals import FEWEST, rate
from prunekit.evaluate.rows import Count, Speed, ratio
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.skeleton import build_skeleton, load_config, load_whole
from prunekit.progress import Progress, Silent
from prunekit.text.calibration import max_positions

WARM_UP = 2  # rounds that do not count: caches fill, kernels are chosen


@dataclass(frozen=True)
class SpeedOptions:
    """What is timed."""

    batch_size: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 32
    rounds: int = 15
    compile: bool = False

    def refuse_senseless(self, checkpoints: Sequence[Checkpoint], trust_remote_code: bool) -> None:
        """Raise UsageError for a text that is too long for a model, and for too little to measure."""
        if self.rounds < FEWEST:
            raise UsageError(f"{self.rounds} rounds give no interval; expected at least {FEWEST}", hint="--rounds 15")
        for checkpoint in checkpoints:
            longest = max_positions(load_config(checkpoint, trust_remote_code))
            if longest is not None and self.prompt_tokens + self.new_tokens > longest:
                raise UsageError(
                    f"{self.prompt_tokens} + {self.new_tokens} tokens are more than the {longest} that "
                    f"{checkpoint.folder.name} takes",
                    hint="--prompt-tokens N --new-tokens M choose fewer",
                )


@dataclass(frozen=True)
class Place:
    """Where and how precisely a model runs, and whether its own code may."""

    device: torch.device
    dtype: torch.dtype
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Round:
    """One generation: seconds to the first new token, and for all that came after it."""

    first: float
    rest: float


class Clock(BaseStreamer):
    """What `generate` tells of every token; the first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(timer())

    def end(self) -> None:
        """Nothing is left to say."""


class Runner:
    """A loaded model that generates from a random prompt, (batch, tokens)."""

    def __init__(self, model: PreTrainedModel, options: SpeedOptions, vocabulary: int | None = None) -> None:
        self.model, self.options = model, options
        choices = vocabulary or model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        shape = (options.batch_size, options.prompt_tokens)
        self.ids = torch.randint(choices, shape, generator=generator).to(model.device)
        self.how = GenerationConfig(
            max_new_tokens=options.new_tokens,
            min_new_tokens=options.new_tokens,  # no early end
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static" if options.compile else None,
        )
        if options.compile:
            model.forward = torch.compile(model.forward)

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: SpeedOptions, place: Place) -> "Runner":
        """Load a model whole."""
        loaded: Any = load_whole(checkpoint, dtype=place.dtype, trust_remote_code=place.trust_remote_code)
        return cls(loaded.to(place.device), options)

    @torch.inference_mode()
    def run(self) -> Round:
        """One generation; the first one compiles where that is asked for, within `compilation`."""
        clock = Clock()
        start = timer()
        generate: Any = self.model.generate
        generate(
            self.ids,
            attention_mask=torch.ones_like(self.ids),
            generation_config=self.how,
            streamer=clock,
        )
        _, first, *rest = clock.times
        if len(rest) != self.options.new_tokens - 1:
            raise UnsupportedError(f"the model gave {len(rest) + 1} tokens; {self.options.new_tokens} were expected")
        return Round(first - start, rest[-1] - first)


def timed(
    runners: Sequence[Runner], rounds: int, progress: Progress | None = None, name: str = "models"
) -> list[list[Round]]:
    """What each runner took in each round, after the warm-up; the order is turned round every time."""
    found: list[list[Round]] = []
    gc.collect()
    gc.freeze()  # what is there now need not be searched again before each round
    try:
        with compilation():
            for stage, count in ((f"warm-up of {name}", WARM_UP), (f"speed of {name}", rounds)):
                (progress or Silent()).stage(stage, count)
                found = [[] for _ in runners]
                for number in range(count):
                    gc.collect()
                    for place in range(len(runners)) if number % 2 else reversed(range(len(runners))):
                        found[place].append(runners[place].run())
                    (progress or Silent()).step()
    finally:
        gc.unfreeze()
    return found


def summary(
    mine: Sequence[Round],
    dense: Sequence[Round] | None,
    options: SpeedOptions,
    place: Place,
    flops: int | None = None,
    peak: int | None = None,
) -> Speed:
    """Rounds as a row's figures; with the baseline's of the same rounds, also as ratios."""
    prompt, rest = options.batch_size * options.prompt_tokens, options.batch_size * (options.new_tokens - 1)

    def rates(rounds: Sequence[Round]) -> tuple[list[float], ...]:
        return (
            [prompt / one.first for one in rounds],
            [rest / one.rest for one in rounds],
            [one.first for one in rounds],
        )

    theirs = (None, None, None) if dense is None else rates(dense)
    prefill, decode, first = (rate(ours, other) for ours, other in zip(rates(mine), theirs, strict=True))
    return Speed(
        prefill=prefill,
        decode=decode,
        first_token=first,
        peak_memory=None if peak is None else Count(value=peak),
        flops_per_token=None if flops is None else Count(value=flops),
        rounds=len(mine),
        batch_size=options.batch_size,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        device=str(place.device),
        dtype=str(place.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        compiled=options.compile,
    )


def beside(speed: Speed, dense: Speed) -> Speed:
    """A model's figures with the counted ones as ratios, too."""

    def counted(mine: Count | None, other: Count | None) -> Count | None:
        return mine and mine.model_copy(update={"ratio": other and ratio(mine.value, other.value)})

    return speed.model_copy(
        update={
            "peak_memory": counted(speed.peak_memory, dense.peak_memory),
            "flops_per_token": counted(speed.flops_per_token, dense.flops_per_token),
        }
    )


def flops_per_token(checkpoint: Checkpoint, tokens: int, trust_remote_code: bool = False) -> int | None:
    """Operations of one forward pass over a prompt, divided by its tokens; a multiplication and an addition are two.

    Counted without weights. Attention counts all pairs of tokens, as a kernel that does not skip the later ones would
    compute. None for a model whose way depends on its numbers (mixtures of experts), which have none here.
    """
    skeleton: Any = build_skeleton(checkpoint, trust_remote_code=trust_remote_code)
    model, ids = skeleton.to("meta"), torch.zeros(1, tokens, dtype=torch.int64, device="meta")
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=ids)
    except Exception:  # in as many ways as there are families
        return None
    return round(counter.get_total_flops() / tokens)
