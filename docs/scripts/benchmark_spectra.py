"""What the spectra of one block cost, beside singular values and a loop over the candidates; and from the cache.

    python docs/scripts/benchmark_spectra.py                # a block of Llama-7B's shapes: many minutes
    python docs/scripts/benchmark_spectra.py --scale 2      # its shapes divided by 2

A model of one block is written with random weights. Every way is measured in a process of its own: `ours` reads each
matrix and computes its eigenvalues and the exponent, with an empty cache and then with a full one; `svdvals` reads each
matrix, takes the squares of its singular values in float32, and tries one candidate for the tail's beginning after the
other. Seconds are those of the processor, of all threads, so that a busy machine matters less: compare ratios. Peaks
are those of resident memory above the `floor`, a process that has imported everything and read nothing.
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
from typing import Any

HIDDEN, INTERMEDIATE = 4096, 11008


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=int, default=1, help="divide the shapes by this")
    parser.add_argument("--rounds", type=int, default=1, help="of all ways, in turn; the fastest counts")
    parser.add_argument("--folder", type=Path, help="where to put the model (default: a temporary folder)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        order = json.loads(given.worker)
        print(json.dumps(WORKERS[order.pop("what")](**order) | {"peak": peak()}))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        compare(Path(folder), given.scale, given.rounds)


def compare(folder: Path, scale: int, rounds: int) -> None:
    """Measure all ways and print the table."""
    shapes = {"hidden": HIDDEN // scale, "intermediate": INTERMEDIATE // scale}
    largest = 4 * shapes["hidden"] * shapes["intermediate"]
    worker("make", folder, model=folder / "model", **shapes)
    floor = worker("floor", folder)["peak"]
    runs: dict[str, list[dict[str, Any]]] = {"svdvals": [], "ours": [], "cached": []}
    for number in range(rounds):
        for way, found in runs.items():
            what = "svdvals" if way == "svdvals" else "ours"
            found.append(worker(what, folder / f"cache-{number}", model=folder / "model"))
    seconds = {way: min(run["seconds"] for run in found) for way, found in runs.items()}
    peaks = {way: max(run["peak"] for run in found) - floor for way, found in runs.items()}
    print(f"one block: 4 x {shapes['hidden']}^2, 3 x {shapes['hidden']} x {shapes['intermediate']}, float32")
    print(f"largest matrix {largest / 1e6:.0f} MB; floor {floor / 1e6:.0f} MB")
    print(f"{'way':10}{'seconds':>9}{'x svdvals':>11}{'x ours':>9}{'peak MB':>9}{'x largest':>11}")
    for way in runs:
        ratios = f"{seconds[way] / seconds['svdvals']:11.3f}{seconds[way] / seconds['ours']:9.4f}"
        print(f"{way:10}{seconds[way]:9.2f}{ratios}{peaks[way] / 1e6:9.0f}{peaks[way] / largest:11.2f}")
    apart = [abs(a - b) for a, b in zip(runs["svdvals"][0]["alphas"], runs["ours"][0]["alphas"], strict=True)]
    print(f"speed: {seconds['svdvals'] / seconds['ours']:.1f} times svdvals; exponents agree within {max(apart):.1e}")
    flops = operations(**shapes)
    floor_seconds = flops / worker("product", folder)["rate"]
    print(f"arithmetic floor: {flops / 1e12:.3f}e12 operations, in a float64 product {floor_seconds:.1f} s;", end=" ")
    print(f"ours takes {seconds['ours'] / floor_seconds:.1f} times that")


def operations(hidden: int, intermediate: int) -> float:
    """Floating-point operations of the Gram matrices' lower halves and of their reduction to tridiagonal form."""
    columns = 4 * hidden + 3 * intermediate
    return float(hidden**2 * columns + 7 * 4 / 3 * hidden**3)


def worker(what: str, cache: Path, **order: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps({"what": what, **order}, default=str)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PRUNEKIT_CACHE": str(cache)}
    )
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak() -> float:
    """The most bytes that were resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


# --- what the workers do; torch is imported in them only, for its memory would count as that of the table ------------


def make(model: str, hidden: int, intermediate: int) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=64,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    return {}


def floor() -> dict[str, Any]:
    import torch
    import transformers  # noqa: F401

    from prunekit.spectra import (
        power_law,  # noqa: F401
        spectrum,  # noqa: F401
    )

    torch.linalg.eigvalsh(torch.rand(64, 64, dtype=torch.float64))
    torch.linalg.svdvals(torch.rand(64, 64))
    return {}


def ours(model: str) -> dict[str, Any]:
    from prunekit.model.checkpoint import Checkpoint
    from prunekit.model.prunable import PrunableModel
    from prunekit.spectra.spectrum import spectra

    opened = PrunableModel.open(Checkpoint.open(Path(model)), device="cpu")
    start = time.process_time()
    alphas = [spectrum.measure("alpha_peak") for spectrum in spectra(opened)]
    return {"seconds": time.process_time() - start, "alphas": alphas}


def svdvals(model: str) -> dict[str, Any]:
    from prunekit.model.checkpoint import Checkpoint
    from prunekit.model.prunable import PrunableModel

    opened = PrunableModel.open(Checkpoint.open(Path(model)), device="cpu")
    start = time.process_time()
    alphas = [looped(opened.read([f"{path}.weight"])[f"{path}.weight"]) for path in opened.linears()]
    return {"seconds": time.process_time() - start, "alphas": alphas}


def looped(weight: Any) -> float:
    """alpha_peak with a Python loop over the candidates, as the formulas read."""
    import torch

    values = torch.linalg.svdvals(weight.float()).square().sort().values
    logs, size = values.log(), len(values)
    tens = values.log10()
    low, high = tens.min().item(), tens.max().item()
    peak = 10 ** torch.linspace(low, high, 101)[tens.histc(100, min=low, max=high).argmax()]
    alphas, distances = torch.zeros(size - 1), torch.ones(size - 1)
    for i, start in enumerate(values[:-1]):
        if start < (0.95 * peak).log10():
            continue
        if start > 1.5 * peak:
            break
        n = float(size - i)
        alphas[i] = 1 + n / (logs[i:].sum() - n * logs[i])
        fitted = 1 - (values[i:] / start) ** (1 - alphas[i])
        distances[i] = (fitted - torch.arange(n) / n).abs().max()
    return alphas[distances.argmin()].item()


def rate() -> dict[str, Any]:
    """Operations per second of a product of float64 matrices."""
    import torch

    a = torch.rand(1024, 1024, dtype=torch.float64)
    times = []
    for _ in range(7):
        start = time.process_time()
        _ = a @ a
        times.append(time.process_time() - start)
    return {"rate": 2 * 1024**3 / min(times)}


WORKERS = {"make": make, "floor": floor, "ours": ours, "svdvals": svdvals, "product": rate}

if __name__ == "__main__":
    main()
