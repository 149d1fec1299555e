"""What of a model is in memory when, and what is read and written for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import families
from prunekit.errors import InputError
from prunekit.export.staging import Staging
from prunekit.model.checkpoint import SINGLE, Checkpoint
from prunekit.model.prunable import PrunableModel


def opened(folder: Path, dtype: str = "auto") -> PrunableModel:
    return PrunableModel.open(Checkpoint.open(folder), device="cpu", dtype=dtype)


@pytest.fixture
def llama(tmp_path: Path) -> Callable[..., PrunableModel]:
    """`llama(stored="bfloat16", computed="auto")` is a model with a staging folder."""

    def make(stored: str = "float32", computed: str = "auto") -> PrunableModel:
        model = opened(families.save("llama", tmp_path / "source", dtype=stored), computed)
        return model.with_edits(Staging.open(tmp_path / "out", {}).edits)

    return make


def resident(model: PrunableModel) -> set[str]:
    """Names of the parameters that are in memory."""
    return {name for name, parameter in model.skeleton.named_parameters() if not parameter.is_meta}


def source(model: PrunableModel) -> dict[str, Tensor]:
    return load_file(model.checkpoint.folder / SINGLE)


def test_an_opened_model_has_no_weight_in_memory(llama: Callable[..., PrunableModel]) -> None:
    model = llama()

    assert not resident(model)
    assert model.streaming
    assert [block.index for block in model.blocks] == [0, 1, 2, 3]
    assert len(model.linears()) == 28
    assert model.config.num_hidden_layers == 4


def test_entering_a_block_brings_in_that_block_alone_and_leaving_frees_it(llama: Callable[..., PrunableModel]) -> None:
    model = llama()

    with model.block(2) as module:
        assert module is model.stack[2]
        assert resident(model) == set(model.block_tensors(2))
        weight = module.get_parameter("mlp.up_proj.weight")
        assert torch.equal(weight, source(model)["model.layers.2.mlp.up_proj.weight"])

    assert not resident(model)


def test_a_block_is_freed_after_an_error_too(llama: Callable[..., PrunableModel]) -> None:
    model = llama()

    with pytest.raises(RuntimeError, match="on purpose"), model.block(1):
        raise RuntimeError("on purpose")

    assert not resident(model)


def test_outside_the_blocks_are_embeddings_norm_and_if_wanted_the_head(llama: Callable[..., PrunableModel]) -> None:
    model = llama()

    with model.outside():
        assert resident(model) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    with model.outside(head=False):
        assert resident(model) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert not resident(model)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "opt", "bloom"])
def test_a_tied_head_is_the_embedding_every_time(family: str, tmp_path: Path) -> None:
    model = opened(families.save(family, tmp_path / "m"))

    for _ in range(2):
        with model.outside() as skeleton:
            head, embedding = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
            assert head is not None and head.weight is embedding.weight
            assert not embedding.weight.is_meta


def test_rotary_buffers_are_real_before_any_weight_is_read(llama: Callable[..., PrunableModel]) -> None:
    assert not any(buffer.is_meta for buffer in llama().skeleton.buffers())


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_a_cpu_computes_in_float32_and_reads_give_the_stored_dtype(
    llama: Callable[..., PrunableModel], stored: str
) -> None:
    model = llama(stored)
    name = "model.layers.0.mlp.up_proj.weight"

    assert model.dtype == torch.float32
    assert model.read([name])[name].dtype == getattr(torch, stored)
    with model.block(0) as module:
        assert module.get_parameter("mlp.up_proj.weight").dtype == torch.float32


def test_reading_does_not_alias_what_is_in_memory(llama: Callable[..., PrunableModel]) -> None:
    model = llama()
    name = "model.layers.0.mlp.up_proj.weight"

    with model.block(0) as module:
        module.get_parameter("mlp.up_proj.weight").data.zero_()

    assert torch.equal(model.read([name])[name], source(model)[name])


def zero_and_commit(model: PrunableModel, index: int) -> None:
    with model.block(index) as module:
        module.get_parameter("mlp.up_proj.weight").data[0] = 0
        model.commit(index, ["zeroed a row"])


def test_committed_blocks_are_read_back_and_the_others_come_from_the_source(
    llama: Callable[..., PrunableModel],
) -> None:
    model = llama()
    edited, plain = "model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"

    zero_and_commit(model, 1)
    read = model.read([edited, plain, "model.norm.weight"])

    assert not read[edited][0].any() and read[edited][1:].all()
    assert torch.equal(read[plain], source(model)[plain])
    assert model.edits is not None and model.edits.notes(1) == ["zeroed a row"]
    with model.block(1) as module:
        assert not module.get_parameter("mlp.up_proj.weight")[0].any()
    model = model.with_edits(None)
    assert model.read([edited])[edited].all()


def test_a_committed_block_has_all_of_its_tensors_in_their_stored_dtype(llama: Callable[..., PrunableModel]) -> None:
    model = llama("bfloat16")

    zero_and_commit(model, 0)

    assert model.edits is not None
    stored = load_file(model.edits.block_path(0))
    assert set(stored) == set(model.block_tensors(0))
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_after_a_commit_the_block_in_memory_equals_what_was_written(llama: Callable[..., PrunableModel]) -> None:
    model = llama("bfloat16")
    name = "model.layers.3.mlp.up_proj.weight"

    with model.block(3) as module, torch.no_grad():
        weight = module.get_parameter("mlp.up_proj.weight")
        weight.mul_(1.001)
        before = weight.clone()
        model.commit(3)
        written = model.read([name])[name]
        assert torch.equal(weight, written.float())
        assert not torch.equal(weight, before)


@pytest.mark.parametrize(
    ("stored", "computed"), [("float32", "bfloat16"), ("float16", "bfloat16"), ("bfloat16", "float16")]
)
def test_a_coarser_compute_dtype_does_not_round_what_nobody_changed(
    llama: Callable[..., PrunableModel], stored: str, computed: str
) -> None:
    model = llama(stored, computed)
    edited = "model.layers.1.mlp.up_proj.weight"

    zero_and_commit(model, 1)

    for name, tensor in model.read(model.block_tensors(1)).items():
        before = source(model)[name]
        assert tensor.dtype == before.dtype
        assert torch.equal(tensor[1:] if name == edited else tensor, before[1:] if name == edited else before), name
    assert not model.read([edited])[edited][0].any()


def test_a_run_without_a_staging_folder_cannot_commit(llama: Callable[..., PrunableModel]) -> None:
    model = llama()
    model = model.with_edits(None)

    with model.block(0), pytest.raises(RuntimeError, match="without a store of edits"):
        model.commit(0)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_weights_that_are_not_finite_are_named_when_they_are_read(family: str, tmp_path: Path) -> None:
    folder = families.save(family, tmp_path / "m")
    tensors = load_file(folder / SINGLE)
    name = next(name for name in tensors if (".1." in name and name.endswith("proj.weight")) or ".1.mlp.dense" in name)
    tensors[name].view(-1)[5] = torch.nan
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    model = opened(folder)

    with model.block(0):
        pass
    with pytest.raises(InputError, match=f"{name}.* has NaN or infinite values"), model.block(1):
        pass
    assert not resident(model)


def test_a_model_loaded_whole_is_read_and_edited_like_any_other(tmp_path: Path) -> None:
    model = opened(families.save("gpt_neox", tmp_path / "m", dtype="bfloat16"))
    model = model.with_edits(Staging.open(tmp_path / "out", {}).edits)
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    assert not model.streaming and model.tensors[name].dtype == "BF16"

    with model.block(0) as module:
        module.get_parameter("mlp.dense_h_to_4h.weight").data.zero_()
        model.commit(0)

    assert not model.read([name])[name].any()
    model = model.with_edits(None)
    assert model.read([name])[name].all()


def test_stored_masks_keep_their_integer_dtype(tmp_path: Path) -> None:
    model = opened(families.save("llama", tmp_path / "m"))
    folder = model.checkpoint.folder
    mask = torch.arange(4, dtype=torch.int64)
    save_file(source(model) | {"model.layers.0.self_attn.table": mask}, folder / SINGLE, {"format": "pt"})
    model = PrunableModel(Checkpoint.open(folder), model.skeleton, model.device, model.dtype)
    model.stack[0].get_submodule("self_attn").register_buffer("table", torch.zeros(4, dtype=torch.int64))
    model = model.with_edits(Staging.open(tmp_path / "out", {}).edits)

    zero_and_commit(model, 0)

    assert torch.equal(load_file(model.edits.block_path(0))["model.layers.0.self_attn.table"], mask)


def test_resident_weights_stay_while_blocks_are_entered_and_are_freed_at_the_end(
    llama: Callable[..., PrunableModel],
) -> None:
    model = llama()
    model = model.without({1})

    with model.resident():
        everything = resident(model)
        with model.block(2), model.outside():
            pass
        assert resident(model) == everything
        assert not {name for name in everything if name.startswith("model.layers.1.")}
        assert {"model.embed_tokens.weight", "lm_head.weight"} <= everything

    assert not resident(model)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_state_that_was_trained_is_what_the_model_reads_from_then_on(family: str, tmp_path: Path) -> None:
    model = opened(families.save(family, tmp_path / "m", dtype="bfloat16"))
    model = model.with_edits(Staging.open(tmp_path / "out", {}).edits)
    model = model.without({1})
    loaded = model.load(torch.float32)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    state = {name: torch.full_like(tensor, 2.0) for name, tensor in loaded.state_dict().items()}

    model.commit_state(state, ["trained"])

    kept = [name for name in model.tensors if not name.startswith(f"{model.blocks[1].path}.")]
    changed = {name: tensor for name, tensor in model.read(kept).items() if tensor.is_floating_point()}
    assert changed and all(tensor.dtype == torch.bfloat16 and (tensor == 2).all() for tensor in changed.values())
    assert model.edits.notes("outside") == ["trained"]
    gone = model.block_tensors(1)
    assert not any((tensor == 2).all() for tensor in model.read(gone).values()), "a removed block is not written"


def test_a_trained_model_that_was_loaded_whole_is_exported_with_its_embeddings(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from prunekit.export.folder import export

    model = opened(families.save("gpt_neox", tmp_path / "m"))
    model = model.with_edits(Staging.open(tmp_path / "out", {}).edits)
    model = model.without({0})
    state = {name: tensor + 1 for name, tensor in model.load(torch.float32).state_dict().items()}
    model.commit_state(state)

    export(model, tmp_path / "exported")

    found = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    assert torch.equal(found.get_input_embeddings().weight, state["gpt_neox.embed_in.weight"])
    assert torch.equal(
        found.get_output_embeddings().weight,
        state["embed_out.weight" if "embed_out.weight" in state else "lm_head.weight"],
    )
    first = found.get_submodule("gpt_neox.layers.0").state_dict()
    assert all(torch.equal(tensor, state[f"gpt_neox.layers.1.{name}"]) for name, tensor in first.items())
