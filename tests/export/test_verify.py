"""Each way in which a folder can be wrong fails the check that looks for it, and a sound folder passes them all."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunekit.blockwise.stream import logits
from prunekit.errors import InputError, ResourceError, UnsupportedError, VerificationError
from prunekit.export import verify as verifying
from prunekit.export.checks import (
    Check,
    check_files,
    check_logits,
    check_manifest,
    compare_generations,
    distance,
    tolerance,
)
from prunekit.export.folder import export, measure
from prunekit.export.manifest import Manifest, Source
from prunekit.export.verify import fits, free_memory, inspect_folder, main, verify
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.plan import PrunePlan

CPU = torch.device("cpu")
PROBE = torch.arange(24).unsqueeze(0) * 13 % 320


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Holds `out`, an exported model of several files with its manifest, and its recorded logits beside it."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(**shape, vocab_size=320, max_position_embeddings=128, initializer_range=0.2)
    place = tmp_path_factory.mktemp("sound")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(place / "source")
    shutil.copytree(tiny_tokenizer, place / "source", dirs_exist_ok=True)
    return exported(place / "source", place).parent


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy of the exported model, to be damaged."""
    return shutil.copytree(sound, tmp_path / "copy") / "out"


def exported(source: Path, tmp_path: Path) -> Path:
    model = PrunableModel.open(Checkpoint.open(source), device="cpu")
    export(model, tmp_path / "out", max_shard_size="60KB")
    plan = PrunePlan(method="magnitude", ratio=0.5, actions=())
    where = Source.of("sample", source, model.checkpoint.fingerprint())
    Manifest.of(source=where, recipe={}, plan=plan, result=measure(model)).write(tmp_path / "out")
    answer = next(logits(model, PROBE))[0]
    save_file({"input_ids": PROBE, "logits": answer.float().contiguous()}, tmp_path / "probe.safetensors")
    return tmp_path / "out"


def failed(folder: Path, mode: str = "full") -> dict[str, str]:
    """Name -> detail of every check that fails."""
    found = inspect_folder(folder, folder.parent / "probe.safetensors", mode, device="cpu")
    return {check.name: check.detail for check in found.checks if not check.passed}


def rewrite(folder: Path, name: str, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change the tensors of the file that holds one of them."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    path = folder / index["weight_map"][name]
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("mode", ["full", "streaming"])
def test_a_sound_folder_passes_every_check(folder: Path, mode: str) -> None:
    found = inspect_folder(folder, folder.parent / "probe.safetensors", mode, device="cpu")
    assert found.passed, found
    assert found.mode == mode
    names = ["files", "loads", "manifest", "logits"]
    assert [check.name for check in found.checks] == (names if mode == "streaming" else [*names, "generation"])
    assert (found.generated is None) == (mode == "streaming")
    assert next(check.detail for check in found.checks if check.name == "manifest").startswith("the zeros of 28 of 28")


def test_the_greedy_continuation_is_the_one_a_user_gets(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = inspect_folder(folder, folder.parent / "probe.safetensors", "full", device="cpu").generated
    assert found is not None
    assert found.prompt == PROBE[0, :16].tolist()
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([found.prompt])
    for token in found.tokens:
        assert int(model(ids).logits[0, -1].argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert len(found.tokens) == 20


def test_a_folder_without_tokenizer_probe_and_manifest_passes(folder: Path) -> None:
    for path in [*folder.glob("token*"), folder / "generation_config.json", folder / "prunekit.json"]:
        path.unlink()
    found = inspect_folder(folder, device="cpu", mode="full")
    assert [check.name for check in found.checks if check.passed] == ["files", "loads", "generation"]


def test_a_model_that_transformers_renames_passes(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    from transformers import GPTNeoXConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    source = tiny_model(GPTNeoXConfig(**shape, vocab_size=320, max_position_embeddings=36), dtype="bfloat16")
    folder = exported(source, tmp_path)
    assert failed(folder) == failed(folder, "streaming") == {}


def test_old_mask_buffers_of_the_source_pass(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    from transformers import GPT2Config

    source = tiny_model(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=320, bos_token_id=0, eos_token_id=0)
    )
    old = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    old |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril() for i in range(2)}
    save_file(load_file(source / "model.safetensors") | old, source / "model.safetensors", metadata={"format": "pt"})
    folder = exported(source, tmp_path)
    assert failed(folder) == {}
    assert old.keys() <= Checkpoint.open(folder).tensors.keys()


def test_a_missing_shard_fails(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.unlink()
    assert failed(folder) == {"files": f"{path.name} is missing"}


def test_a_cut_shard_fails(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path.name} cannot be read" in failed(folder)["files"]


def test_a_tensor_that_is_not_where_the_index_says_fails(folder: Path) -> None:
    rewrite(folder, "model.norm.weight", lambda tensors: tensors.pop("model.norm.weight"))
    assert failed(folder) == {"files": "the index names model.norm.weight, which its file does not hold"}


def test_a_tensor_that_the_index_does_not_name_fails(folder: Path) -> None:
    rewrite(folder, "model.norm.weight", lambda tensors: tensors.update(extra=torch.zeros(2)))
    assert failed(folder) == {"files": "the files hold extra, which the index does not name"}


def test_a_weight_file_beside_the_index_fails(folder: Path) -> None:
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    assert failed(folder) == {"files": "model.safetensors is not in the index"}


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        ("[]", "config.json is missing or is not a JSON object"),
        ("{", "config.json is missing or is not a JSON object"),
        ("{}", "config.json names no model_type"),
    ],
)
def test_a_config_that_is_none_fails(folder: Path, content: str, detail: str) -> None:
    (folder / "config.json").write_text(content)
    assert failed(folder) == {"files": detail}


def test_an_index_that_is_none_fails(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
    assert "is not a JSON object with a weight_map" in failed(folder)["files"]


@pytest.mark.parametrize("mode", ["full", "streaming"])
def test_a_tensor_that_the_model_does_not_want_fails(folder: Path, mode: str) -> None:
    path = rewrite(
        folder, "model.norm.weight", lambda tensors: tensors.update({"model.extra.weight": torch.zeros(2, 2)})
    )
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    change_json(index, weight_map=places | {"model.extra.weight": path.name})
    assert failed(folder, mode) == {"loads": "unexpected keys: model.extra.weight"}


@pytest.mark.parametrize("mode", ["full", "streaming"])
def test_a_config_with_one_block_too_many_fails(folder: Path, mode: str) -> None:
    change_json(folder / "config.json", num_hidden_layers=5)
    detail = failed(folder, mode)["loads"]
    assert detail.startswith("missing keys: model.layers.4.input_layernorm.weight, ")
    assert detail.endswith(" and 7 more")


@pytest.mark.parametrize("mode", ["full", "streaming"])
def test_a_config_of_another_width_fails(folder: Path, mode: str) -> None:
    change_json(folder / "config.json", intermediate_size=72)
    assert "model.layers.0.mlp.down_proj.weight (stored (32, 64), wanted (32, 72))" in failed(folder, mode)["loads"]


def test_a_config_that_transformers_cannot_build_fails(folder: Path) -> None:
    change_json(folder / "config.json", num_attention_heads=0)
    assert "from_pretrained fails" in failed(folder)["loads"]


@pytest.mark.parametrize("mode", ["full", "streaming"])
def test_a_tensor_of_other_numbers_fails(folder: Path, mode: str) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(folder, name, lambda tensors: tensors.update({name: tensors[name].flip(0).contiguous()}))
    assert failed(folder, mode).keys() == {"logits"}


def test_zeros_that_the_manifest_does_not_know_fail(folder: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(folder, name, lambda tensors: tensors[name][0].zero_())
    assert failed(folder)["manifest"] == "model.layers.2.mlp.up_proj has 32 zeros, the manifest says 0"


def test_a_manifest_that_cannot_be_read_fails(tmp_path: Path) -> None:
    assert check_manifest(tmp_path) is None
    (tmp_path / "prunekit.json").write_text("{}")
    check = check_manifest(tmp_path)
    assert check is not None
    assert not check.passed


def test_an_empty_folder_fails(tmp_path: Path) -> None:
    check, tensors = check_files(tmp_path)
    assert not check.passed
    assert tensors == {}
    assert "one model.safetensors is expected, found none" in check.detail


def test_logits_may_differ_by_rounding_and_no_more() -> None:
    expected = torch.tensor([[4.0, -8.0, float("-inf")]])
    assert check_logits(expected + 1e-4, expected, tolerance(torch.float32)).passed
    assert not check_logits(expected + 1e-2, expected, tolerance(torch.float32)).passed
    assert not check_logits(expected * float("nan"), expected, tolerance(torch.bfloat16)).passed
    assert not check_logits(expected[:, :2], expected, tolerance(torch.bfloat16)).passed
    assert distance(expected, expected) == 0


def run(tokens: list[int], *rows: list[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(tokens), torch.tensor(rows)


@pytest.mark.parametrize(
    ("cached", "plain", "exact", "passed"),
    [
        pytest.param(run([0, 1], [9, 1], [1, 9]), run([0, 1], [9, 1], [1, 9]), True, True, id="equal"),
        pytest.param(run([0, 1], [9, 1], [1, 9]), run([0, 1], [9, 1], [1, 5]), True, False, id="other logits"),
        pytest.param(run([0, 1], [9, 1], [1, 9]), run([0, 1], [9, 1], [1, 5]), False, True, id="other logits, half"),
        pytest.param(run([0, 1], [9, 1], [1, 9]), run([0, 0], [9, 1], [9, 1]), False, False, id="other token"),
        pytest.param(
            run([0, 1, 1], [9, 1], [8.9, 9], [1, 9]), run([0, 0, 0], [9, 1], [9, 8.9], [9, 1]), False, True, id="tie"
        ),
        pytest.param(run([0, 1], [9, 1], [8.9999, 9]), run([0, 0], [9, 1], [9, 8.9999]), True, True, id="exact tie"),
    ],
)
def test_generations_are_compared_until_they_part(
    cached: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], exact: bool, passed: bool
) -> None:
    assert compare_generations(cached, plain, 1e-3 if exact else 0.05, exact=exact).passed == passed


def test_a_broken_cache_fails(folder: Path) -> None:
    """Two blocks that write to one place of the cache, as when a block is removed and the rest is not renumbered."""
    from transformers import AutoModelForCausalLM

    from prunekit.export.checks import check_generation

    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.model.layers[2].self_attn.layer_idx = 1
    check, _ = check_generation(model, PROBE[:, :16])
    assert not check.passed


def test_a_model_is_loaded_whole_when_it_fits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspect_folder(folder, device="cpu").mode == "full"
    monkeypatch.setattr(verifying, "free_memory", lambda _: 1000)
    assert inspect_folder(folder, device="cpu").mode == "streaming"
    assert fits({"w": ("F32", (208,))}, torch.float32, CPU)
    assert not fits({"w": ("F32", (210,))}, torch.float32, CPU)


def test_free_memory_respects_the_limit_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "CGROUP", tmp_path)
    unlimited = free_memory(CPU)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert free_memory(CPU) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) > unlimited / 2


@pytest.mark.slow
@pytest.mark.fresh
def test_a_fresh_process_verifies_a_folder_and_answers_with_one_object(folder: Path) -> None:
    found = verify(folder, folder.parent / "probe.safetensors", device="cpu")
    assert found.passed
    assert [check.name for check in found.checks] == ["files", "loads", "manifest", "logits", "generation"]


def answer_with(monkeypatch: pytest.MonkeyPatch, code: int, stdout: str = "", stderr: str = "") -> None:
    monkeypatch.setattr(
        verifying.launch, "run_module", lambda _, words: subprocess.CompletedProcess(words, code, stdout, stderr)
    )


def test_a_failed_check_is_an_error_that_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()
    assert main([str(folder)]) == 6
    stdout = capsys.readouterr().out
    assert len(stdout.splitlines()) == 1
    answer_with(monkeypatch, 6, stdout)
    with pytest.raises(VerificationError, match=r"files: model-00001-of-0000\d.safetensors is missing") as error:
        verify(folder)
    assert "--against" in (error.value.hint or "")


def test_what_the_process_raises_is_raised_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    assert main([str(folder)]) == UnsupportedError.exit_code
    answer_with(monkeypatch, 3, capsys.readouterr().out)
    with pytest.raises(UnsupportedError, match="gptq"):
        verify(folder)


def test_what_a_library_prints_does_not_reach_the_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatty(*_: object, **__: object) -> verifying.Verification:
        print("hello from a library")
        return verifying.Verification(mode="full", checks=(Check(name="files", passed=True, detail=""),))

    monkeypatch.setattr(verifying, "inspect_folder", chatty)
    assert main([str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "full"


def test_a_crash_is_a_verification_error_with_the_last_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, 1, "", "Traceback\n  one\n  two\nValueError: three\n")
    with pytest.raises(VerificationError, match=r"ended with code 1 and no answer: one \| two \| ValueError: three"):
        verify(folder)


def test_a_killed_process_and_one_without_memory_are_resource_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(verifying, "inspect_folder", greedy)
    assert main([str(folder)]) == ResourceError.exit_code
    answers = [(5, capsys.readouterr().out), (-signal.SIGKILL, "")]
    for code, stdout in answers:
        answer_with(monkeypatch, code, stdout)
        with pytest.raises(ResourceError, match="memory ran out") as error:
            verify(folder)
        assert "--verify streaming" in (error.value.hint or "")


def test_a_folder_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        inspect_folder(tmp_path / "nowhere")
