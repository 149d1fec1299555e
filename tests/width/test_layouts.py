"""A folder with narrower blocks is the model that was meant: exact logits in every layout, by plain transformers."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import families
from prunekit.errors import UsageError
from prunekit.export.checks import check_generation
from prunekit.export.folder import export, folder_changes, measure
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.loading import load
from prunekit.model.modeling_file import FILE, is_ours
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import features
from prunekit.width.neurons import cut, find_ffns, matrix

pytestmark = pytest.mark.slow

CUTTABLE = (  # of the families that `find_ffns` knows, one for each way of being built
    "llama qwen2 qwen3 gemma gemma2 gemma3 phi phi3 opt gpt2 gpt_neo gpt_neox gptj codegen falcon-new olmo2 granite "
    "cohere stablelm starcoder2 smollm3 glm4 exaone4 nemotron persimmon apertus xglm minicpm3"
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
    for index, ffn in find_ffns(model).items():
        order = torch.randperm(ffn.units, generator=torch.Generator().manual_seed(index))
        keeps[index] = torch.zeros(ffn.units, dtype=torch.bool).index_fill_(0, order[: widths[index]], True)
        reader = whole.get_submodule(f"{model.blocks[index].path}.{ffn.reader}")
        matrix(reader)[:, features(ffn.columns, (~keeps[index]).nonzero()[:, 0], ffn.units)] = 0
    whole.save_pretrained(folder)
    return keeps


def narrowed(folder: Path, keeps: Mapping[int, Tensor], target: Path) -> PrunableModel:
    """The model with only the neurons of the keep masks, its blocks finished in a staging folder."""
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu")
    ffns = find_ffns(model)
    model = model.with_edits(Staging.open(target, {}).edits).narrowed(ffns)
    for index, keep in keeps.items():
        with model.block(index) as module:
            cut(module, ffns[index], keep)
            model.commit(index)
    return model


def made(family: str, tmp_path: Path, layout: Any) -> tuple[Path, Path]:
    """A family's tiny model with silent neurons, and the export without them."""
    folder = families.save(family, tmp_path / "dense")
    depth = families.config(family).num_hidden_layers
    width = next(iter(find_ffns(PrunableModel.open(Checkpoint.open(folder), device="cpu")).values())).units
    widths = {index: width // 2 if layout == "uniform" or index % 2 else width // 2 + 8 for index in range(depth)}
    model = narrowed(folder, silence(folder, widths), tmp_path / "work")
    export(model, tmp_path / "out", folder_changes(model, layout))
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


def test_a_folder_per_layer_without_trust_fails_loudly(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, out = made("llama", tmp_path, "per-layer")
    with pytest.raises(Exception, match=r"per-layer attribute|size mismatch|mismatch"):
        AutoModelForCausalLM.from_pretrained(out)


def test_prunekit_load_needs_no_trust_for_its_own_file_and_for_nothing_else(tmp_path: Path) -> None:
    _, out = made("llama", tmp_path, "per-layer")
    assert torch.equal(logits(load(out)), logits(model_of(out, trust_remote_code=True)))
    (out / FILE).write_text((out / FILE).read_text() + "raise SystemExit('code ran')\n")
    assert not is_ours(out, json.loads((out / "config.json").read_text()))
    with pytest.raises(Exception, match=r"per-layer attribute|mismatch"):
        load(out)


def test_a_fresh_process_without_prunekit_loads_a_folder_per_layer(tmp_path: Path) -> None:
    _, out = made("gpt_neox", tmp_path, "per-layer")
    code = (
        "import sys; sys.modules['prunekit'] = None\n"
        "from transformers import AutoModel, AutoModelForCausalLM\n"
        f"for auto in (AutoModel, AutoModelForCausalLM):\n"
        f"    model, info = auto.from_pretrained({str(out)!r}, trust_remote_code=True, output_loading_info=True)\n"
        "    assert not info['missing_keys'] and not info['mismatched_keys'], info\n"
        "print(type(model).__name__, model.config.model_type)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["PerLayerGPTNeoXForCausalLM", "gpt_neox"], done.stderr


def test_the_config_changes_in_the_width_alone(tmp_path: Path) -> None:
    dense, out = made("llama", tmp_path, "uniform")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (dense, out))
    assert after == {**before, "intermediate_size": 32}
    assert not list(out.glob("*.py"))


def test_what_is_counted_is_what_is_written(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "dense")
    keeps = silence(tmp_path / "dense", {0: 32, 1: 40, 2: 32, 3: 64})
    model = narrowed(tmp_path / "dense", keeps, tmp_path / "work")
    sizes = {}
    for layout in ("per-layer", "padded"):
        export(model, tmp_path / layout, folder_changes(model, layout))
        counted, written = measure(model, folder_changes(model, layout)), Checkpoint.open(tmp_path / layout).tensors
        assert counted.parameters == sum(torch.Size(info.shape).numel() for info in written.values())
        assert counted.widths == (32, 40, 32, 64)
        sizes[layout] = counted.parameters
    assert sizes["padded"] == counted.parameters_before > sizes["per-layer"]


def test_unequal_widths_in_layout_uniform_are_a_usage_error(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "dense")
    keeps = silence(tmp_path / "dense", {0: 32, 1: 40, 2: 32, 3: 32})
    with pytest.raises(UsageError, match="32 to 40 neurons wide"):
        export(narrowed(tmp_path / "dense", keeps, tmp_path / "work"), tmp_path / "out")


def test_a_narrower_model_can_be_pruned_again(tmp_path: Path) -> None:
    _, out = made("llama", tmp_path, "per-layer")
    model = PrunableModel.open(Checkpoint.open(out), device="cpu")
    assert [ffn.units for ffn in find_ffns(model).values()] == [40, 32, 40, 32]


def test_blocks_that_are_gone_and_blocks_that_are_narrower_go_together(tmp_path: Path) -> None:
    families.save("llama", tmp_path / "dense")
    keeps = silence(tmp_path / "dense", {0: 32, 1: 40, 2: 32, 3: 64})
    model = narrowed(tmp_path / "dense", {index: keeps[index] for index in (0, 2, 3)}, tmp_path / "work")
    model = model.without({1}).narrowed({index: ffn for index, ffn in model.ffns.items() if index != 1})
    export(model, tmp_path / "out", folder_changes(model, "per-layer"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["per_layer_config"] == {"0": {"intermediate_size": 32}, "1": {"intermediate_size": 32}}
    assert logits(model_of(tmp_path / "out", trust_remote_code=True)).isfinite().all()
