"""The exported folder holds what source and staging folder hold, as safetensors reads it, with the same bytes again."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunekit.errors import ResourceError, UsageError
from prunekit.export import folder as exporting
from prunekit.export.folder import NAMES, export, measure, parse_size, write_safetensors
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import Checkpoint, TensorInfo
from prunekit.model.prunable import PrunableModel

EVERY_KIND = {
    "half": torch.arange(3, dtype=torch.float16),
    "mask": torch.tensor([True, False, True]),
    "weight": torch.randn(5, 7),
    "scalar": torch.tensor(-1e9),
    "nothing": torch.zeros(0, 4),
    "brain": torch.randn(2, 3, 4).to(torch.bfloat16),
    "ids": torch.arange(4),
    "täglich.weight": torch.randn(4).to(torch.bfloat16),
}


def infos(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(NAMES[part.dtype], tuple(part.shape), "") for name, part in tensors.items()}


def opened(folder: Path) -> PrunableModel:
    return PrunableModel.open(Checkpoint.open(folder), device="cpu")


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: part for path in folder.glob("*.safetensors") for name, part in load_file(path).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def zero_first_block(model: PrunableModel, target: Path) -> tuple[PrunableModel, list[str]]:
    """The model with every linear of block 0 zeroed and committed; the names of their weights."""
    model = model.with_edits(Staging.open(target, {}).edits)
    with model.block(0) as block, torch.no_grad():
        for linear in model.blocks[0].linears:
            block.get_submodule(linear.path.removeprefix(f"{model.blocks[0].path}.")).get_parameter("weight").zero_()
        model.commit(0)
    return model, [f"{linear.path}.weight" for linear in model.blocks[0].linears]


def loads(folder: Path) -> Any:
    """The model as a user would load it, once the loading report is clean."""
    from transformers import AutoModelForCausalLM

    answer: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = answer
    assert not any(report.values()), report
    return model


def test_safetensors_reads_back_what_the_streaming_writer_wrote(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "ours", infos(EVERY_KIND), lambda names: {name: EVERY_KIND[name] for name in names})
    save_file(EVERY_KIND, tmp_path / "theirs", metadata={"format": "pt"})
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)
    with safe_open(tmp_path / "ours", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_tensor_is_aligned_to_its_own_width(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "file", infos(EVERY_KIND), lambda names: {name: EVERY_KIND[name] for name in names})
    raw = (tmp_path / "file").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert len(raw) == 8 + length + sum(part.nbytes for part in EVERY_KIND.values())
    assert all(header[name]["data_offsets"][0] % part.itemsize == 0 for name, part in EVERY_KIND.items())


def test_the_writer_asks_for_few_tensors_at_a_time_and_for_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BATCH_BYTES", 100)
    tensors, asked = {f"t{i}": torch.randn(10) for i in range(5)} | {"large": torch.randn(50)}, []

    def read(names: list[str]) -> dict[str, Tensor]:
        asked.append(names)
        return {name: tensors[name] for name in names}

    write_safetensors(tmp_path / "file", infos(tensors), read)
    assert asked == [["t0", "t1"], ["t2", "t3"], ["t4"], ["large"]]


def test_a_tensor_that_is_not_what_the_header_says_stops_the_writer(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"w became \('F16', \(2,\)\); the header says \('F32', \(2,\)\)"):
        write_safetensors(tmp_path / "f", {"w": TensorInfo("F32", (2,), "")}, lambda _: {"w": torch.zeros(2).half()})


def test_a_small_model_is_one_file_without_an_index(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    source = tiny_llama(max_shard_size="20KB")
    export(opened(source), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert list(Checkpoint.open(tmp_path / "out").tensors) == list(Checkpoint.open(source).tensors)


def test_shards_and_index_follow_the_hubs_rules(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    source = tiny_llama()
    export(opened(source), tmp_path / "out", max_shard_size="40KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(part.nbytes for part in stored(source).values())
    assert all((tmp_path / "out" / file).stat().st_size < 50_000 for file in files)
    before, after = loads(source).state_dict(), loads(tmp_path / "out").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edited_blocks_come_from_the_staging_folder_in_the_stored_dtype(
    tmp_path: Path, tiny_llama: Callable[..., Path], dtype: str
) -> None:
    source = tiny_llama(dtype=dtype)
    model = opened(source)
    model, edited = zero_first_block(model, tmp_path / "target")
    export(model, tmp_path / "out")
    before, after = stored(source), stored(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], torch.zeros_like(tensor) if name in edited else tensor)


def test_tensors_that_the_model_ignores_are_carried_over(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    source = tiny_llama()
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(4)}
    save_file(stored(source) | old, source / "model.safetensors", metadata={"format": "pt"})
    model = opened(source)
    model, _ = zero_first_block(model, tmp_path / "target")
    export(model, tmp_path / "out")
    assert all(torch.equal(stored(tmp_path / "out")[name], tensor) for name, tensor in old.items())


def test_config_json_is_the_sources_byte_for_byte(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    source = tiny_llama()
    config = json.loads((source / "config.json").read_text()) | {"rope_theta": 1e4, "someone's own key": [1]}
    (source / "config.json").write_text(json.dumps(config, indent=3) + "\n\n")
    export(opened(source), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_without_some_blocks_only_the_keys_that_count_them_change(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    source = tiny_llama(num_hidden_layers=4)
    model = opened(source)
    model = model.without({1, 2})
    export(model, tmp_path / "out")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out"))
    assert list(after) == list(before)
    assert {key for key in before if before[key] != after[key]} <= {"num_hidden_layers", "layer_types"}
    assert after["num_hidden_layers"] == 2


def test_the_blocks_after_a_removed_one_move_up_and_nothing_else_changes(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    source = tiny_llama(num_hidden_layers=4, max_shard_size="40KB")
    model = opened(source)
    model = model.without({1})
    export(model, tmp_path / "out", max_shard_size="40KB")
    before, after = stored(source), stored(tmp_path / "out")
    places = {0: 0, 2: 1, 3: 2}
    expected = {name: tensor for name, tensor in before.items() if ".layers." not in name}
    for old, new in places.items():
        prefix = f"model.layers.{old}."
        expected |= {
            f"model.layers.{new}.{name.removeprefix(prefix)}": tensor
            for name, tensor in before.items()
            if name.startswith(prefix)
        }
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())
    result = measure(model)
    assert (result.blocks, result.removed_blocks) == (3, (1,))
    assert result.parameters == sum(tensor.numel() for tensor in after.values())
    assert {path.split(".")[2] for path in result.linears} == {"0", "1", "2"}


def test_side_files_come_along_and_cards_and_other_weights_do_not(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    source = tiny_llama()
    for name in ("LICENSE", "chat_template.jinja", "stray.py", "README.md", "pytorch_model.bin", "model.gguf"):
        (source / name).write_text(name)
    export(opened(source), tmp_path / "out")
    found = contents(tmp_path / "out")
    assert all(found[name] == name.encode() for name in ("LICENSE", "chat_template.jinja"))
    assert not found.keys() & {"stray.py", "README.md", "pytorch_model.bin", "model.gguf"}


def test_files_behind_links_are_copied_as_files(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    cache = shutil.copytree(tiny_llama(), tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in cache.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    export(opened(tmp_path / "snapshot"), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_second_export_over_a_half_finished_one_gives_the_same_bytes(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    source = tiny_llama()
    export(opened(source), tmp_path / "one", max_shard_size="40KB")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "model-00001-of-00003.safetensors").write_bytes(b"cut off")
    export(opened(source), tmp_path / "two", max_shard_size="40KB")
    assert contents(tmp_path / "one").keys() <= contents(tmp_path / "two").keys()
    assert all((tmp_path / "two" / name).read_bytes() == data for name, data in contents(tmp_path / "one").items())


@pytest.fixture
def neox(tiny_model: Callable[..., Path]) -> Path:
    """A model whose head transformers renames while loading, so that it is loaded and saved whole."""
    from transformers import GPTNeoXConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return tiny_model(GPTNeoXConfig(**shape, vocab_size=320, max_position_embeddings=64), dtype="bfloat16")


def test_a_model_loaded_whole_keeps_the_stored_names_and_takes_the_edits(tmp_path: Path, neox: Path) -> None:
    (neox / "generation_config.json").unlink()
    model = opened(neox)
    assert not model.streaming
    model, edited = zero_first_block(model, tmp_path / "target")
    export(model, tmp_path / "out", max_shard_size="20KB")
    before, after = stored(neox), stored(tmp_path / "out")
    assert "embed_out.weight" in before
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], torch.zeros_like(tensor) if name in edited else tensor)
    assert (tmp_path / "out" / "config.json").read_bytes() == (neox / "config.json").read_bytes()
    assert not (tmp_path / "out" / "generation_config.json").exists()
    loads(tmp_path / "out")


def test_a_model_loaded_whole_is_exported_twice_to_the_same_bytes(tmp_path: Path, neox: Path) -> None:
    for name in ("one", "two"):
        export(opened(neox), tmp_path / name, max_shard_size="20KB")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_zeros_are_counted_per_linear_and_in_all(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    source = tiny_llama()
    model = opened(source)
    model, edited = zero_first_block(model, tmp_path / "target")
    result = measure(model)
    assert {f"{path}.weight" for path, linear in result.linears.items() if linear.zeros} == set(edited)
    assert result.sparsity == pytest.approx(0.25)
    assert result.zeros * 4 == result.weights == sum(linear.weights for linear in result.linears.values())
    assert result.parameters == sum(part.numel() for part in stored(source).values())


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5MB", 1_500_000), ("2KiB", 2048), ("9B", 9)])
def test_a_size_is_a_number_with_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "5 GB", "-1GB", "0GB", "5PB", "5Gi"])
def test_another_size_is_refused_with_an_example(tmp_path: Path, text: str, tiny_llama: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"is not a number of bytes such as 500MB"):
        export(opened(tiny_llama()), tmp_path / "out", max_shard_size=text)


def test_a_full_disk_is_a_resource_error(
    tmp_path: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "write_safetensors", full)
    with pytest.raises(ResourceError, match="is full"):
        export(opened(tiny_llama()), tmp_path / "out")
