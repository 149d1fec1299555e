"""Every allocator under every method that takes a budget: the tables of docs/methods/alphapruning.md.

    python docs/scripts/allocation_study.py --work study
    python docs/scripts/allocation_study.py --work study-2 --model MODEL --calib train.txt --held-out test.txt
    python docs/scripts/allocation_study.py --work study --show         # the tables of what is done so far

A cell is one allocation, one run of the method with it, and the perplexity of what comes out on held-out text, windows
of 512 tokens. Each cell's calibration set is that of its seed. What is finished is kept in WORK/results.jsonl; a study
that was stopped goes on from there. The tables show means over the seeds, in brackets how far apart these lie.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from study import Cells, over_seeds, settings_of_a_study
from transformers import AutoConfig, AutoTokenizer

from prunekit.contract import Context, carry_out
from prunekit.evaluate.perplexity import find_protocol, perplexity, windows
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.hub import locate
from prunekit.model.prunable import PrunableModel
from prunekit.recipe import registry
from prunekit.text.calibration import calibrate, max_positions
from prunekit.text.sources import load_text
from prunekit.weights.allocation import per_block

METHODS = ("wanda", "sparsegpt", "magnitude")
ALLOCATORS = ("uniform", "owl", "alphapruning", "measured")
TITLES = {
    "owl": "OWL",
    "alphapruning": "AlphaPruning",
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
}
TIE = 0.01  # of the smaller perplexity: nearer than that, or than the seeds' spread, nobody has won


def main() -> None:
    parser = settings_of_a_study(__doc__)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.7, 0.8, 0.6, 0.5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="only these are run")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences")
    parser.add_argument("--seq-len", type=int, default=256, help="their tokens")
    parser.add_argument("--windows", type=int, default=32, help="windows of 512 tokens to measure on")
    parser.add_argument("--measure-samples", type=int, default=16, help="sequences that `measured` measures on")
    parser.add_argument("--rounds", type=int, default=2, help="of `measured`")
    parser.add_argument("--mapping", choices=("matrix", "block"), default="matrix", help="of `measured`")
    parser.add_argument("--show", action="store_true", help="only print the tables")
    study = Study(parser.parse_args())
    if not study.given.show:
        study.run()
    print(study.tables())


class Study:
    """The cells that are done, and the means to do the others."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.folder = locate(given.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.done = Cells(given.work)

    def run(self) -> None:
        """Do what is not done yet, one seed after the other."""
        positions = max_positions(AutoConfig.from_pretrained(self.folder))
        text = load_text(self.given.held_out, split="evaluation")
        held_out = windows(text, self.tokenizer, find_protocol("sparsegpt"), positions, self.given.windows)
        self.done.keep(("dense",), lambda: {"perplexity": perplexity(self._model(), held_out)})
        for seed in self.given.seeds:
            ids = self._calibration(seed)
            for ratio in self.given.ratios:
                for method in self.given.methods:
                    for allocator in ALLOCATORS:
                        cell = partial(self._cell, method, ratio, allocator, ids, held_out)
                        self.done.keep((method, ratio, allocator, seed), cell)

    def _calibration(self, seed: int) -> torch.Tensor:
        wanted = {"samples": self.given.samples, "seq_len": self.given.seq_len, "seed": seed}
        return calibrate(self.given.calib, self.tokenizer, **wanted).ids

    def _model(self) -> PrunableModel:
        return PrunableModel.open(Checkpoint.open(self.folder), device="cpu")

    def _without_text(self, method: str, ratio: float, allocator: str) -> dict[str, Any] | None:
        """What another seed found, where neither the method nor the allocator looks at a text."""
        if registry.load(method).needs.calibration or registry.load(allocator, "allocator").needs.calibration:
            return None
        found = [cell for key, cell in self.done.items() if key[:3] == (method, ratio, allocator)]
        return {name: value for name, value in found[0].items() if name != "key"} if found else None

    def _cell(
        self, name: str, ratio: float, allocator: str, ids: torch.Tensor, held_out: torch.Tensor
    ) -> dict[str, Any]:
        """Allocate, prune, measure."""
        if known := self._without_text(name, ratio, allocator):
            return known
        ctx = Context(self._model(), ratio, ids[:1, :64], method=name, calibration=ids, batch_size=8)
        own = {"samples": self.given.measure_samples, "rounds": self.given.rounds, "mapping": self.given.mapping}
        options = own if allocator == "measured" else {}
        started = time.perf_counter()
        ctx.budget = registry.load(allocator, "allocator")(**options).allocate(ctx, ratio)
        seconds, method = time.perf_counter() - started, registry.load(name)()
        with TemporaryDirectory() as folder:
            ctx.model = ctx.model.with_edits(Staging.open(Path(folder) / "out", {}).edits)
            carry_out(method, ctx, method.plan(ctx))
            found = perplexity(ctx.model, held_out)
        blocks = per_block(ctx, ctx.budget)
        return {"perplexity": found, "seconds": round(seconds, 1), "blocks": blocks, "notes": ctx.notes}

    def tables(self) -> str:
        """One Markdown table per method, of the ratios that are done for every allocator, and who beats whom."""
        parts = ["\n".join(self._table(method)) for method in METHODS]
        dense = f"dense: {self.done['dense',]['perplexity']:.2f}"
        return "\n\n".join([dense, *(part for part in parts if part), "\n".join(self._duels())])

    def _table(self, method: str) -> Iterator[str]:
        ratios = [r for r in sorted(self.given.ratios) if all(self._found(method, r, a) for a in ALLOCATORS)]
        if not ratios:
            return
        yield f"| {TITLES[method]} | " + " | ".join(f"{ratio:.0%}".replace("%", " %") for ratio in ratios) + " |"
        yield "|---|" + "---|" * len(ratios)
        for allocator in ALLOCATORS:
            entries = [self._entry(method, ratio, allocator) for ratio in ratios]
            yield f"| {TITLES.get(allocator, f'`{allocator}`')} | " + " | ".join(entries) + " |"

    def _found(self, method: str, ratio: float, allocator: str) -> list[float]:
        cells = [self.done.get((method, ratio, allocator, seed)) for seed in self.given.seeds]
        return [cell["perplexity"] for cell in cells if cell]

    def _entry(self, method: str, ratio: float, allocator: str) -> str:
        """The mean and how far apart the seeds lie; the smallest mean of the column is bold."""
        found, seeds = self._found(method, ratio, allocator), len(self.given.seeds)
        text = over_seeds(found, seeds) if seeds > 1 else f"{fmean(found):.2f}"
        best = min(fmean(self._found(method, ratio, other)) for other in ALLOCATORS)
        return f"**{text}**" if fmean(found) == best else text

    def _duels(self) -> Iterator[str]:
        """How often `measured` wins, ties and loses against each of the others, cell by cell with the same seed."""
        yield "| `measured` against | won | tied | lost | worst loss |"
        yield "|---|---|---|---|---|"
        for other in ALLOCATORS[:-1]:
            ratios = list(self._ratios(other))
            won, lost = sum(x < 1 - TIE for x in ratios), sum(x > 1 + TIE for x in ratios)
            worst = f"{max(ratios, default=1) - 1:+.1%}".replace("%", " %") if lost else ""
            yield f"| {TITLES.get(other, other)} | {won} | {len(ratios) - won - lost} | {lost} | {worst} |"

    def _ratios(self, other: str) -> Iterator[float]:
        for method, ratio, allocator, seed in (key for key in self.done if len(key) == 4):
            if allocator == "measured" and (found := self.done.get((method, ratio, other, seed))):
                yield self.done[method, ratio, "measured", seed]["perplexity"] / found["perplexity"]


if __name__ == "__main__":
    main()
