"""Runs and evaluations that took no time, with a hostile text in every place that holds text of others."""

from pathlib import Path
from typing import Any

import pytest

from prunekit.depth.actions import RemoveBlock
from prunekit.evaluate.continuation import Continuation
from prunekit.evaluate.rows import (
    Accuracy,
    Count,
    Evaluation,
    Perplexity,
    Rate,
    Row,
    Size,
    Speed,
    Verdict,
)
from prunekit.export.manifest import LinearResult, Manifest, Result, Source
from prunekit.plan import PrunePlan
from prunekit.run.outcome import Outcome
from prunekit.weights.actions import Sparsify

HOSTILE = "<script>alert(1)</script>"
QUALITY = {"set": HOSTILE, "protocol": "sparsegpt", "window": 64, "windows": 2, "tokens": 126, "revision": None}
PATH = "model.layers.{}.mlp.up_proj"


def row(model: str, ratio: float | None, **more: Any) -> Row:
    """A measured model; one with a ratio is compared with a baseline."""
    found = Perplexity(
        value=20.0 * (ratio or 1.0), ratio=ratio, kl=0.125, agreement=0.75, set=HOSTILE, revision=None, split="all",
        protocol="sparsegpt", join="", window=64, windows=2, tokens=126, sha256="00",
    )  # fmt: skip
    accuracy = Accuracy(
        task="piqa", metric="acc", value=0.625, ratio=ratio, stderr=0.01, documents=200, few_shot=0, version="1"
    )
    return Row(
        model=model,
        baseline=ratio is None,
        size=Size(parameters=Count(value=1000, ratio=ratio), stored_bytes=Count(value=2000, ratio=ratio)),
        **{"perplexity": (found,), "tasks": (accuracy,), "speed": speed(ratio)} | more,
    )


def speed(ratio: float | None) -> Speed:
    rate = Rate(value=100.0, low=90.0, high=110.0, ratio=ratio, ratio_low=ratio, ratio_high=ratio)
    return Speed(
        prefill=rate, decode=rate, first_token=rate, peak_memory=Count(value=10**6), flops_per_token=Count(value=10**9),
        rounds=5, batch_size=1, prompt_tokens=8, new_tokens=8, device="cpu", dtype="float32", threads=1, compiled=False,
    )  # fmt: skip


@pytest.fixture
def evaluation() -> Evaluation:
    verdict = Verdict(
        gate="max_ppl",
        limit=10.0,
        model=HOSTILE,
        subject=HOSTILE,
        found=22.0,
        passed=False,
        reason=f"too bad: {HOSTILE}",
    )
    return Evaluation(models=(row("dense", None), row(HOSTILE, 1.1)), gates=(verdict,))


@pytest.fixture
def said() -> list[Continuation]:
    return [
        Continuation(model=name, prompt=f"say {HOSTILE}", text=f"{HOSTILE} ```\n\x1b[31m") for name in ("a", HOSTILE)
    ]


def folder_of(folder: Path, *, zeroing: bool = False, size: int = 100, after: Any = 12.0, **more: Any) -> Path:
    """A folder with a manifest and as many bytes of weights; blocks 1 and 3 of 5 are gone, or half of all weights."""
    actions: Any = [RemoveBlock(block=1), RemoveBlock(block=3)]
    if zeroing:
        actions = [Sparsify(linear=PATH.format(block), sparsity=0.5) for block in range(5)]
    method = "wanda" if zeroing else "shortgpt"
    recipe = {"method": method, "ratio": 0.4, "options": {}, "calibration": {"source": HOSTILE}}
    kept = range(5 if zeroing else 3)
    result = Result(
        parameters=500 if zeroing else 300,
        parameters_before=500,
        blocks=len(kept),
        removed_blocks=() if zeroing else (1, 3),
        weights=100 * len(kept),
        zeros=50 * len(kept) * zeroing,
        sparsity=0.5 * zeroing,
        linears={PATH.format(i): LinearResult(weights=100, zeros=50 * zeroing, sparsity=0.5 * zeroing) for i in kept},
    )
    evidence = {"importance": [0.9, 0.01, 0.2, 0.02, 0.3], "spectra": {HOSTILE: [3.0, 2.0, 0.5], "b": [1.0, 0.1]}}
    plan = PrunePlan(method=method, ratio=0.4, actions=tuple(actions), evidence=evidence)
    given = {"recipe": recipe, "plan": plan, "result": result, "perplexity": QUALITY | {"before": 10.0, "after": after}}
    manifest = Manifest.of(source=Source(name=HOSTILE, kind="hub", files={}), **given | more)
    folder.mkdir()
    manifest.write(folder)
    (folder / "model.safetensors").write_bytes(b"0" * size)
    return folder


def outcome(folder: Path, **more: Any) -> Outcome:
    """What the run that left a folder said of itself."""
    found = Manifest.read(folder)
    check = {"name": "loads", "passed": True, "detail": f"all of {HOSTILE}"}
    return Outcome(
        **{
            "output": str(folder),
            "method": found.plan.method,
            "ratio": 0.4,
            "pattern": "unstructured",
            "sparsity": found.result.sparsity,
            "weights": 1,
            "zeros": 0,
            "parameters": 300,
            "parameters_before": 500,
            "blocks": found.result.blocks,
            "removed_blocks": found.result.removed_blocks,
            "perplexity": found.perplexity,
            "verification": {"mode": "full", "checks": [check]},
            "notes": [f"note {HOSTILE}"],
            "seconds": 1.0,
            "resumed_blocks": 0,
        }
        | more
    )
