"""What removing blocks costs in memory while it is decided and trained, and what it gains in speed.

    python docs/scripts/benchmark_depth.py                  # all three tables
    python docs/scripts/benchmark_depth.py --only speed     # one of them: plan, training, speed

Weights and token ids are random, and every figure is that of a process of its own; of memory it is the peak of what is
resident. `floor` is what the libraries take before there is a model. Speeds of the two models are taken in turn, in one
process, so that a busy machine slows both: compare ratios, not tokens per second.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmark_streaming import make_model

PLANNED = {"blocks": 8, "hidden_size": 1024, "intermediate_size": 2816, "heads": 16, "vocab_size": 8000}
TRAINED = {"blocks": 12, "hidden_size": 768, "intermediate_size": 2048, "heads": 12, "vocab_size": 4000}
TIMED = {"blocks": 16, "hidden_size": 1024, "intermediate_size": 2816, "heads": 16, "vocab_size": 1000}
BATCH, TOKENS = 4, 256  # of one forward pass
GONE = (5, 6)  # in stage 2
REMOVED = "6-9"  # a quarter of the timed model
PROMPT, DECODED = 256, 16
TEXT_ALONE = {"distil": 0, "match": 0}  # else the dense model is a target, and in memory
TRAININGS = [
    {"train": train, "recompute": recompute, **targets}
    for train in ("all", "neighbours", "lora")
    for targets, recompute in ((TEXT_ALONE, False), ({}, False), ({}, True))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=TABLES, help="one table (default: all)")
    parser.add_argument("--rounds", type=int, default=9, help="of the speeds, each of both models in turn")
    parser.add_argument("--folder", type=Path, help="where to put the models (default: a temporary folder)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        order = json.loads(arguments.worker)
        print(json.dumps(WORKERS[order.pop("what")](**order) | {"peak": peak()}))
        return
    for name in [arguments.only] if arguments.only else TABLES:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            TABLES[name](Path(folder), arguments.rounds)


def worker(what: str, **order: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps({"what": what, **order}, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak() -> float:
    """The most bytes that were resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


# --- the tables; this process imports no torch, for its own memory would count as that of its children ----------------


def table_of_planning(folder: Path, _: int) -> None:
    """Stage 1 of trsp beside plain inference of the same batch, with the whole model in memory."""
    model = folder / "model"
    size, floor = worker("make", folder=model, **PLANNED)["size"], worker("floor")["peak"]
    print(f"\nplanning: {size / 1e6:.0f} MB of float32 weights, batches of {BATCH} x {TOKENS} tokens, MB")
    print(f"{'':34}{'peak':>8}{'- floor':>9}{'x plain':>9}{'- floor':>9}")
    plain = worker("inference", folder=model)["peak"]
    runs = [("floor", floor), ("plain inference of a batch", plain)]
    runs += [(f"stage 1, {count} batches", worker("plan", folder=model, batches=count)["peak"]) for count in (1, 4)]
    for name, found in runs:
        net = (found - floor) / (plain - floor)
        print(f"{name:34}{found / 1e6:8.0f}{(found - floor) / 1e6:9.0f}{found / plain:9.2f}{net:9.2f}", flush=True)


def table_of_training(folder: Path, _: int) -> None:
    """Stage 2 of trsp, as multiples of the model's float32 bytes."""
    model = folder / "model"
    size, floor = worker("make", folder=model, **TRAINED)["size"], worker("floor")["peak"]
    print(f"\ntraining: {size / 1e6:.0f} MB of float32 weights, {BATCH} x {TOKENS} tokens at once; peak - floor")
    print(f"{'train':12}{'targets':>18}{'recompute':>11}{'MB':>8}{'x model':>9}")
    for setting in TRAININGS:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            net = worker("train", folder=model, work=work, options=setting)["peak"] - floor
        targets = "text" if "match" in setting else "text and dense"
        words = f"{setting['train']:12}{targets:>18}{'yes' if setting['recompute'] else 'no':>11}"
        print(f"{words}{net / 1e6:8.0f}{net / size:9.1f}", flush=True)


def table_of_speed(folder: Path, rounds: int) -> None:
    """Tokens per second of a model and of itself without a quarter of its blocks, from exported folders."""
    dense, shallow = folder / "dense", folder / "shallow"
    worker("make", folder=dense, **TIMED)
    words = ["prune", str(dense), "-m", "layers", "--set", f"blocks={REMOVED}", "--verify", "off", "--no-eval-quick"]
    subprocess.run(
        [sys.executable, "-m", "prunekit", *words, "-q", "-o", str(shallow)], check=True, capture_output=True
    )
    found = worker("speed", folders=[dense, shallow], rounds=rounds)
    blocks = TIMED["blocks"]
    print(f"\nspeed: {blocks} blocks and {found['blocks']}, tokens/s, medians of {rounds} rounds in turn")
    print(f"{'':20}{'dense':>9}{'shallow':>9}{'ratio':>8}   quartiles")
    for name in ("prefill", "decoding"):
        pairs = found[name]
        ratios = [fast / slow for slow, fast in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name:20}{slow:9.1f}{fast:9.1f}{middle:8.2f}   {low:.2f} to {high:.2f}")


# --- the workers ---------------------------------------------------------------------------------------------------


def make(folder: str, blocks: int, **sizes: int) -> dict[str, Any]:
    """A random Llama in float32."""
    return {"size": make_model(Path(folder), blocks, dtype="float32", **sizes)}  # pyright: ignore[reportArgumentType]


def floor() -> dict[str, Any]:
    """All imports, and a model of next to no size that was run once."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import prunekit_methods.trsp  # noqa: F401

    tiny = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    LlamaForCausalLM(tiny)(torch.zeros(1, 8, dtype=torch.int64)).logits.sum().backward()
    return {}


def inference(folder: str) -> dict[str, Any]:
    """Logits of one batch by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model(input_ids=token_ids(BATCH), use_cache=False)
    return {}


def plan(folder: str, batches: int) -> dict[str, Any]:
    """One round of gates, cut short after its first step, with the comparison of the smallest."""
    method, ctx = opened(folder, {"gate_steps": 1}, batches * BATCH)
    method.plan(ctx)
    return {}


def train(folder: str, work: str, options: dict[str, Any]) -> dict[str, Any]:
    """Two updates and a checkpoint, with everything that comes before and after them."""
    from prunekit.contract import carry_out
    from prunekit.depth.plan import plan_blocks
    from prunekit.export.staging import Staging

    settings = options | {"epochs": 1, "batch": BATCH, "hold_out": 0.3, "checkpoint_every": 1}
    method, ctx = opened(folder, settings, 3 * BATCH)
    staging = Staging.open(Path(work) / "out", {})
    ctx.model, ctx.work = ctx.model.with_edits(staging.edits), staging.work
    carry_out(method, ctx, plan_blocks(ctx, "trsp", GONE))
    return {}


def opened(folder: str, options: dict[str, Any], samples: int) -> tuple[Any, Any]:
    """The method and what the pipeline would give it, for the removal of one block."""
    from prunekit.contract import Context
    from prunekit.model.checkpoint import Checkpoint
    from prunekit.model.prunable import PrunableModel
    from prunekit_methods.trsp import TRSP

    model, ids = PrunableModel.open(Checkpoint.open(Path(folder)), device="cpu"), token_ids(samples)
    ratio = 1 / len(model.blocks)
    return TRSP(**options), Context(model=model, ratio=ratio, probe=ids[:1, :16], calibration=ids, batch_size=BATCH)


def token_ids(samples: int) -> Any:
    """Random token ids (samples, TOKENS)."""
    import torch

    return torch.randint(1000, (samples, TOKENS), generator=torch.Generator().manual_seed(0))


def speed(folders: list[str], rounds: int) -> dict[str, Any]:
    """Tokens per second of two exported folders, in turn: pairs per round, as `prunekit eval --speed` takes them."""
    import torch

    from prunekit.evaluate.speed import Place, Runner, SpeedOptions, timed
    from prunekit.model.checkpoint import Checkpoint

    options = SpeedOptions(prompt_tokens=PROMPT, new_tokens=DECODED + 1, rounds=rounds)
    place = Place(torch.device("cpu"), torch.float32)
    runners = [Runner.load(Checkpoint.open(Path(folder)), options, place) for folder in folders]
    pairs = list(zip(*timed(runners, rounds), strict=True))
    return {
        "blocks": runners[1].model.config.num_hidden_layers,
        "prefill": [[PROMPT / one.first for one in pair] for pair in pairs],
        "decoding": [[DECODED / one.rest for one in pair] for pair in pairs],
    }


TABLES = {"plan": table_of_planning, "training": table_of_training, "speed": table_of_speed}
WORKERS = {"make": make, "floor": floor, "inference": inference, "plan": plan, "train": train, "speed": speed}

if __name__ == "__main__":
    main()
