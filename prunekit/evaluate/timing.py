"""Speed and memory of models: each is timed in a session of its own, in which it takes turns with the baseline.

A ratio is of rounds of one session, so a session that was finished before an interruption is as good as one that comes
after it: it is kept, and one that was broken off is timed anew. Seconds of two sessions say nothing about each other,
since the machine may have been busier in one of them. The baseline's own are over the rounds of all sessions.
"""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import torch

from prunekit.evaluate.memory import peak_memory
from prunekit.evaluate.results_cache import Label, ResultsCache
from prunekit.evaluate.rows import Speed
from prunekit.evaluate.speed import Place, Round, Runner, SpeedOptions, beside, flops_per_token, summary, timed
from prunekit.formatting import listed
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.device import computed_on
from prunekit.progress import Progress, Silent

Session = tuple[list[Round] | None, list[Round]]  # the rounds of the baseline, if there is one, and of the model


@dataclass(frozen=True)
class Subject:
    """A model that is to be timed, and where it runs."""

    spec: str
    checkpoint: Checkpoint
    place: Place


@dataclass
class Sessions:
    """Sessions of one model after another with the baseline, or of each by itself if there is none."""

    dense: Subject | None
    options: SpeedOptions
    results: ResultsCache = field(default_factory=ResultsCache)
    progress: Progress = field(default_factory=Silent)

    def speeds(self, models: Sequence[Subject]) -> list[Speed]:
        """The baseline's speed and memory, if there is one, and those of the models."""
        everybody = [self.dense, *models] if self.dense else models
        self.progress.stage("memory", len(everybody))
        counted = {one.spec: self._counted(one) for one in everybody}
        if kept := [one.spec for one in models if self.results.holds(self._label(one))]:
            self.progress.note(f"timed before, and kept: {listed(kept)}")
        sessions = [self._session(one) for one in models]
        found = [
            summary(mine, theirs, self.options, one.place, **counted[one.spec])
            for one, (theirs, mine) in zip(models, sessions, strict=True)
        ]
        if self.dense is None:
            return found
        pooled = [one for theirs, _ in sessions for one in theirs or ()]
        own = summary(pooled, None, self.options, self.dense.place, **counted[self.dense.spec])
        return [beside(own, own), *(beside(speed, own) for speed in found)]

    def _counted(self, one: Subject) -> dict[str, int | None]:
        """What takes no clock: operations, and the peak of memory."""
        flops = flops_of(
            one.spec, one.checkpoint, self.options.prompt_tokens, one.place.trust_remote_code, self.results
        )
        label = Label("memory", (one.spec,), self._depends(one) | {"rounds": None, "compile": None})
        peak = self.results.figure(label, int, lambda: peak_memory(one.checkpoint.folder, self.options, one.place))
        self.progress.step(one.spec)
        return {"flops": flops, "peak": peak}

    def _session(self, one: Subject) -> Session:
        return self.results.figure(self._label(one), Session, lambda: self._timed(one))

    def _timed(self, one: Subject) -> Session:
        torch.compiler.reset()  # what a former session compiled counts towards a limit; the warm-up compiles anew
        gc.collect()  # a compiled model is in a cycle with itself
        mine = Runner.load(one.checkpoint, self.options, one.place)
        if self._runner is None:
            return None, timed([mine], self.options.rounds, self.progress, one.spec)[0]
        theirs, own = timed([self._runner, mine], self.options.rounds, self.progress, one.spec)
        return theirs, own

    @cached_property
    def _runner(self) -> Runner | None:
        """The baseline, which stays in memory from its first session to the last."""
        return self.dense and Runner.load(self.dense.checkpoint, self.options, self.dense.place)

    def _label(self, one: Subject) -> Label:
        return Label("speed", (*([self.dense.spec] if self.dense else []), one.spec), self._depends(one))

    def _depends(self, one: Subject) -> dict[str, object]:
        where: dict[str, object] = {"where": computed_on(one.place.device, one.place.dtype)}
        return where | asdict(self.options)


def flops_of(
    spec: str, checkpoint: Checkpoint, tokens: int, trust_remote_code: bool, results: ResultsCache
) -> int | None:
    """Operations per token of a prompt of so many, counted once."""
    label = Label("work", (spec,), {"tokens": tokens})
    return results.figure(label, int, lambda: flops_per_token(checkpoint, tokens, trust_remote_code))
