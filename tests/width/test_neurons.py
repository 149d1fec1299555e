"""Neurons are found by running a block, cut consistently, and refused where cutting is not the same as ignoring."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import depth_families
import families
from prunekit.blockwise.stream import Stream
from prunekit.errors import UnsupportedError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.model.structure import FFN, Block, Linear, features
from prunekit.width.neurons import cut, disproof, find_ffns, find_neurons, is_added, per_unit, shorten, widen

GATED = ({"mlp.gate_proj": (1,), "mlp.up_proj": (1,)}, "mlp.down_proj")


def opened(folder: Path) -> PrunableModel:
    return PrunableModel.open(Checkpoint.open(folder), device="cpu")


@pytest.mark.parametrize(
    ("family", "units", "writers", "reader"),
    [
        ("llama", 64, *GATED),
        ("phi3", 64, {"mlp.gate_up_proj": (1, 1)}, "mlp.down_proj"),
        ("gpt2", 128, {"mlp.c_fc": (1,)}, "mlp.c_proj"),
        ("opt", 64, {"fc1": (1,)}, "fc2"),
        ("gpt_neox", 64, {"mlp.dense_h_to_4h": (1,)}, "mlp.dense_4h_to_h"),
        (
            "qwen3_next",
            32,
            {"mlp.shared_expert.gate_proj": (1,), "mlp.shared_expert.up_proj": (1,)},
            "mlp.shared_expert.down_proj",
        ),
    ],
)
def test_the_linears_of_a_neuron_are_found_whatever_they_are_called(
    family: str, units: int, writers: dict, reader: str, tmp_path: Path
) -> None:
    ffns = find_ffns(opened(families.save(family, tmp_path)))
    assert [ffn.block for ffn in ffns.values()] == list(range(families.config(family).num_hidden_layers))
    assert all((ffn.units, dict(ffn.writers), ffn.reader) == (units, writers, reader) for ffn in ffns.values())


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "mamba", "gemma3n"])
def test_a_block_without_one_set_of_neurons_is_refused_by_name(family: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"layers\.\d .*linear"):
        find_ffns(opened(families.save(family, tmp_path)))


def test_a_norm_over_all_neurons_is_noticed(tmp_path: Path) -> None:
    model = opened(depth_families.save(depth_families.config("bitnet"), tmp_path))
    with pytest.raises(UnsupportedError, match="neuron"):
        find_ffns(model)


class Interleaved(nn.Module):
    """A gated layer whose fused projection gives gate and value of a neuron one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.both, self.down = nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).unflatten(-1, (-1, 2)).unbind(-1)
        return x + self.down(torch.sigmoid(gate) * value)


BLOCK = Block(0, "b", (Linear("b.both", (24, 8)), Linear("b.down", (8, 12))))
X = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))


def run(module: nn.Module) -> Tensor:
    return module(X)


def test_interleaved_gates_are_told_from_halves() -> None:
    ffn = find_neurons(BLOCK, Interleaved(), run)
    assert (dict(ffn.writers), ffn.reader, ffn.units) == ({"both": (2,)}, "down", 12)
    halves = FFN(0, 12, {"both": (1, 1)}, "down")
    assert disproof(ffn, Interleaved(), run) is None
    assert "changes by" in (disproof(halves, Interleaved(), run) or "")


def test_cutting_is_ignoring_and_keeps_the_order() -> None:
    module, ffn = Interleaved(), FFN(0, 12, {"both": (2,)}, "down")
    keep = torch.arange(12) % 3 > 0
    expected = module.down.weight.detach()[:, keep].clone()
    ignoring = Interleaved()
    ignoring.down.weight.data[:, ~keep] = 0
    cut(module, ffn, keep)
    torch.testing.assert_close(run(module), run(ignoring))
    assert torch.equal(module.down.weight, expected)
    assert (module.both.out_features, module.down.in_features, len(module.both.bias)) == (16, 8, 16)


def test_features_of_segments() -> None:
    units = torch.tensor([0, 2])
    assert features((1, 1), units, 4).tolist() == [0, 2, 4, 6]
    assert features((2,), units, 4).tolist() == [0, 1, 4, 5]
    assert features((2, 1), units, 3).tolist() == [0, 1, 4, 5, 6, 8]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["up.weight", "up.bias", "down.weight", "down.bias", "norm.weight"])
def test_a_tensor_that_is_filled_up_and_shortened_is_itself(name: str, transposed: bool) -> None:
    ffn = FFN(0, 6, {"up": (1, 1)}, "down")
    shapes = {"up.weight": (12, 5), "up.bias": (12,), "down.weight": (5, 6), "down.bias": (5,), "norm.weight": (5,)}
    tensor = torch.rand(shapes[name]) + 1
    tensor = tensor.T if transposed and tensor.dim() == 2 else tensor
    wide = widen(ffn, name, tensor, 6, 9, transposed)
    assert int((wide == 0).sum()) == wide.numel() - tensor.numel()
    wider = FFN(0, 9, ffn.writers, "down")
    assert torch.equal(shorten(wider, name, wide, 6, transposed), tensor)


def test_values_are_summed_over_all_weights_of_a_neuron(tmp_path: Path) -> None:
    model = opened(families.save("gpt2", tmp_path))
    ffn = find_ffns(model)[0]
    with model.block(0) as module:
        values = {name: part.square() for name, part in module.named_parameters()}
        found = per_unit(ffn, values, module)
        expected = module.get_parameter("mlp.c_fc.weight").square().sum(dim=0)
        expected += module.get_parameter("mlp.c_proj.weight").square().sum(dim=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("family", "added"), [("llama", True), ("opt", True), ("gptj", True), ("gemma2", False)])
def test_whether_the_reader_is_added_to_the_hidden_states_is_found_out(
    family: str, added: bool, tmp_path: Path
) -> None:
    model = opened(families.save(family, tmp_path))
    ffn, stream = find_ffns(model)[0], Stream(model, [torch.arange(8)[None]])
    with model.block(0) as module:
        assert is_added(ffn, module, lambda part: stream.run(part, model.blocks[0], 0)) is added


def test_an_embedding_of_zeros_hides_no_neuron(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = families.save("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:16] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert find_ffns(opened(folder))[0].reader == "mlp.down_proj"
