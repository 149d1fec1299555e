from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.compare.inspection import Inspection, destinations, find_pattern, inspect
from prunekit.errors import InputError, UnsupportedError

Make = Callable[..., Path]


def test_a_model_is_described_by_what_is_stored(tiny_llama: Make) -> None:
    folder = tiny_llama(dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")
    found = inspect(str(folder))

    assert (found.architecture, found.model_type, found.stack) == ("LlamaForCausalLM", "llama", "model.layers")
    assert found.parameters == sum(tensor.numel() for tensor in stored.values())
    assert found.bytes == 2 * found.parameters
    assert found.dtypes == {"BF16": found.parameters}
    assert (found.hidden_size, found.vocabulary, found.context) == (32, 320, 128)
    assert found.streams and found.whole_because is None
    assert [block.index for block in found.blocks] == [0, 1, 2, 3]
    assert found.block_parameters == sum(tensor.numel() for name, tensor in stored.items() if ".layers." in name)
    assert Inspection.model_validate_json(found.model_dump_json()) == found


def test_sparsity_and_pattern_are_those_of_the_stored_weights(tiny_llama: Make) -> None:
    folder = tiny_llama()
    tensors = load_file(folder / "model.safetensors")
    up, down = "model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj"
    tensors[f"{up}.weight"].view(-1, 4)[:, :2] = 0
    tensors[f"{down}.weight"][:16] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = inspect(str(folder))
    linears = {linear.path: linear for block in found.blocks for linear in block.linears}

    assert (linears[up].sparsity, linears[up].pattern) == (0.5, "2:4")
    assert (linears[down].sparsity, linears[down].pattern) == (0.5, None)
    assert (linears[up].shape, linears[down].shape) == ((64, 32), (32, 64))
    zeros = sum(int((tensors[f"{path}.weight"] == 0).sum()) for path in linears)
    assert found.sparsity == pytest.approx(zeros / sum(linear.parameters for linear in linears.values()))


def test_sparsity_is_left_out_on_demand(tiny_llama: Make) -> None:
    found = inspect(str(tiny_llama()), sparsity=False)

    assert found.sparsity is None
    assert all(linear.sparsity is None for block in found.blocks for linear in block.linears)


def test_a_model_that_transformers_converts_while_loading_is_said_to_be_loaded_whole(tiny_model: Make) -> None:
    from transformers import GPT2Config

    found = inspect(str(tiny_model(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=320, n_positions=64))))

    assert found.streams == (found.whole_because is None)
    shapes = {linear.path.rpartition(".")[2]: linear.shape for linear in found.blocks[0].linears}
    assert shapes["c_fc"] == (64, 16)  # outputs first, although GPT-2 stores inputs first


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_an_n_m_pattern_is_found(kept: int, group: int) -> None:
    weight = torch.ones(8, 16)
    weight.view(-1, group)[:, : group - kept] = 0

    assert find_pattern(weight, 1 - kept / group) == f"{kept}:{group}"


def test_zeros_that_follow_no_pattern_are_not_called_one() -> None:
    torch.manual_seed(0)
    weight = torch.rand(64, 64)
    scattered = weight * (weight > 0.5)

    assert find_pattern(weight, 0.0) is None
    assert find_pattern(scattered, float((scattered == 0).float().mean())) is None
    assert find_pattern(torch.zeros(4, 8), 1.0) is None
    assert find_pattern(torch.ones(4, 7), 0.0) is None


def test_a_folder_with_its_own_code_needs_trust_everywhere() -> None:
    own = {destination.name: destination.loads for destination in destinations({"auto_map": {}})}
    stock = {
        destination.name: destination.loads for destination in destinations({"architectures": ["LlamaForCausalLM"]})
    }

    assert own["transformers"] == "with trust_remote_code"
    assert stock["transformers"] == "yes"
    assert own.keys() == stock.keys() == {"transformers", "vLLM", "GGUF converters"}


def test_what_cannot_be_read_or_pruned_is_refused(tmp_path: Path, tiny_llama: Make) -> None:
    with pytest.raises(InputError):
        inspect(str(tmp_path / "nowhere"))
    folder = tiny_llama()
    (folder / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    with pytest.raises(UnsupportedError, match="BertForMaskedLM"):
        inspect(str(folder))
