"""Train the bundled sample model from the standard library's own source: no download, no accelerator.

    python docs/scripts/train_sample.py --out prunekit/sample

A byte-level BPE tokenizer, then a small Llama, trained in float32 by plain AdamW on random crops of the
train documents and exported in bfloat16 with its model card. The defaults are those of the shipped model.
A run that stops goes on from its last checkpoint when it is started again: crops depend on the seed and the
step alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prunekit.sample.text import Split, documents

END = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 512
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
Forward = Callable[..., Any]  # the model, or the model compiled


# --- text ---------------------------------------------------------------------------------------------------


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over the train documents; encoding adds no special token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((document.text for document in documents("train")), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, split: Split) -> torch.Tensor:
    """Every document of the split, each followed by the end-of-text token."""
    texts = [document.text for document in documents(split)]
    # Through the backend: these are streams, so a warning that they exceed the context would be noise.
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return torch.tensor([token for each in encodings for token in (*each.ids, tokenizer.eos_token_id)])


def crops(stream: torch.Tensor, batch: int, length: int, seed: int, step: int) -> torch.Tensor:
    """Random windows of the stream (batch, length), the same for the same seed and step."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(stream) - length + 1, (batch,), generator=generator)
    return stream[starts[:, None] + torch.arange(length)]


# --- model --------------------------------------------------------------------------------------------------


def new_model(end_id: int, seed: int) -> LlamaForCausalLM:
    """A Llama of twelve blocks with grouped-query attention and tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end_id,
        eos_token_id=end_id,
    )
    model = LlamaForCausalLM(config)
    shrink = (2 * config.num_hidden_layers) ** -0.5  # 2 sums per block go into the residual stream
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data.mul_(shrink)
    return model


def loss_of(model: Forward, tokens: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Next-token cross entropy of windows (batch, length); each predicts length - 1 tokens."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction=reduction)


@torch.inference_mode()
def held_out_loss(model: torch.nn.Module, stream: torch.Tensor, windows: int | None = None) -> tuple[float, int]:
    """Mean loss over non-overlapping windows (all, or some spread evenly), and the number of tokens."""
    rows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    if windows is not None:
        rows = rows[:: max(1, len(rows) // windows)][:windows]
    model.eval()
    total = sum(loss_of(model, batch, "sum").item() for batch in rows.split(8))
    model.train()
    predicted = rows.shape[0] * (CONTEXT - 1)
    return total / predicted, predicted


# --- training -----------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One training run and everything that its checkpoint holds."""

    args: argparse.Namespace
    model: LlamaForCausalLM
    optimizer: torch.optim.AdamW
    end: int  # the last step: nearer than asked for once the minutes are spent
    step: int = 0
    seconds: float = 0.0

    @property
    def tokens_seen(self) -> int:
        return self.step * self.args.batch * self.args.length


def new_run(args: argparse.Namespace, end_id: int) -> Run:
    """A run at step 0; weight decay is for matrices, not for the gains of norms."""
    model = new_model(end_id, args.seed)
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    gains = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return Run(args, model, torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.99), fused=True), args.steps)


def learning_rate(run: Run) -> float:
    """Linear warm-up, a cosine that falls to a hundredth at the horizon, a linear cool-down to nothing."""
    args = run.args
    warm = min(1, (run.step + 1) / args.warmup)
    cool = min(1, (run.end - run.step) / args.cooldown)
    turned = math.pi * max(0, run.step - args.warmup) / max(1, args.horizon - args.warmup)
    return args.lr * warm * cool * (0.01 + 0.99 * 0.5 * (1 + math.cos(turned)))


def train_step(run: Run, forward: Forward, stream: torch.Tensor) -> float:
    """One update; returns the loss before it."""
    args = run.args
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run)
    loss = loss_of(forward, crops(stream, args.batch, args.length, args.seed, run.step))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    return loss.item()


def train(run: Run, tokenizer: PreTrainedTokenizerFast, stream: torch.Tensor, held_out: torch.Tensor) -> None:
    """Train to the last step, with checkpoints and early exports; spent minutes begin the cool-down."""
    args = run.args
    forward = torch.compile(run.model) if args.compile else run.model
    began, saved = time.monotonic(), run.seconds
    while run.step < run.end:
        if run.seconds > 60 * args.minutes:
            run.end = min(run.end, run.step + args.cooldown)
            args.minutes = math.inf
        loss = train_step(run, forward, stream)
        run.seconds = saved + time.monotonic() - began
        if run.step % 20 == 0:
            speed, minutes = run.tokens_seen / run.seconds, run.seconds / 60
            log(f"step {run.step}/{run.end}  loss {loss:.3f}  {speed:.0f} tokens/s  {minutes:.1f} min")
        if run.step % 200 == 0:
            log(f"step {run.step}  held-out loss {held_out_loss(run.model, held_out, windows=32)[0]:.4f}")
        if run.step % 50 == 0:
            save_checkpoint(run)
        if run.step in args.export_at:
            export(run, tokenizer, held_out, windows=32)
    save_checkpoint(run)


def save_checkpoint(run: Run) -> None:
    """Weights, AdamW's state and the step, in one safetensors file that appears whole."""
    tensors = {}
    for name, weight in run.model.named_parameters():
        tensors[f"weight/{name}"] = weight.data
        tensors.update({f"{key}/{name}": run.optimizer.state[weight][key] for key in ADAM_STATE})
    notes = {"step": run.step, "end": run.end, "seconds": run.seconds, "recipe": recipe(run.args)}
    arriving = checkpoint(run).with_suffix(".tmp")
    save_file(tensors, arriving, metadata={"run": json.dumps(notes)})
    arriving.replace(checkpoint(run))


def resume(run: Run) -> None:
    """Take up the checkpoint in the work folder, if there is one of the same recipe."""
    if not checkpoint(run).exists():
        return
    with safe_open(checkpoint(run), framework="pt") as saved:
        notes = json.loads(saved.metadata()["run"])
        if notes["recipe"] != recipe(run.args):
            found, wanted = notes["recipe"], recipe(run.args)
            sys.exit(f"{checkpoint(run)} was made with {found}, this run is {wanted}: pass another --work")
        for name, weight in run.model.named_parameters():
            weight.data.copy_(saved.get_tensor(f"weight/{name}"))
            run.optimizer.state[weight] = {key: saved.get_tensor(f"{key}/{name}") for key in ADAM_STATE}
    run.step, run.seconds, run.end = notes["step"], notes["seconds"], min(run.end, notes["end"])
    log(f"going on from step {run.step}")


def checkpoint(run: Run) -> Path:
    """Where the run keeps its state."""
    return run.args.work / "checkpoint.safetensors"


def recipe(args: argparse.Namespace) -> dict[str, float]:
    """The options that decide the weights at any step before the cool-down."""
    names = ("horizon", "batch", "length", "lr", "warmup", "weight_decay", "seed")
    return {name: getattr(args, name) for name in names}


# --- export -------------------------------------------------------------------------------------------------


def export(run: Run, tokenizer: PreTrainedTokenizerFast, held_out: torch.Tensor, windows: int | None = None) -> None:
    """Write the model folder in bfloat16, measured as it will be loaded; each file appears whole."""
    out = run.args.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.args.work) as folder:
        staging = Path(folder)
        small = copy.deepcopy(run.model).bfloat16()
        small.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)
        rounded = LlamaForCausalLM.from_pretrained(staging, dtype=torch.float32)
        loss, predicted = held_out_loss(rounded, held_out, windows)
        (staging / "README.md").write_text(model_card(run, loss, predicted), encoding="utf-8")
        for file in sorted(staging.iterdir()):
            arriving = out / f".{file.name}.tmp"
            shutil.copyfile(file, arriving)
            arriving.replace(out / file.name)
    log(f"exported step {run.step} to {out}: held-out loss {loss:.4f} over {predicted} tokens")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Under the class name that transformers 4 knows too; 5 writes a new one and reads both."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def model_card(run: Run, loss: float, predicted: int) -> str:
    """The README with this run's figures."""
    args = run.args
    parameters = sum(weight.numel() for weight in run.model.parameters())
    preliminary = "" if run.step == run.end else f"\n**Preliminary: step {run.step} of {run.end}.**\n"
    return CARD.format(
        preliminary=preliminary,
        parameters=f"{parameters:,}",
        tokens=f"{run.tokens_seen:,}",
        step=f"{run.step:,}",
        batch=args.batch,
        length=args.length,
        lr=args.lr,
        warmup=args.warmup,
        horizon=f"{args.horizon:,}",
        cooldown=args.cooldown,
        weight_decay=args.weight_decay,
        seed=args.seed,
        threads=args.threads,
        minutes=round(run.seconds / 60),
        loss=f"{loss:.3f}",
        perplexity=f"{math.exp(loss):.2f}",
        predicted=f"{predicted:,}",
        context=CONTEXT,
        python=platform.python_version(),
        torch=torch.__version__,
    )


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags:
- prunekit
- code
- python
---

# prunekit sample model
{preliminary}
A Llama of {parameters} parameters, small enough to travel with `prunekit` and trained enough that pruning it tells
something. It is there for tutorials, tests and `prunekit prune sample`; it writes Python-like text and knows nothing.

| | |
|---|---|
| architecture | `LlamaForCausalLM`: 12 blocks, hidden 192, 6 heads with 2 key-value heads, FFN 512, tied embeddings |
| tokenizer | byte-level BPE, 2048 tokens; encoding adds no special token |
| context | {context} tokens |
| weights | bfloat16 safetensors |
| training text | source and docstrings of the standard library of CPython {python}, the `train` modules of `prunekit/sample/text.py` |
| training | {step} steps of {batch} x {length} tokens = {tokens} tokens, {minutes} minutes on {threads} CPU threads |
| optimiser | AdamW (0.9, 0.99), peak rate {lr}, {warmup} warm-up steps, cosine to step {horizon}, linear cool-down over the last {cooldown} steps, weight decay {weight_decay}, clipping at 1, seed {seed} |
| **held-out perplexity** | **{perplexity}** (loss {loss} per token) |

The perplexity is that of the exported bfloat16 weights, computed in float32 on the `held-out` modules, which training
never saw: {predicted} predicted tokens in non-overlapping windows of {context}, under CPython {python}. Another Python
has a slightly different standard library, hence a slightly different figure.

## Repeat it

    make sample-model      # python docs/scripts/train_sample.py --out prunekit/sample

The script is seeded and its defaults are the figures above. The same weights to the last bit need the same Python,
the same torch (here {torch}) and the same machine; elsewhere the perplexity comes out alike.

## Licence

Apache-2.0 for the weights. The text they were trained on is CPython's standard library (PSF licence), of which
nothing is redistributed here.
"""  # noqa: E501


# --- command line -------------------------------------------------------------------------------------------


def keep_memory() -> None:
    """Start again with a malloc that keeps big buffers: glibc gives them back, at twice the time per step."""
    if sys.platform == "linux" and not os.environ.keys() >= MALLOC.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})


def log(line: str) -> None:
    """One line of progress, at once."""
    print(line, file=sys.stderr, flush=True)


def parse_args() -> argparse.Namespace:
    """The command line; its defaults made the shipped model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to write")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "prunekit-sample-model"))
    parser.add_argument("--steps", type=int, default=2200, help="steps to take")
    parser.add_argument("--horizon", type=int, default=2200, help="the step at which the cosine would end")
    parser.add_argument("--cooldown", type=int, default=200, help="last steps, over which the rate goes to 0")
    parser.add_argument("--batch", type=int, default=4, help="windows in a step")
    parser.add_argument("--length", type=int, default=CONTEXT, help="tokens in a window")
    parser.add_argument("--lr", type=float, default=2.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600, help="begin the cool-down when these are spent")
    parser.add_argument("--export-at", type=int, nargs="*", default=[], help="steps at which to export early")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward and backward")
    return parser.parse_args()


def main() -> None:
    """Train the tokenizer, then the model, then export."""
    args = parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    stream, held_out = token_stream(tokenizer, "train"), token_stream(tokenizer, "held-out")
    log(json.dumps({"train_tokens": len(stream), "held_out_tokens": len(held_out), **recipe(args)}))
    assert isinstance(tokenizer.eos_token_id, int)
    run = new_run(args, tokenizer.eos_token_id)
    resume(run)
    train(run, tokenizer, stream, held_out)
    export(run, tokenizer, held_out)


if __name__ == "__main__":
    main()
