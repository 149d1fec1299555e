"""Memory and time of pruning, beside the least that could be done: two plain forward passes, one read, one write.

    python docs/scripts/benchmark_streaming.py                  # a bf16 Llama with 3.2 GB of weights, 24 and 48 blocks
    python docs/scripts/benchmark_streaming.py --model small    # a float32 Llama of 96 M parameters, 32 x 256 tokens

Every figure is that of a process of its own. `plain` reads each block, runs it twice over the same batches without any
hook, and writes it. The others are the walk of a method (statistics, pruning, committing each block) and, in a column
of its own, the export. llm-compressor is measured too where it is installed. Weights and token ids are random: the
time does not depend on them. Compare ratios, not seconds: machines differ, and are noisy.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SIZES = {
    "large": {"hidden_size": 2048, "intermediate_size": 8192, "heads": 16, "vocab_size": 32000, "dtype": "bfloat16"},
    "small": {"hidden_size": 768, "intermediate_size": 2048, "heads": 12, "vocab_size": 16000, "dtype": "float32"},
}
RUNS = {"large": ([24, 48], 16, 128), "small": ([12], 32, 256)}  # blocks, samples, tokens
METHODS = ("wanda", "sparsegpt", "magnitude")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=SIZES, default="large")
    parser.add_argument("--blocks", nargs="+", type=int, help="numbers of blocks (default: those above)")
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"], choices=METHODS)
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the median is shown")
    parser.add_argument("--folder", type=Path, help="where to put the models (default: a temporary folder)")
    parser.add_argument(
        "--worker", nargs=5, metavar=("WHAT", "MODEL", "SAMPLES", "TOKENS", "WORK"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.worker:
        what, model, samples, tokens, work = arguments.worker
        print(json.dumps(measured(what, Path(model), int(samples), int(tokens), Path(work))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Print one table per model: seconds, their ratio to `plain`, peak resident memory."""
    depths, samples, tokens = RUNS[arguments.model]
    for blocks in arguments.blocks or depths:
        model = folder / f"blocks-{blocks}"
        size = make_model(model, blocks, **SIZES[arguments.model])
        print(f"\n{blocks} blocks, {size / 1e9:.2f} GB of weights, {samples} x {tokens} tokens")
        print(f"{'':14}{'seconds':>9}{'x plain':>9}{'export s':>10}{'peak GB':>9}")
        plain = None
        others = [*arguments.methods, *(["llmcompressor"] if has("llmcompressor") else [])]
        for what in ["plain", *others]:
            runs = [worker(what, model, samples, tokens, folder) for _ in range(arguments.repeat)]
            run = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
            plain = plain or run["seconds"]
            export = f"{run['export']:10.1f}" if "export" in run else f"{'':>10}"
            print(
                f"{what:14}{run['seconds']:9.1f}{run['seconds'] / plain:9.2f}{export}{run['peak'] / 1e9:9.2f}",
                flush=True,
            )


def worker(what: str, model: Path, samples: int, tokens: int, folder: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [sys.executable, __file__, "--worker", what, str(model), str(samples), str(tokens), work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(what: str, model: Path, samples: int, tokens: int, work: Path) -> dict[str, float]:
    """Seconds without imports, and the peak resident memory of this process in bytes."""
    import torch

    ids = torch.randint(1000, (samples, tokens), generator=torch.Generator().manual_seed(0))
    run: Callable[[], dict[str, float]]
    if what == "plain":
        run = lambda: plain_passes(model, ids, work)  # noqa: E731
    elif what == "llmcompressor":
        run = lambda: llm_compressor(model, ids)  # noqa: E731
    else:
        run = lambda: method_walk(what, model, ids, work)  # noqa: E731
    found = run()
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def plain_passes(model: Path, ids: "torch.Tensor", work: Path) -> dict[str, float]:  # noqa: F821
    """Each block read once, run twice over all batches in float32, written once; nothing of prunekit is used."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = AutoConfig.from_pretrained(model)
    config._attn_implementation = "sdpa"
    weight_map = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    block = LlamaDecoderLayer(config, 0).eval()
    batch = max(1, 2048 // ids.shape[1])
    hidden = list(torch.randn(*ids.shape, config.hidden_size).split(batch))
    positions = torch.arange(ids.shape[1])[None]
    start = time.perf_counter()
    with torch.no_grad():
        rotary = LlamaRotaryEmbedding(config)(hidden[0], positions)
        for index in range(config.num_hidden_layers):
            prefix = f"model.layers.{index}."
            with safe_open(model / weight_map[f"{prefix}mlp.up_proj.weight"], framework="pt") as file:
                stored = {name: file.get_tensor(prefix + name) for name in block.state_dict()}
                block.load_state_dict(stored)
            for _ in range(2):
                outputs = [block(x, position_embeddings=rotary, position_ids=positions) for x in hidden]
            hidden = outputs
            path = work / f"{index}.safetensors"
            save_file({name: tensor.to(config.dtype) for name, tensor in block.state_dict().items()}, path)
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    return {"seconds": time.perf_counter() - start}


def method_walk(name: str, model: Path, ids: "torch.Tensor", work: Path) -> dict[str, float]:  # noqa: F821
    """A method at 50 % with prunekit: the walk that prunes, then the export."""
    from prunekit.blockwise.stream import default_batch_size
    from prunekit.contract import Context, carry_out
    from prunekit.export.folder import export
    from prunekit.export.staging import Staging
    from prunekit.model.checkpoint import Checkpoint
    from prunekit.model.prunable import PrunableModel
    from prunekit.recipe import registry
    from prunekit_methods.uniform import Uniform

    method = registry.load(name)()
    start = time.perf_counter()
    prunable = PrunableModel.open(Checkpoint.open(model), device="cpu")
    with Staging.open(work / "pruned", {}) as staging:
        prunable = prunable.with_edits(staging.edits)
        size = default_batch_size(ids.shape[1])
        ctx = Context(model=prunable, ratio=0.5, probe=ids[:1, :64], calibration=ids, batch_size=size)
        ctx.budget = Uniform().allocate(ctx, 0.5)
        carry_out(method, ctx, method.plan(ctx))
        pruned = time.perf_counter()
        export(prunable, staging.export_dir)
        staging.publish()
    return {"seconds": pruned - start, "export": time.perf_counter() - pruned}


def llm_compressor(model: Path, ids: "torch.Tensor") -> dict[str, float]:  # noqa: F821
    """Wanda at 50 % with llm-compressor's sequential pipeline, on the same tokens."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import WandaPruningModifier
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": [[1] * ids.shape[1]] * len(ids)})
    start = time.perf_counter()
    recipe = WandaPruningModifier(sparsity=0.5, mask_structure="0:0", targets=["re:.*layers.*proj$"])
    oneshot(model=dense, dataset=rows, recipe=recipe, num_calibration_samples=len(ids), max_seq_length=ids.shape[1])
    return {"seconds": time.perf_counter() - start}


def make_model(
    folder: Path, blocks: int, *, hidden_size: int, intermediate_size: int, heads: int, vocab_size: int, dtype: str
) -> int:
    """Write a random Llama, a block at a time; returns the bytes of its weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocab_size,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    stored = getattr(torch, dtype)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(stored)

    weight_map: dict[str, str] = {}
    total = 0
    square, wide = (hidden_size, hidden_size), (intermediate_size, hidden_size)
    shapes = {f"self_attn.{part}_proj.weight": square for part in "qkvo"}
    shapes |= {"mlp.gate_proj.weight": wide, "mlp.up_proj.weight": wide, "mlp.down_proj.weight": wide[::-1]}
    for index in range(blocks + 1):
        if index == blocks:
            ones = torch.ones(hidden_size, dtype=stored)
            tensors = {"model.embed_tokens.weight": draw(vocab_size, hidden_size), "model.norm.weight": ones}
        else:
            tensors = {f"model.layers.{index}.{name}": draw(*shape) for name, shape in shapes.items()}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{index}.{norm}.weight"] = torch.ones(hidden_size, dtype=stored)
        file = f"model-{index + 1:05d}-of-{blocks + 1:05d}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    return total


def has(module: str) -> bool:
    """Whether a module is installed."""
    from importlib.util import find_spec

    return find_spec(module) is not None


if __name__ == "__main__":
    main()
