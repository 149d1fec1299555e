import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from prunekit.errors import InputError, UnsupportedError
from prunekit.model.checkpoint import INDEX, SINGLE, Checkpoint

CONFIG: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def weights() -> dict[str, Tensor]:
    return {
        "up.weight": torch.arange(8, dtype=torch.float32).reshape(2, 4),
        "down.weight": torch.ones(4, 2, dtype=torch.bfloat16),
        "mask": torch.ones(3, dtype=torch.uint8),
    }


def single(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """A model folder of one weight file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    save_file(weights() if tensors is None else tensors, folder / SINGLE)
    return folder


def sharded(folder: Path, **places: Any) -> Path:
    """A model folder of two weight files; `places` replaces entries of the index."""
    single(folder)
    (folder / SINGLE).unlink()
    tensors = weights()
    save_file({"up.weight": tensors.pop("up.weight")}, folder / FIRST)
    save_file(tensors, folder / SECOND)
    index = {"up.weight": FIRST, "down.weight": SECOND, "mask": SECOND}
    named = {name.replace("_", "."): file for name, file in places.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index | named}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("make", [single, sharded])
def test_tensors_are_described_and_read_as_they_are_stored(make: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make(tmp_path / "m"))

    assert set(checkpoint.tensors) == set(weights())
    assert checkpoint.config["model_type"] == "llama"
    info = checkpoint.tensors["down.weight"]
    assert (info.dtype, info.shape, info.nbytes) == ("BF16", (4, 2), 16)
    read = checkpoint.read(checkpoint.tensors)
    for name, tensor in weights().items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    read = Checkpoint.open(folder).read(["up.weight"])["up.weight"]

    with (folder / SINGLE).open("r+b") as file:
        file.truncate(0)

    assert torch.equal(read, weights()["up.weight"])


def test_one_file_wins_over_an_index_as_it_does_in_transformers(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_file({"only.weight": torch.zeros(1)}, folder / SINGLE)

    assert list(Checkpoint.open(folder).tensors) == ["only.weight"]


def refused(folder: Path, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        Checkpoint.open(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder") as caught:
        Checkpoint.open(tmp_path / "absent")

    assert caught.value.exit_code == 4
    assert "hub id" in str(caught.value.hint)


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    refused(single(tmp_path / "m") / SINGLE, InputError, "is not a folder")


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / "config.json").unlink()

    refused(folder, InputError, r"has no config\.json")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"{", "not readable JSON"),
        (b"[1]", "holds a list"),
        (b"\xff\xfe", "not readable JSON"),
        (b"", "not readable JSON"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    folder = single(tmp_path / "m")
    (folder / "config.json").write_bytes(content)

    refused(folder, InputError, rf"config\.json.*{text}")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = single(tmp_path / "m")
    (folder / SINGLE).unlink()

    refused(folder, InputError, f"holds no {SINGLE} and no {INDEX}")


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    folder = single(tmp_path / "m")
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:keep])

    refused(folder, InputError, r"model\.safetensors is not a complete safetensors file")


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/tmp/x.safetensors", "sub/x.safetensors", "..", "", "a\\b.safetensors", "x.bin", 3, None],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, file: object) -> None:
    save_file(weights(), tmp_path / "x.safetensors")

    refused(
        sharded(tmp_path / "m", up_weight=file),
        InputError,
        "places up.weight in .*expected a safetensors file of this folder",
    )


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, content: str) -> None:
    folder = sharded(tmp_path / "m")
    (folder / INDEX).write_text(content, encoding="utf-8")

    refused(folder, InputError, "has no weight_map")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / SECOND).unlink()

    refused(folder, InputError, f"{SECOND} is missing")


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    refused(
        sharded(tmp_path / "m", down_weight=FIRST), InputError, f"places down.weight in {FIRST}, which does not hold it"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    broken = torch.ones(3, 3, dtype=dtype)
    broken[1, 2] = value
    checkpoint = Checkpoint.open(single(tmp_path / "m", weights() | {"bad.weight": broken}))

    assert checkpoint.read(["up.weight"])
    with pytest.raises(InputError, match=r"bad\.weight in model\.safetensors has NaN or infinite values"):
        checkpoint.read(["bad.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_large_finite_weights_whose_sum_overflows_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    large = torch.full((4, 4), torch.finfo(dtype).max, dtype=dtype)
    checkpoint = Checkpoint.open(single(tmp_path / "m", {"large.weight": large}))

    assert torch.equal(checkpoint.read(["large.weight"])["large.weight"], large)


def test_an_fp8_checkpoint_is_refused_by_tensor_and_dtype(tmp_path: Path) -> None:
    tensors = {"down.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}

    with pytest.raises(UnsupportedError, match=r"down\.weight is F8_E4M3; prunekit prunes F32, BF16 and F16") as caught:
        Checkpoint.open(single(tmp_path / "m", tensors))

    assert caught.value.exit_code == 3
    assert "unquantised" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["qweight", "weight_packed"])
def test_packed_weights_are_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = single(tmp_path / "m", {f"model.layers.0.mlp.up_proj.{name}": torch.ones(2, 2, dtype=torch.int32)})

    refused(folder, UnsupportedError, rf"up_proj\.{name} is I32")


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"bits": 4}}, "unknown"),
        ({"quantization_config": "fp8"}, "fp8"),
        ({"compression_config": {"quant_method": "sparseml"}}, "sparseml"),
    ],
)
def test_a_quantised_checkpoint_is_refused_with_its_method(tmp_path: Path, config: dict[str, Any], method: str) -> None:
    refused(single(tmp_path / "m", **config), UnsupportedError, rf"quantised \({method}\)")


def test_an_empty_quantization_config_means_not_quantised(tmp_path: Path) -> None:
    assert Checkpoint.open(single(tmp_path / "m", quantization_config=None)).tensors


def test_pickled_weights_are_refused_with_a_command_that_converts_them(
    tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_llama(num_hidden_layers=1)
    pickled = Checkpoint.open(folder).read(Checkpoint.open(folder).tensors)
    (folder / SINGLE).unlink()
    getattr(torch, "save")(pickled, folder / "pytorch_model.bin")  # noqa: B009

    with pytest.raises(UnsupportedError, match="never opens") as caught:
        Checkpoint.open(folder)
    command = shlex.split(str(caught.value.hint).partition(": ")[2])
    assert command[:2] == ["python", "-c"]
    monkeypatch.chdir(tmp_path)
    exec(command[2], {})

    converted = Checkpoint.open(tmp_path / "source-safetensors")
    assert (tmp_path / "source-safetensors" / "tokenizer.json").is_file()
    read = converted.read(converted.tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in pickled.items())


def test_the_fingerprint_covers_config_and_weights_and_changes_with_them(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    before = Checkpoint.open(folder).fingerprint()
    assert set(before) == {"config.json", FIRST, SECOND}
    assert before[FIRST] == hashlib.sha256((folder / FIRST).read_bytes()).hexdigest()

    save_file({"up.weight": torch.zeros(2, 4)}, folder / FIRST)
    after = Checkpoint.open(folder).fingerprint()

    assert {name for name in before if before[name] != after[name]} == {FIRST}


def test_the_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    one, other = single(tmp_path / "one"), single(tmp_path / "other")

    assert Checkpoint.open(one).fingerprint() == Checkpoint.open(other).fingerprint()


def test_files_of_the_hub_cache_are_not_read_again_since_their_name_is_their_hash(tmp_path: Path) -> None:
    folder = single(tmp_path / "snapshot")
    content = (folder / SINGLE).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "blobs").mkdir()
    config = (folder / "config.json").rename(tmp_path / "blobs" / ("a" * 40))
    (folder / "config.json").symlink_to(config)
    (folder / SINGLE).rename(tmp_path / "blobs" / digest)
    (folder / SINGLE).symlink_to(Path("..") / "blobs" / digest)

    found = Checkpoint.open(folder).fingerprint()

    assert found[SINGLE] == digest
    assert found["config.json"] == hashlib.sha256(config.read_bytes()).hexdigest()


def test_side_files_are_all_but_weights_config_readme_and_manifest(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    carried = [
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
    dropped = [
        "README.md",
        "modeling_own.py",
        "prunekit.json",
        ".gitattributes",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "m.gguf",
        "optimizer.pt",
    ]
    for name in carried + dropped:
        (folder / name).write_text("x", encoding="utf-8")
    (folder / "onnx").mkdir()

    assert [path.name for path in Checkpoint.open(folder).side_files()] == carried


def test_python_files_are_carried_only_for_a_model_that_names_them(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "modeling_own.py").write_text("x = 1\n", encoding="utf-8")
    assert Checkpoint.open(folder).side_files() == []

    own = {"auto_map": {"AutoTokenizer": ["modeling_own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    names = [path.name for path in Checkpoint.open(folder).side_files()]
    assert names == ["modeling_own.py", "tokenizer_config.json"]
