"""The model file of layout per-layer: known to the letter, and nothing else runs without being trusted."""

import json
from pathlib import Path

import pytest

import families
from prunekit.errors import UnsupportedError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.modeling_file import FILE, auto_map, is_ours, read, render
from prunekit.model.prunable import PrunableModel
from prunekit.model.skeleton import build_skeleton
from prunekit.model.structure import FFN

SITE = FFN(0, 64, {"mlp.gate_up_proj": (1, 1), "mlp.down-like": (1,)}, "mlp.down_proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a rendered model file and a config that leads to it."""
    families.save("llama", tmp_path)
    skeleton = build_skeleton(Checkpoint.open(tmp_path))
    ffn = FFN(0, 64, {"mlp.gate_proj": (1,), "mlp.up_proj": (1,)}, "mlp.down_proj")
    (tmp_path / FILE).write_text(render(skeleton, "model.layers", "intermediate_size", 1, ffn))
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"per_layer_config": {"1": {"intermediate_size": 32}}, "auto_map": auto_map(skeleton)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_a_file_as_it_was_rendered_is_ours_and_says_its_names(folder: Path) -> None:
    assert is_ours(folder, config_of(folder))
    names = read(folder)
    assert names is not None
    assert (names["causal"], names["key"], names["blocks"]) == ("LlamaForCausalLM", "intermediate_size", "layers")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import nn", "import nn, hub"),
        ("class PerLayer:", "import os\nclass PerLayer:"),
        ('"intermediate_size"', '"x" + str(print(1))'),
        ("transformers.models.llama.modeling_llama", "somewhere.models.llama.modeling_llama"),
        ('{"mlp.gate_proj": 1', '{__import__("os").getcwd(): 1'),
        ("PerLayerLlamaModel", "PerLayerLlamaModell"),
        ("from torch import nn", "from torch import nn\n"),
    ],
)
def test_a_file_that_was_changed_is_not_ours(folder: Path, old: str, new: str) -> None:
    text = (folder / FILE).read_text()
    assert old in text
    (folder / FILE).write_text(text.replace(old, new))
    assert not is_ours(folder, config_of(folder))


@pytest.mark.parametrize(
    "classes",
    [
        {"AutoModelForCausalLM": "modeling_other.PerLayerLlamaForCausalLM"},
        {"AutoModelForCausalLM": "someone/repo--modeling_prunekit.PerLayerLlamaForCausalLM"},
        {"AutoConfig": "modeling_prunekit.PerLayerLlamaModel"},
        {"AutoModelForCausalLM": "modeling_prunekit.PerLayer"},
        None,
    ],
)
def test_a_config_that_leads_elsewhere_is_not_ours(folder: Path, classes: object) -> None:
    assert not is_ours(folder, {**config_of(folder), "auto_map": classes})


def test_a_rendered_file_builds_narrower_blocks_without_being_trusted(folder: Path) -> None:
    model = build_skeleton(Checkpoint.open(folder))
    widths = [block.mlp.down_proj.in_features for block in model.get_submodule("model.layers")]  # type: ignore[union-attr]
    assert widths == [64, 32, 64, 64]


def test_other_code_is_refused_until_it_is_trusted(folder: Path) -> None:
    from prunekit.errors import InputError

    (folder / FILE).write_text((folder / FILE).read_text() + "# changed\n")
    with pytest.raises((InputError, UnsupportedError)):
        PrunableModel.open(Checkpoint.open(folder), device="cpu")


def test_a_name_that_is_no_name_never_makes_a_file_of_ours(folder: Path) -> None:
    skeleton = build_skeleton(Checkpoint.open(families.save("llama", folder / "plain")))
    (folder / FILE).write_text(render(skeleton, "model.layers", "intermediate_size", 1, SITE))
    assert not is_ours(folder, config_of(folder)), "a hyphen is in no name of a module"


def test_a_folder_with_a_generate_of_its_own_is_not_ours_wherever_that_is(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_other.py").write_text("raise SystemExit('nobody imports this')\n")
    assert is_ours(folder, config_of(folder))
    (tmp_path / "elsewhere").mkdir()
    (folder / "custom_generate").symlink_to(tmp_path / "elsewhere")
    assert not is_ours(folder, config_of(folder))
