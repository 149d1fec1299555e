"""A folder with narrower blocks is the model that was meant: exact logits in every layout, by plain transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from prunekit.checkpoint import Checkpoint
from prunekit.checks import check_generation
from prunekit.export import export
from prunekit.model import PrunableModel
from prunekit.staging import Staging
from prunekit.structure import features
from prunekit.width import cut, find_sites, matrix

CUTTABLE = (
    "llama mistral ministral qwen2 qwen3 gemma gemma2 gemma3 phi phi3 opt gpt2 gpt_neo gpt_neox gptj codegen "
    "falcon-new olmo olmo2 olmo3 granite cohere cohere2 stablelm starcoder2 smollm3 glm glm4 exaone4 ernie4_5 "
    "nemotron persimmon seed_oss hunyuan helium apertus arcee xglm biogpt minicpm3 nanochat ministral3 vaultgemma"
).split()
IDS = torch.arange(24)[None] * 7 % 320
EXACT = 1e-6  # of logits of the order of one


def model_of(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    answer: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model, report = answer
    assert not any(report.values()), report
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS, use_cache=False).logits


def silence(folder: Path, widths: Mapping[int, int]) -> dict[int, Tensor]:
    """Zero, in the files, the columns that read all but so many neurons of each block; keep mask per block."""
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    keeps: dict[int, Tensor] = {}
    whole = model_of(folder)
    for index, site in find_sites(model).items():
        order = torch.randperm(site.units, generator=torch.Generator().manual_seed(index))
        keeps[index] = torch.zeros(site.units, dtype=torch.bool).index_fill_(0, order[: widths[index]], True)
        reader = whole.get_submodule(f"{model.blocks[index].path}.{site.reader}")
        matrix(reader)[:, features(site.columns, (~keeps[index]).nonzero()[:, 0], site.units)] = 0
    whole.save_pretrained(folder)
    return keeps


def narrowed(folder: Path, keeps: Mapping[int, Tensor], target: Path) -> PrunableModel:
    """The model with only the neurons of the keep masks, its blocks finished in a staging folder."""
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    sites = find_sites(model)
    model.edits, model.sites = Staging.open(target, {}), {(index, "mlp"): site for index, site in sites.items()}
    for index, keep in keeps.items():
        with model.block(index) as module:
            cut(module, sites[index], keep)
            model.commit(index)
    return model


def made(family: str, tmp_path: Path, layout: Any) -> tuple[Path, Path]:
    """A family's tiny model with silent neurons, and the export without them."""
    folder = families.save(family, tmp_path / "dense")
    depth = families.config(family).num_hidden_layers
    width = next(iter(find_sites(PrunableModel.open(Checkpoint.open(folder), device="cpu")).values())).units
    widths = {index: width // 2 if layout == "uniform" or index % 2 else width // 2 + 8 for index in range(depth)}
    model = narrowed(folder, silence(folder, widths), tmp_path / "work")
    export(model, tmp_path / "out", layout=layout)
    return folder, tmp_path / "out"


@pytest.mark.parametrize("layout", ["uniform", "per-layer", "padded"])
@pytest.mark.parametrize("family", CUTTABLE)
def test_cutting_neurons_that_nobody_reads_changes_no_logit(family: str, layout: str, tmp_path: Path) -> None:
    dense, out = made(family, tmp_path, layout)
    model = model_of(out, trust_remote_code=layout == "per-layer")
    expected, found = logits(model_of(dense)), logits(model)
    assert (found - expected).abs().max() <= EXACT * expected.abs().max().clamp_min(1)
    check, _ = check_generation(model, IDS[:, :8])
    assert check.passed, check.detail
    model.save_pretrained(tmp_path / "again")
    again = logits(model_of(tmp_path / "again", trust_remote_code=layout == "per-layer"))
    assert torch.equal(again, found)
