from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit import cache as stored
from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.spectra import spectrum as module
from prunekit.spectra.eigenvalues import eigenvalues

Make = Callable[..., Path]
UP, DOWN = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spectra"


def opened(folder: Path) -> PrunableModel:
    return PrunableModel.open(Checkpoint.open(folder), device="cpu")


def changed(folder: Path, **tensors: torch.Tensor) -> Path:
    """Replace weights of a folder, given by the path of their linears with `__` for dots."""
    stored = load_file(folder / "model.safetensors")
    stored |= {f"{name.replace('__', '.')}.weight": tensor for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_every_linear_has_the_spectrum_of_its_weight(tiny_llama: Make) -> None:
    folder = tiny_llama(dtype="bfloat16")
    found = list(module.spectra(opened(folder)))
    stored = load_file(folder / "model.safetensors")
    assert [spectrum.linear.path for spectrum in found] == list(opened(folder).linears())
    for spectrum in found:
        torch.testing.assert_close(spectrum.values, eigenvalues(stored[f"{spectrum.linear.path}.weight"]))
        assert spectrum.remark is None


def test_a_sketch_goes_from_the_largest_eigenvalue_to_the_smallest_and_is_short(tiny_llama: Make) -> None:
    found = list(module.spectra(opened(tiny_llama())))
    drawn = module.sketch(found)
    assert list(drawn) == [spectrum.linear.path for spectrum in found]
    for spectrum, values in zip(found, drawn.values(), strict=True):
        assert values == sorted(values, reverse=True) and len(values) == module.SKETCHED
        ends = [spectrum.values[-1].item(), spectrum.values[0].item()]
        assert [values[0], values[-1]] == pytest.approx(ends, rel=1e-3)
        second, size = values[1], len(spectrum.values)
        between = size ** (1 / (module.SKETCHED - 1)) - 1  # of the way from the first rank to the second
        at = torch.lerp(spectrum.values[-1], spectrum.values[-2], between).item()
        assert second == pytest.approx(at, rel=1e-3)


def test_of_many_matrices_a_sketch_takes_some_through_the_whole_depth(
    tiny_llama: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAWN", 12)
    found = list(module.spectra(opened(tiny_llama())))  # 4 blocks of 7
    drawn = list(module.sketch(found))
    assert drawn == [spectrum.linear.path for spectrum in found[::3]] and len(drawn) == 10
    assert module.sketch([]) == {}


def test_a_second_run_computes_nothing(tiny_llama: Make, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    model = opened(tiny_llama())
    first = [spectrum.values for spectrum in module.spectra(model)]
    assert len(list(cache.iterdir())) == len(first)
    with monkeypatch.context() as patch:
        patch.delattr(module, "lower_gram")
        again = [spectrum.values for spectrum in module.spectra(model)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_damaged_entry_of_the_cache_is_computed_again(tiny_llama: Make, cache: Path) -> None:
    model = opened(tiny_llama())
    first = [spectrum.values for spectrum in module.spectra(model)]
    for number, file in enumerate(sorted(cache.iterdir())):
        content = bytearray(file.read_bytes())
        content[-1] ^= 255
        file.write_bytes(content if number % 2 else b"")
    again = [spectrum.values for spectrum in module.spectra(model)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_cache_tells_apart_what_differs_in_one_bit_in_shape_or_in_dtype() -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    other = weight.clone()
    other[2, 3] = torch.nextafter(other[2, 3], torch.tensor(99.0))
    kinds = [weight, other, weight.reshape(4, 3), weight.view(torch.int32)]
    assert len({stored.digest(tensor) for tensor in kinds}) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tiny_llama: Make, value: float) -> None:
    bad = torch.ones(64, 32)
    bad[3, 5] = value
    with pytest.raises(InputError, match=rf"{UP}\.weight .* NaN or infinite") as caught:
        list(module.spectra(opened(changed(tiny_llama(), model__layers__1__mlp__up_proj=bad))))
    assert caught.value.exit_code == 4


def test_a_matrix_without_an_exponent_gets_the_mean_of_its_block_and_is_named(tiny_llama: Make) -> None:
    folder = changed(
        tiny_llama(),
        model__layers__1__mlp__up_proj=torch.zeros(64, 32),
        model__layers__1__mlp__down_proj=torch.eye(32, 64),
    )
    found = list(module.spectra(opened(folder)))
    values, remarks = module.metrics(found, "alpha_peak")
    assert remarks == [
        f"{UP} is all zero: alpha_peak is not defined for it",
        f"{DOWN} has all singular values alike: alpha_peak is not defined for it",
    ]
    others = [values[path] for path in values if path.startswith("model.layers.1.") and path not in (UP, DOWN)]
    assert values[UP] == values[DOWN] == pytest.approx(sum(others) / len(others))
    assert all(value > 1 for value in values.values())


def test_blocks_that_are_removed_are_not_read(tiny_llama: Make) -> None:
    model = opened(tiny_llama())
    model = model.without({1, 2})
    paths = {spectrum.linear.path.split(".")[2] for spectrum in module.spectra(model)}
    assert paths == {"0", "3"}


def test_windows_are_another_entry_of_the_cache(tiny_llama: Make) -> None:
    model = opened(tiny_llama())
    plain, windowed = (list(module.spectra(model, windows=count)) for count in (0, 3))
    up = [spectrum.linear.path for spectrum in plain].index(UP)
    assert not torch.equal(plain[up].values, windowed[up].values)
