"""The model card, `README.md`: what was done, what was measured, how far that goes, and how to repeat it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load

from prunekit.export.manifest import Manifest, Result
from prunekit.files import write_atomically
from prunekit.formatting import span
from prunekit.model.hub import short_name
from prunekit.model.modeling_file import FILE as MODEL_FILE
from prunekit.text.datasets import NAMED

CARD = "README.md"
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*")
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
VERIFIED = {
    "full": (
        "Before the folder was moved into place, a fresh process loaded it with `from_pretrained`: no "
        "key missing, unexpected or mismatched; logits equal to those of the pruned model; greedy generation "
        "with the cache equal to generation without it."
    ),
    "streaming": (
        "Before the folder was moved into place, a fresh process compared every stored tensor with what the "
        "model wants, and computed logits one block at a time, equal to those of the pruned model. The model "
        "was not loaded whole, and generation was not tried."
    ),
    None: "The folder was not verified (`--verify off`).",
}
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""
USE_PER_LAYER = USE.replace('"FOLDER")\ntokenizer', '"FOLDER", trust_remote_code=True)\ntokenizer')
AS_SOURCE = (
    "FOLDER is this folder, or its id on the hub. Loading needs no prunekit, and the architecture is the source's own: "
    "what loads the source model loads this one."
)
PER_LAYER = (
    "FOLDER is this folder, or its id on the hub. Its blocks are not equally wide, and transformers has no class for "
    "that: `modeling_prunekit.py` beside the weights derives one from the source's own, which is why it must be "
    "trusted. It needs no prunekit. With prunekit, `prunekit.load(FOLDER)` loads it, and `prunekit export FOLDER "
    "--layout padded` writes it for whatever loads the source."
)
FEWER_BLOCKS = (
    "Every removed block saves its weights on disk, its memory, its share of the key-value cache and its time."
)
NARROWER = "Every removed neuron saves its weights on disk, its memory and its time."
PADDED = (
    "Blocks are filled up with zeros to the widest one: what the widest has lost is saved on disk, in memory and in "
    "time, and no more. `prunekit export FOLDER --layout per-layer` writes each block as wide as it is."
)
DENSE = (
    "The zeros are stored like any other number, in dense safetensors. File size, memory and speed are those "
    "of the source model, unless a runtime makes use of the zeros."
)


def write_card(
    folder: Path,
    manifest: Manifest,
    *,
    source: Path,
    command: str,
    verified: str | None = None,
    sample: tuple[str, str] | None = None,
) -> None:
    """Write `README.md` into a model folder; the arguments are those of `model_card`."""
    own = (folder / MODEL_FILE).is_file()
    card = model_card(manifest, source=source, command=command, verified=verified, sample=sample, model_file=own)
    write_atomically(folder / CARD, str(card))


def model_card(
    manifest: Manifest,
    *,
    source: Path,
    command: str,
    verified: str | None = None,
    sample: tuple[str, str] | None = None,
    model_file: bool = False,
) -> ModelCard:
    """The card of a pruned model.

    `source` is the folder of the model that was pruned, for its licence. `verified` is the mode of the
    verification, `sample` a prompt and its greedy continuation, `command` what repeats the run. `model_file`: one lies
    beside the weights, for blocks that are not equally wide.
    """
    text = _text(manifest, command, verified, sample, model_file)
    return ModelCard(f"---\n{_metadata(manifest, source).to_yaml()}\n---\n\n{text}")


def licence(source: Path) -> dict[str, Any]:
    """The licence of a model folder as card metadata: from its own card, else from its licence file."""
    found = _front_matter(source / CARD)
    if isinstance(found.get("license"), str | list):
        return {key: found[key] for key in ("license", "license_name", "license_link") if found.get(key)}
    files = sorted(path.name for pattern in LICENCES for path in source.glob(pattern))
    if not files:
        return {}
    return {"license": "other", "license_name": "license-of-the-source-model", "license_link": files[0]}


def _metadata(manifest: Manifest, source: Path) -> ModelCardData:
    """Front matter. Of the hub's relations (adapter, finetune, merge, quantized) pruning is a finetune."""
    base: dict[str, Any] = {}
    if manifest.source.kind == "hub":
        base = {"base_model": manifest.source.name, "base_model_relation": "finetune"}
    more = licence(source) | base
    if isinstance(language := _front_matter(source / CARD).get("language"), str | list):
        more["language"] = language
    tags = ["prunekit", "pruned", manifest.plan.method]
    if results := _results(manifest):
        more |= {"model_name": f"{short_name(manifest.source.name)}-{manifest.plan.method}", "eval_results": results}
    return ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags, **more)


def _results(manifest: Manifest) -> list[EvalResult]:
    """The perplexity in the hub's form, with the protocol that it depends on; the hub takes numbers only."""
    found = manifest.perplexity
    if not found or not isinstance(found["after"], int | float):
        return []
    protocol = {key: found[key] for key in ("protocol", "window", "windows", "tokens") if key in found}
    text = str(found["set"])
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=NAMED[text].repo if text in NAMED else text,
            dataset_name=text,
            dataset_revision=found.get("revision"),
            dataset_split=found.get("split"),
            metric_type="perplexity",
            metric_value=round(float(found["after"]), 4),
            metric_name=f"perplexity, protocol {found['protocol']}",
            metric_args=protocol,
        )
    ]


def _text(
    manifest: Manifest, command: str, verified: str | None, sample: tuple[str, str] | None, model_file: bool
) -> str:
    name, plan, result = code(manifest.source.name), manifest.plan, manifest.result
    parts = [
        f"# {name}, pruned with {plan.method}",
        f"{name} {_change(manifest)} by prunekit {manifest.prunekit}. `prunekit.json` holds the whole record.",
        "## What was done",
        _table(("", ""), _done(manifest)),
        *(f"- {' '.join(note.split())}" for note in manifest.notes),
        "## Measured",
        _counted(result),
        _perplexity(manifest.perplexity),
        VERIFIED[verified],
        "## Use",
        USE_PER_LAYER if model_file else USE,
        PER_LAYER if model_file else AS_SOURCE,
        "## Limits",
        DENSE if plan.sparsify() else "",
        FEWER_BLOCKS if plan.removed_blocks() else "",
        _narrower(manifest),
        "Perplexity on one text is a rough measure. Nothing else was evaluated here: no task, no long text, "
        "no other language, no safety. Pruning can change any of them. The source model's limits remain.",
        *_sample(sample),
        "## Repeat",
        indented(command),
        "Local files are named without their folders." if manifest.source.kind == "folder" else "",
        "With " + ", ".join(" ".join(pair) for pair in sorted(manifest.versions.items())) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _change(manifest: Manifest) -> str:
    """What was done to the source, as it goes on after its name."""
    plan, result = manifest.plan, manifest.result
    removed = f"without {len(result.removed_blocks)} of its {result.blocks + len(result.removed_blocks)} decoder blocks"
    chosen = manifest.recipe.get("targets") or manifest.recipe.get("ignore")
    where = f"{len(result.linears)} chosen linears" if chosen else "its decoder blocks' linears"
    zeroed = f"with {result.sparsity:.2%} of the weights in {where} set to zero"
    parts = [removed] if plan.removed_blocks() else []
    parts += [f"with {span(result.widths)} neurons in a decoder block's feed-forward layer"] if result.widths else []
    parts += [zeroed] if plan.sparsify() else []
    return " and ".join(parts) or "rewritten"


def _narrower(manifest: Manifest) -> str:
    widths = manifest.result.widths
    return (
        (PADDED if manifest.recipe.get("layout") == "padded" and len(set(widths)) > 1 else NARROWER) if widths else ""
    )


def _counted(result: Result) -> str:
    """Parameters and zeros, in a sentence each."""
    counted = f"The model has {result.parameters:,} parameters"
    if result.parameters != result.parameters_before:
        share = 1 - result.parameters / max(1, result.parameters_before)
        counted += f", {share:.2%} less than the source's {result.parameters_before:,}"
    if result.zeros:
        counted += (
            f". {result.zeros:,} of {result.weights:,} weights of its pruned linears are zero ({result.sparsity:.2%})"
        )
    return counted + "."


def _done(manifest: Manifest) -> Iterator[tuple[str, str]]:
    plan, recipe, source, calibration = manifest.plan, manifest.recipe, manifest.source, manifest.calibration
    result = manifest.result
    yield "source", code(source.spec)
    yield "method", code(plan.method) + _options(recipe.get("options"))
    yield "ratio", f"{plan.ratio:g}"
    if removed := plan.removed_blocks():
        yield "removed blocks", ", ".join(map(str, removed)) + " (counted from 0, in the source)"
    if result.widths:
        yield "widths", f"{span(result.widths)} neurons, layout {code(recipe.get('layout', 'uniform'))}"
    if actions := plan.sparsify():
        wanted = sorted(action.sparsity for action in actions.values())
        spread = f"{wanted[0]:.2%}" if wanted[0] == wanted[-1] else f"{wanted[0]:.2%} to {wanted[-1]:.2%}"
        yield "plan", f"{len(actions)} linears, each {spread} zeros"
        yield "pattern", ", ".join(sorted({code(action.pattern) for action in actions.values()}))
    if recipe.get("allocator") and (actions or (result.widths and recipe["allocator"] != "uniform")):
        yield "allocator", code(recipe["allocator"]) + _options(recipe.get("allocator_options"))
    for stage in manifest.stages[1:]:
        yield "recovery", code(stage.name) + _options(stage.options)
    if calibration:
        size = f"{calibration['samples']} sequences of {calibration['seq_len']} tokens"
        yield "calibration", f"{code(str(calibration['source']))}, {size}, seed {calibration['seed']}"


def _options(options: Mapping[str, Any] | None) -> str:
    return "".join(f", {key} = {code(json.dumps(value))}" for key, value in sorted((options or {}).items()))


def _perplexity(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "Perplexity was not measured."
    size = f"{found['windows']} windows of {found['window']} tokens, protocol {code(found['protocol'])}"
    row = (f"{code(str(found['set']))}, {size}", _number(found["before"]), _number(found["after"]))
    return _table(("perplexity on", "before", "after"), [row]) + (
        f"\n\nA quick figure over {found['tokens']:,} predicted tokens. It compares before with after; "
        "do not compare it with figures of other protocols, windows or texts."
    )


def _sample(sample: tuple[str, str] | None) -> list[str]:
    if sample is None:
        return []
    prompt, answer = sample
    return [
        "## Sample",
        "From the prompt",
        indented(prompt),
        "it goes on, greedily, with",
        indented(answer),
    ]


def code(text: str) -> str:
    """Text as one line of inline code that no character in it can end; usable in a table."""
    line = " ".join(text.split()).replace("|", "\\|") or " "
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def indented(text: str) -> str:
    """A code block; indentation holds whatever the text contains."""
    shown = "".join(letter if letter.isprintable() or letter == "\n" else UNPRINTABLE for letter in text)
    return "\n".join(f"    {line}" for line in (shown.strip("\n") or " ").split("\n"))


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float | int) else str(value)


def _front_matter(path: Path) -> dict[str, Any]:
    """The metadata of a card; empty when there is none or it cannot be read."""
    try:
        return (metadata_load(path) or {}) if path.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
