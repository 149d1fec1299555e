"""COMP beside other ways to make a model narrower or shorter: the tables of docs/methods/comp.md.

    python docs/scripts/width_study.py --work study --other some-text-of-another-kind.txt
    python docs/scripts/width_study.py --work study2 --model MODEL --calib train.txt --held-out test.txt

Every cell plans and applies a method in a process of its own, as `prunekit prune` does, and measures the pruned model
on held-out text of the calibration's kind and on text of another kind; nothing is exported. Seconds and memory are
those of plan and apply: memory is the largest resident size that the cell reached above the one it began with. What is
finished is kept in WORK/results.jsonl; a study that was stopped goes on from there.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from study import Cells, over_seeds, settings_of_a_study

from prunekit.contract import carry_out
from prunekit.evaluate.perplexity import cut, find_protocol, read_text
from prunekit.export.staging import Staging
from prunekit.model.hub import locate
from prunekit.model.prunable import PrunableModel
from prunekit.progress import Silent
from prunekit.recipe import settings
from prunekit.run.job import Job
from prunekit.run.plug_ins import PlugIns


@dataclass(frozen=True)
class Arm:
    """One way to get a smaller model."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    layout: str | None = None


ARMS = (
    Arm("LLM-Pruner", "llm-pruner"),
    Arm("FLAP", "flap"),
    Arm("FLAP, widths by block", "flap", layout="per-layer"),
    Arm("Wanda-sp", "wanda-sp"),
    Arm("depth only (ShortGPT)", "shortgpt"),
    Arm("COMP, nothing made up for", "comp", {"recover": "none"}),
    Arm("COMP with masks (the paper)", "comp", {"recover": "mask"}),
    Arm("**COMP** with weights", "comp"),
    Arm("COMP, widths by block", "comp", layout="per-layer"),
    Arm("COMP, no block goes", "comp", {"layer_share": 0}),
    Arm("COMP, half of the ratio as blocks", "comp", {"layer_share": 0.5}),
    Arm("COMP, three quarters as blocks", "comp", {"layer_share": 0.75}),
    Arm("weights, towards the dense stream", "comp", {"target": "stream"}),
    Arm("the same, all of the ratio as blocks", "comp", {"target": "stream", "layer_share": 1}),
    Arm("weights of the layer alone, all as blocks", "comp", {"target": "layer", "layer_share": 1}),
    Arm("weights, neurons by refit error", "comp", {"score": "refit"}),
    Arm("weights, neurons by sensitivity", "comp", {"score": "sensitivity"}),
    Arm("weights, neurons by chance", "comp", {"score": "random"}),
)


def main() -> None:
    parser = settings_of_a_study(__doc__)
    parser.add_argument("--other", help="text of another kind to measure on")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--windows", type=int, default=32, help="windows of 512 tokens to measure on, of each text")
    parser.add_argument("--arms", nargs="+", help="only those whose names hold one of these words")
    study = Study(parser.parse_args())
    study.run()
    print(study.tables())


class Study:
    """The cells that are done, and the means to do the others."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.arms = [arm for arm in ARMS if not given.arms or any(word in arm.name for word in given.arms)]
        self.texts = [given.held_out, *([given.other] if given.other else [])]
        self.done = Cells(given.work)

    def run(self) -> None:
        """Do what is not done yet."""
        dense = Arm("dense", "layers", {"blocks": "0"})
        self.done.keep((dense.name, 0.0, 0), partial(in_a_child, partial(self._cell, dense, 0.0, 0)))
        for seed in self.given.seeds:
            for arm in self.arms:
                for ratio in self.given.ratios:
                    cell = partial(self._cell, arm, ratio, seed)
                    self.done.keep((arm.name, ratio, seed), partial(in_a_child, cell))

    def _cell(self, arm: Arm, ratio: float, seed: int) -> dict[str, Any]:
        """Prune and measure; with ratio 0 the dense model is measured."""
        job = self._job(arm, ratio, seed)
        place = self.given.work / f"cell-{os.getpid()}"
        found: dict[str, Any] = {}
        with Staging.open(place / "out", job.signature()) as staging:
            if ratio:
                started, floor = time.perf_counter(), begin_of_peak()
                ctx = job.context(staging)
                plan = job.plan(ctx)
                carry_out(job.plug_ins.method, ctx, plan)
                peak = highest()
                found = {"seconds": round(time.perf_counter() - started, 1), "peak": peak - floor}
                found |= {"removed": plan.removed_blocks(), "widths": list(plan.widths().values()), "notes": ctx.notes}
            measured = ctx.model if ratio else job.model
            found["perplexity"] = [self._measure(job, measured, text) for text in self.texts]
        shutil.rmtree(place, ignore_errors=True)
        return found

    def _job(self, arm: Arm, ratio: float, seed: int) -> Job:
        flags = {
            "model": self.given.model,
            "method": arm.method,
            "calib": self.given.calib,
            "samples": self.given.samples,
            "seq_len": self.given.seq_len,
            "seed": seed,
        }
        flags |= {"ratio": ratio} if ratio else {}
        flags |= {"layout": arm.layout} if arm.layout else {}
        recipe, _ = settings.build(flags, [f"options.{key}={json.dumps(value)}" for key, value in arm.options.items()])
        return Job.load(recipe, PlugIns.of(recipe), locate(str(recipe.model)), Silent(), True)

    def _measure(self, job: Job, model: PrunableModel, text: str) -> float:
        assert job.tokenizer is not None
        windows = cut(
            read_text(text, offline=True),
            job.model.config,
            job.tokenizer,
            find_protocol("sparsegpt"),
            self.given.windows,
        )
        return float(windows.measure(model).record()["value"])

    def tables(self) -> str:
        """One Markdown table per text, and one of memory and time: arms down, ratios across."""
        tables = [
            self._table(Path(text).name, lambda cell, n=n: cell["perplexity"][n]) for n, text in enumerate(self.texts)
        ]
        tables.append(self._table("seconds", lambda cell: cell.get("seconds", 0.0)))
        tables.append(self._table("MB above the start", lambda cell: cell.get("peak", 0.0) / 1e6))
        return "\n\n".join("\n".join(table) for table in tables)

    def _table(self, title: str, value: Callable[[dict[str, Any]], float]) -> Iterator[str]:
        ratios = self.given.ratios
        yield f"| {title} | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |"
        yield "|---|" + "---|" * len(ratios)
        if (dense := value(self.done["dense", 0.0, 0])) > 0:
            yield "| dense | " + " | ".join([f"{dense:.2f}"] * len(ratios)) + " |"
        for arm in self.arms:
            yield f"| {arm.name} | " + " | ".join(self._entry(arm, ratio, value) for ratio in ratios) + " |"

    def _entry(self, arm: Arm, ratio: float, value: Callable[[dict[str, Any]], float]) -> str:
        cells = [self.done.get((arm.name, ratio, seed)) for seed in self.given.seeds]
        return over_seeds([value(cell) for cell in cells if cell], len(cells))


def begin_of_peak() -> int:
    """Let Linux forget the largest resident size so far; the present one in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def highest() -> int:
    """The largest resident size since then, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def in_a_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, computed in a forked process, so that its memory is its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        raise SystemExit("a cell failed; its error is above")
    return json.loads(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
