"""What a model is made of, how it would be loaded and pruned, and how sparse it is already; as data."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor

from prunekit.model.checkpoint import BUFFER_DTYPES, Checkpoint, TensorInfo
from prunekit.model.hub import locate
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import Block, Linear, find_other_matrices
from prunekit.plan import Frozen
from prunekit.progress import Progress, Silent
from prunekit.spectra.power_law import METRICS
from prunekit.spectra.spectrum import Spectrum, metrics, spectra
from prunekit.weights.budgets import share_bits
from prunekit.weights.masks import zero_fraction

GROUPS = (2, 4, 8, 16)  # group sizes that an N:M pattern is looked for in
CLOSE = 0.02  # how far the sparsity may be from what the pattern implies


class LinearReport(Frozen):
    """One weight matrix of a block; `shape` is (outputs, inputs)."""

    path: str
    shape: tuple[int, int]
    dtype: str = Field(description="As stored.")
    parameters: int
    sparsity: float | None = Field(default=None, description="Fraction of exact zeros; null when it was not read.")
    pattern: str | None = Field(default=None, description="The N:M pattern that the zeros follow, if any.")


class BlockReport(Frozen):
    """One decoder block."""

    index: int
    path: str
    parameters: int
    bytes: int
    linears: tuple[LinearReport, ...]
    other_matrices: tuple[str, ...] = Field(description="Matrices that are not linears, such as fused experts.")


class SpectrumReport(Frozen):
    """What the spectrum of one linear says; 0 where a metric is not defined."""

    path: str
    block: int
    metrics: dict[str, float] = Field(description="Metric -> value; alpha_peak is AlphaPruning's.")
    remark: str | None = Field(description="Why an exponent is missing or means little.")
    bits: int | None = Field(default=None, description="Suggested by --bits; nothing is quantised here.")


class Destination(Frozen):
    """A program that may load the folder, and whether it will."""

    name: str
    loads: str = Field(description="yes, with trust_remote_code, or as the original.")
    because: str


class Inspection(Frozen):
    """All that `prunekit inspect` knows of a model."""

    model: str
    architecture: str
    model_type: str
    parameters: int
    bytes: int
    dtypes: dict[str, int] = Field(description="Stored dtype -> number of parameters.")
    hidden_size: int | None
    vocabulary: int | None
    context: int | None = Field(description="Longest sequence that the config allows.")
    tied_embeddings: bool
    stack: str = Field(description="Path of the decoder blocks.")
    blocks: tuple[BlockReport, ...]
    block_parameters: int
    sparsity: float | None = Field(description="Fraction of zeros in all linears of the blocks.")
    streams: bool = Field(description="Whether blocks are read one at a time; else the model is loaded whole.")
    whole_because: str | None
    destinations: tuple[Destination, ...]


def inspect(
    spec: str,
    *,
    sparsity: bool = True,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Look at a model; with `sparsity`, every linear is read once, one at a time.

    Raises InputError for a model that is missing or corrupt, UnsupportedError for one that cannot be pruned.
    """
    checkpoint = Checkpoint.open(locate(spec, offline=offline))
    model = PrunableModel.open(checkpoint, device="cpu", trust_remote_code=trust_remote_code)
    progress = progress or Silent()
    if sparsity:
        progress.stage("reading", len(model.blocks))
    blocks: list[BlockReport] = []
    for block in model.blocks:
        blocks.append(_block(model, block, sparsity))
        progress.step(block.path)
    return _describe(spec, model, tuple(blocks))


def inspect_spectra(
    spec: str, *, offline: bool = False, trust_remote_code: bool = False, progress: Progress | None = None
) -> list[Spectrum]:
    """The spectrum of every linear of the blocks, read one at a time; raises as `inspect`."""
    checkpoint = Checkpoint.open(locate(spec, offline=offline))
    model = PrunableModel.open(checkpoint, trust_remote_code=trust_remote_code)
    return list(spectra(model, progress=progress))


def describe_spectra(found: Sequence[Spectrum], bits: float | None = None) -> tuple[SpectrumReport, ...]:
    """Spectra as data; with a mean number of `bits`, a suggestion of how many each linear should be stored in."""
    alphas, _ = metrics(found, "alpha_peak")
    sizes = [spectrum.linear.parameters for spectrum in found]
    suggested = [None] * len(found) if bits is None or not found else share_bits(list(alphas.values()), sizes, bits)
    return tuple(
        SpectrumReport(
            path=spectrum.linear.path,
            block=spectrum.block,
            metrics={name: spectrum.measure(name) for name in METRICS},
            remark=spectrum.remark,
            bits=count,
        )
        for spectrum, count in zip(found, suggested, strict=True)
    )


def find_pattern(weight: Tensor, sparsity: float) -> str | None:
    """The N:M pattern of the zeros of a weight (outputs, inputs), with the smallest M, or None."""
    for group in GROUPS:
        if weight.shape[1] % group == 0:
            most = int((weight != 0).reshape(-1, group).sum(dim=1).max())
            if 0 < most < group and abs(sparsity - (1 - most / group)) <= CLOSE:
                return f"{most}:{group}"
    return None


def destinations(config: dict[str, Any]) -> tuple[Destination, ...]:
    """What loads a folder with this config."""
    architecture = (config.get("architectures") or ["its class"])[0]
    if "per_layer_config" in config.get("text_config", config):
        unequal = "blocks are not equally wide; prunekit export FOLDER --layout padded fills them up"
        return (
            Destination(name="transformers", loads="with trust_remote_code", because=unequal),
            Destination(name="vLLM", loads="no", because=unequal),
            Destination(name="GGUF converters", loads="no", because=unequal),
        )
    if "auto_map" in config:
        own = "the folder brings its own model code"
        return (
            Destination(name="transformers", loads="with trust_remote_code", because=own),
            Destination(name="vLLM", loads="as the original", because=own),
            Destination(name="GGUF converters", loads="as the original", because=own),
        )
    stock = f"config, names and shapes are those of a stock {architecture}"
    return (
        Destination(name="transformers", loads="yes", because=stock),
        Destination(name="vLLM", loads="as the original", because=stock),
        Destination(name="GGUF converters", loads="as the original", because=stock),
    )


def _block(model: PrunableModel, block: Block, sparsity: bool) -> BlockReport:
    stored = [model.tensors[name] for name in model.block_tensors(block.index)]
    return BlockReport(
        index=block.index,
        path=block.path,
        parameters=_parameters(stored),
        bytes=sum(info.nbytes for info in stored),
        linears=tuple(_linear(model, linear, sparsity) for linear in block.linears),
        other_matrices=find_other_matrices(model.stack[block.index], block.path),
    )


def _linear(model: PrunableModel, linear: Linear, sparsity: bool) -> LinearReport:
    name = f"{linear.path}.weight"
    report = LinearReport(
        path=linear.path, shape=linear.shape, dtype=model.tensors[name].dtype, parameters=linear.parameters
    )
    if not sparsity:
        return report
    weight = model.read([name])[name]
    zeros = zero_fraction(weight)
    pattern = find_pattern(weight.T if linear.transposed else weight, zeros) if zeros else None
    return report.model_copy(update={"sparsity": zeros, "pattern": pattern})


def _describe(spec: str, model: PrunableModel, blocks: tuple[BlockReport, ...]) -> Inspection:
    config, text = model.checkpoint.config, model.config.get_text_config()
    weights = [info for info in model.tensors.values() if info.dtype not in BUFFER_DTYPES]
    return Inspection(
        model=spec,
        architecture=type(model.skeleton).__name__,
        model_type=str(config.get("model_type", "")),
        parameters=_parameters(weights),
        bytes=sum(info.nbytes for info in weights),
        dtypes=_by_dtype(weights),
        hidden_size=getattr(text, "hidden_size", None),
        vocabulary=getattr(text, "vocab_size", None),
        context=getattr(text, "max_position_embeddings", None),
        tied_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        stack=model.stack_path,
        blocks=blocks,
        block_parameters=sum(block.parameters for block in blocks),
        sparsity=_mean_sparsity([linear for block in blocks for linear in block.linears]),
        streams=model.streaming,
        whole_because=model.whole_because,
        destinations=destinations(config),
    )


def _parameters(stored: Iterable[TensorInfo]) -> int:
    return sum(math.prod(info.shape) for info in stored if info.dtype not in BUFFER_DTYPES)


def _by_dtype(weights: Iterable[TensorInfo]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for info in weights:
        counts[info.dtype] = counts.get(info.dtype, 0) + math.prod(info.shape)
    return counts


def _mean_sparsity(linears: list[LinearReport]) -> float | None:
    """Fraction of zeros over all linears, or None when they were not read."""
    total = sum(linear.parameters for linear in linears)
    if not total or any(linear.sparsity is None for linear in linears):
        return None
    return sum(linear.parameters * (linear.sparsity or 0) for linear in linears) / total
