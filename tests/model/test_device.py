from pathlib import Path

import pytest
import torch

from prunekit.errors import UsageError
from prunekit.model.checkpoint import Checkpoint, TensorInfo
from prunekit.model.device import choose_device, choose_dtype


def stored(*dtypes: str) -> Checkpoint:
    """A checkpoint whose tensors have these dtypes and more bytes from the first to the last."""
    infos = {str(size): TensorInfo(dtype, (size,), "f") for size, dtype in enumerate(dtypes, 100)}
    return Checkpoint(Path(), {}, infos)


def test_cpu_is_a_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_the_accelerator_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}' is not available here") as caught:
        choose_device(name)

    assert caught.value.exit_code == 2
    assert "doctor" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["foo", "gpu", "cpu:x"])
def test_what_is_no_device_is_told_from_one_that_is_absent(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(name)

    assert caught.value.message == f"device '{name}' is not available here; expected auto, cpu, cuda, cuda:N or mps"


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_cpu_computes_in_float32_whatever_is_stored(dtype: str) -> None:
    assert choose_dtype("auto", torch.device("cpu"), stored(dtype)) == torch.float32


def test_an_accelerator_computes_in_the_dtype_that_most_bytes_are_stored_in() -> None:
    cuda = torch.device("cuda")

    assert choose_dtype("auto", cuda, stored("BF16")) == torch.bfloat16
    assert choose_dtype("auto", cuda, stored("F32", "F16", "F16")) == torch.float16
    assert choose_dtype("auto", cuda, stored("I64")) == torch.float32


def test_a_dtype_can_be_chosen_by_name() -> None:
    assert choose_dtype("bfloat16", torch.device("cpu"), stored("F32")) == torch.bfloat16


@pytest.mark.parametrize("name", ["int8", "bf16", ""])
def test_an_unknown_dtype_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UsageError, match=f"dtype '{name}' is not one of auto, float32, bfloat16, float16"):
        choose_dtype(name, torch.device("cpu"), stored("F32"))
