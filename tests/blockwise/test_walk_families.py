"""The walker against plain transformers, on every family of `families.py`."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import families
from prunekit.blockwise.statistics import InputNorm
from prunekit.blockwise.stream import logits
from prunekit.blockwise.walk import walk
from prunekit.contract import Context, carry_out
from prunekit.errors import UnsupportedError
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.weights.masks import measure_sparsity, plan_sparsity
from prunekit_methods.uniform import Uniform
from prunekit_methods.wanda import Wanda

pytestmark = pytest.mark.slow

IDS = torch.randint(0, 320, (3, 24), generator=torch.Generator().manual_seed(7))
Folder = Callable[[str], Path]
RECURRENT = ("mamba", "jamba")  # their scans multiply rounding: 5e-6 of logits up to 5 on an AMD processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder of a family's tiny model, made once."""
    return cache(lambda family: families.save(family, tmp_path_factory.mktemp(family) / "source"))


def plain_logits(folder: Path, ids: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def context(folder: Path, target: Path) -> Context:
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    model = model.with_edits(Staging.open(target, {}).edits)
    return Context(model=model, ratio=0.5, probe=IDS[2:], calibration=IDS[:2], batch_size=2)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_streamed_logits_equal_the_plain_models_and_other_matrices_are_refused(folder: Folder, family: str) -> None:
    model = PrunableModel.open(Checkpoint.open(folder(family)), device="cpu")

    streamed = list(logits(model, IDS, batch_size=2))

    assert [tuple(part.shape) for part in streamed] == [(2, 24, 320), (1, 24, 320)]
    for part, ids in zip(streamed, IDS.split(2), strict=True):
        near = 1e-5 if family in RECURRENT else 1e-6
        torch.testing.assert_close(part, plain_logits(folder(family), ids), rtol=0, atol=near)
    assert model.streaming == (family not in families.WHOLE)
    refuse_or_plan(model, family)


def refuse_or_plan(model: PrunableModel, family: str) -> None:
    ctx = Context(model=model, ratio=0.5, probe=IDS[:1])
    ctx.budget = Uniform().allocate(ctx, 0.5)
    if family in families.FUSED:
        with pytest.raises(UnsupportedError, match=r"\.\d\..* \(\d.*\) is not a plain linear"):
            plan_sparsity(ctx, "wanda")
    else:
        assert len(plan_sparsity(ctx, "wanda").actions) == len(model.linears()) > 0


UNCHANGED = (
    *("llama", "gemma2", "gemma3n", "gemma4", "gpt2", "gpt_neox", "falcon", "bloom", "opt-projected", "xglm", "olmo3"),
    *("cohere2", "granite", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "lfm2"),
)


@pytest.mark.parametrize("family", UNCHANGED)
def test_a_walk_that_changes_nothing_gives_back_the_model(folder: Folder, family: str, tmp_path: Path) -> None:
    ctx = context(folder(family), tmp_path / "out")
    model, staging = ctx.model, ctx.model.edits
    assert staging is not None

    visited = [visit.block.index for visit in walk(ctx, InputNorm) if visit.statistics]

    assert visited == list(range(len(model.blocks)))
    for block in model.blocks:
        names = model.block_tensors(block.index)
        kept = staging.read_block(block.index, names)
        for name, tensor in model.with_edits(None).read(names).items():
            assert kept[name].dtype == tensor.dtype
            assert torch.equal(kept[name], tensor), name
    probe = load_file(staging.probe_path)["logits"]
    torch.testing.assert_close(probe, plain_logits(folder(family), IDS[2:])[0], rtol=0, atol=1e-6)


PRUNED = (
    *("gpt2", "falcon", "falcon-alibi", "opt", "opt-projected", "gpt_neox", "gpt_neo", "bloom", "mpt", "phi3"),
    *("codegen", "gemma3n", "gemma4", "minicpm3", "cohere"),
)


@pytest.mark.parametrize("family", PRUNED)
def test_wanda_prunes_and_commits_every_linear_and_nothing_else(folder: Folder, family: str, tmp_path: Path) -> None:
    ctx = context(folder(family), tmp_path / "out")
    ctx.budget = Uniform().allocate(ctx, 0.5)
    method = Wanda()

    carry_out(method, ctx, method.plan(ctx))

    model, staging = ctx.model, ctx.model.edits
    assert set(measure_sparsity(model).values()) == {0.5}
    names = [name for block in model.blocks for name in model.block_tensors(block.index)]
    pruned = model.read(names)
    weights = {f"{path}.weight" for path in model.linears()}
    for name, before in model.with_edits(None).read(names).items():
        kept = pruned[name] != 0 if name in weights else torch.ones_like(before, dtype=torch.bool)
        assert torch.equal(pruned[name][kept], before[kept]), name
    after = torch.cat(list(logits(model, IDS[2:])))[0]
    assert staging is not None
    torch.testing.assert_close(load_file(staging.probe_path)["logits"], after, rtol=0, atol=1e-6)
