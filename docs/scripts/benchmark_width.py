"""COMP beside LLM-Pruner: memory above the least that streaming needs; and the time of one greedy solve.

    python docs/scripts/benchmark_width.py                     # a bf16 Llama of random weights, 12 and 24 blocks
    python docs/scripts/benchmark_width.py --solve 4096 11008  # one layer of LLaMA-7B's shape

Every figure is that of a process of its own, which plans and applies a method at 20 % and exports nothing. `streaming`
is a pass of the dense model over the calibration set, with one block in memory at a time: the floor. The solve is timed
beside a Cholesky inverse of a matrix of that size, the least that it has to do; compare ratios, not seconds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "vocab_size": 8192}
METHODS = ("comp", "comp-mask", "llm-pruner")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", nargs="+", type=int, default=[12, 24])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--solve", nargs=2, type=int, metavar=("OUTPUTS", "NEURONS"), help="time one solve instead")
    parser.add_argument("--worker", nargs=4, metavar=("WHAT", "MODEL", "SAMPLES", "TOKENS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        what, model, samples, tokens = given.worker
        print(json.dumps(measured(what, Path(model), int(samples), int(tokens))))
    elif given.solve:
        solve(*given.solve)
    else:
        for blocks in given.blocks:
            with tempfile.TemporaryDirectory() as folder:
                compare(Path(folder), blocks, given.samples, given.tokens)


def compare(folder: Path, blocks: int, samples: int, tokens: int) -> None:
    """Print one table: seconds, peak memory, and how far it is above streaming alone."""
    size = make_model(folder, blocks)
    print(f"\n{blocks} blocks, {size / 1e6:.0f} MB of weights, {samples} x {tokens} tokens")
    print(f"{'':14}{'seconds':>9}{'peak MB':>9}{'above streaming':>17}")
    floor = 0.0
    for what in ("streaming", *METHODS):
        words = [sys.executable, __file__, "--worker", what, str(folder), str(samples), str(tokens)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        floor = floor or found["peak"]
        above = found["peak"] - floor
        print(f"{what:14}{found['seconds']:9.1f}{found['peak'] / 1e6:9.0f}{above / 1e6:14.0f} MB", flush=True)


def make_model(folder: Path, blocks: int) -> int:
    """Save a Llama of random weights in bfloat16; the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SIZE, num_hidden_layers=blocks, num_key_value_heads=4, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def measured(what: str, folder: Path, samples: int, tokens: int) -> dict[str, float]:
    """Seconds and peak resident bytes of one run in this process."""
    import torch

    from prunekit.blockwise.stream import logits
    from prunekit.contract import Context, carry_out
    from prunekit.export.staging import Staging
    from prunekit.model.checkpoint import Checkpoint
    from prunekit.model.prunable import PrunableModel
    from prunekit.recipe import registry

    ids = torch.randint(SIZE["vocab_size"], (samples, tokens), generator=torch.Generator().manual_seed(0))
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    started = time.perf_counter()
    if what == "streaming":
        for _ in logits(model, ids, batch_size=4):
            pass
    else:
        options = {"recover": "mask"} if what == "comp-mask" else {}
        method = registry.load(what.removesuffix("-mask")).model_validate(options)
        with tempfile.TemporaryDirectory() as place, Staging.open(Path(place, "out"), {}) as staging:
            model = model.with_edits(staging.edits)
            ctx = Context(model=model, ratio=0.2, probe=ids[:1, :64], calibration=ids, batch_size=4)
            ctx.protected = frozenset({0, len(model.blocks) - 1})
            carry_out(method, ctx, method.plan(ctx))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": time.perf_counter() - started, "peak": peak}


def solve(outputs: int, neurons: int) -> None:
    """Time the greedy removal of a fifth of the neurons beside the inverse alone, both in float64."""
    import torch

    from prunekit.width.least_squares import Problem

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * neurons // 3, neurons, generator=generator)
    problem = Problem.masks(x.T @ x, torch.randn(outputs, neurons, generator=generator), None, 0.01)
    del x
    started = time.perf_counter()
    p, _ = problem.inverse()
    inverse = time.perf_counter() - started
    del p
    started = time.perf_counter()
    problem.remove(neurons // 5)
    whole = time.perf_counter() - started
    threads, peak = torch.get_num_threads(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{outputs} x {neurons}, {neurons // 5} neurons go, {threads} threads of {os.cpu_count()} cores")
    print(f"inverse alone {inverse:.1f} s; inverse and removal {whole:.1f} s, {whole / inverse:.2f} x")
    print(f"peak {peak / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
