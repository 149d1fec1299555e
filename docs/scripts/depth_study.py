"""TRSP beside other ways to drop blocks, its ablations and its controls: the tables of docs/methods/trsp.md.

    python docs/scripts/depth_study.py --work study --other some-text-of-another-kind.txt
    python docs/scripts/depth_study.py --work study --model MODEL --calib train.txt --held-out test.txt

Every cell is a run of prunekit: blocks are chosen on a calibration set of the cell's seed, taken out, and the folder
that comes out is measured on held-out text of the calibration's kind and on text of another kind. What is finished is
kept in WORK/results.jsonl; a study that was stopped goes on from there. The tables show means over the seeds, in
brackets how far apart the seeds lie.
"""

import argparse
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from study import Cells, over_seeds, settings_of_a_study

from prunekit.depth.actions import RemoveBlock
from prunekit.evaluate import side_by_side
from prunekit.model.loading import Opening
from prunekit.plan import PrunePlan
from prunekit.recipe import settings
from prunekit.recipe.recipe import Recipe
from prunekit.run import pipeline

SLOW = {"learning_rate": 1e-4}  # on the sample; at trsp's own rate, training on the text alone helps nobody


@dataclass(frozen=True)
class Arm:
    """One way to get rid of blocks: who chooses them, and how the model is trained to do without."""

    name: str
    chosen_by: str
    training: dict[str, Any] | None  # options of trsp's stage 2; None: no training


ARMS = (
    Arm("random", "random", None),
    Arm("ShortGPT", "shortgpt", None),
    Arm("SLEB", "sleb", None),
    Arm("TRSP without stage 2", "trsp", None),
    Arm("TRSP, gates learned once", "once", {}),
    Arm("the paper's stage 2", "trsp", {"stage2": "paper", **SLOW}),
    Arm("the same without its penalty", "trsp", {"stage2": "paper", "lambda2": 0, **SLOW}),
    Arm("delete, then train on the text", "trsp", {"distil": 0, "match": 0, **SLOW}),
    Arm("delete, then train on text and logits", "trsp", {"match": 0}),
    Arm("TRSP, faded over half of the training", "trsp", {"fade": 0.5}),
    Arm("SLEB, then TRSP's stage 2", "sleb", {}),
    Arm("**TRSP**", "trsp", {}),
)


def main() -> None:
    parser = settings_of_a_study(__doc__)
    parser.add_argument("--other", help="text of another kind to measure on")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.17, 0.25, 0.33])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--windows", type=int, default=64, help="windows of 512 tokens to measure on, of each text")
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
        self.done.keep(("dense", 0.0, 0), lambda: {"perplexity": self._measure(self.given.model)})
        for seed in self.given.seeds:
            for arm in self.arms:
                for ratio in self.given.ratios:
                    self.done.keep((arm.name, ratio, seed), partial(self._cell, arm, ratio, seed))

    def _cell(self, arm: Arm, ratio: float, seed: int) -> dict[str, Any]:
        """Prune, measure, and drop the folder."""
        plan = self._plan(arm.chosen_by, seed)
        count = max(1, round(ratio * plan.evidence["depth"]))
        order = plan.evidence["order"][:count]
        if len(order) < count:
            raise SystemExit(f"the plan of {arm.chosen_by} in {self.given.work} is for a smaller ratio; remove it")
        for (_, *same), cell in self.done.items():  # two ways may have chosen the same blocks
            if same == [ratio, seed] and (cell["removed"], cell["training"]) == (sorted(order), arm.training):
                return {key: value for key, value in cell.items() if key != "key"}
        options = {"stage2": "none"} if arm.training is None else arm.training
        cut = plan.model_copy(
            update={
                "method": "trsp",
                "actions": tuple(RemoveBlock(block=index) for index in sorted(order)),
                "evidence": {"order": order},
                "recipe": self._recipe("trsp", ratio, seed, options).model_dump(mode="json"),
            }
        )
        out = self.given.work / f"cell-{os.getpid()}"
        done = pipeline.apply_plan(cut, output=out, options=pipeline.RunOptions(True, True, True))
        found = {"removed": sorted(order), "training": arm.training, "seconds": done.seconds, "notes": done.notes}
        found["perplexity"] = self._measure(str(out))
        shutil.rmtree(out)
        return found

    def _plan(self, chosen_by: str, seed: int) -> PrunePlan:
        """A plan for the largest ratio, whose order serves the smaller ones too: every choice here is greedy."""
        path = self.given.work / f"plan-{chosen_by}-{seed}.json"
        if not path.is_file():
            method = {"once": "trsp", "random": "shortgpt"}.get(chosen_by, chosen_by)
            plan = pipeline.make_plan(self._recipe(method, max(self.given.ratios), seed, {}), offline=True)
            evidence = self._ordered(chosen_by, plan, seed)
            path.write_text(plan.model_copy(update={"evidence": evidence}).to_json())
        return PrunePlan.read(path)

    @staticmethod
    def _ordered(chosen_by: str, plan: PrunePlan, seed: int) -> dict[str, Any]:
        """The order in which blocks go: the plan's own, by the gates of its first round, or by chance."""
        importance, order = plan.evidence["importance"], plan.evidence["order"]
        free = range(1, len(importance) - 1)
        if chosen_by == "once":
            order = sorted(free, key=lambda block: importance[block])
        elif chosen_by == "random":
            order = random.Random(seed).sample(free, len(free))
        return {"order": order, "depth": len(importance)}

    def _recipe(self, method: str, ratio: float, seed: int, options: dict[str, Any]) -> Recipe:
        flags = {
            "model": self.given.model,
            "method": method,
            "ratio": ratio,
            "calib": self.given.calib,
            "samples": self.given.samples,
            "seq_len": self.given.seq_len,
            "seed": seed,
            "eval_quick": False,
            "verify": "off",
        }
        return settings.build(flags, [f"options.{key}={json.dumps(value)}" for key, value in options.items()])[0]

    def _measure(self, model: str) -> list[float]:
        texts = side_by_side.Texts(self.texts, windows=self.given.windows)
        done = side_by_side.evaluate([model], side_by_side.Questions(texts=texts, opening=Opening(offline=True)))
        return [float(found.value) for found in done.models[0].perplexity]

    def tables(self) -> str:
        """One Markdown table per text: arms down, ratios across."""
        return "\n\n".join("\n".join(self._table(number)) for number in range(len(self.texts)))

    def _table(self, number: int) -> Iterator[str]:
        ratios = self.given.ratios
        dense = self.done["dense", 0.0, 0]["perplexity"][number]
        yield f"| {Path(self.texts[number]).name} | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |"
        yield "|---|" + "---|" * len(ratios)
        yield "| dense | " + " | ".join([f"{dense:.2f}"] * len(ratios)) + " |"
        for arm in self.arms:
            yield f"| {arm.name} | " + " | ".join(self._entry(arm, ratio, number) for ratio in ratios) + " |"

    def _entry(self, arm: Arm, ratio: float, number: int) -> str:
        cells = [self.done.get((arm.name, ratio, seed)) for seed in self.given.seeds]
        return over_seeds([cell["perplexity"][number] for cell in cells if cell], len(cells))


if __name__ == "__main__":
    main()
