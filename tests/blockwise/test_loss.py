"""The loss is the mean over windows of the mean over positions, however the logits come."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunekit.blockwise import loss
from prunekit.blockwise.loss import loss_and_slope, mean_loss, summed_loss
from prunekit.errors import PrunekitError


def test_the_loss_is_the_mean_over_windows_of_the_mean_over_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, 11, generator=generator)
    ids = torch.randint(11, (5, 7), generator=generator)
    losses = [
        sum(-math.log(math.exp(row[t][target[t + 1]]) / row[t].exp().sum()) for t in range(6)) / 6
        for row, target in zip(logits, ids, strict=True)
    ]
    assert mean_loss([logits], ids) == pytest.approx(sum(losses) / 5, rel=1e-6)


def test_batches_and_chunks_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, ids = torch.randn(5, 9, 13), torch.randint(13, (5, 9))
    whole = mean_loss([logits], ids)
    assert mean_loss(iter(logits.split(2)), ids) == pytest.approx(whole, rel=1e-6)
    monkeypatch.setattr(loss, "CHUNK", 40)  # three positions at a time
    assert mean_loss([logits], ids) == pytest.approx(whole, rel=1e-6)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits, ids = (torch.randn(2, 6, 50) * 4).bfloat16(), torch.randint(50, (2, 6))
    assert mean_loss([logits], ids) == pytest.approx(mean_loss([logits.double().float()], ids), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_slope_of_the_loss_is_the_one_that_autograd_finds(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "CHUNK", 40)  # three positions at a time
    logits, ids = torch.randn(3, 8, 13).to(dtype).requires_grad_(), torch.randint(13, (3, 8))
    expected = cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (wanted,) = torch.autograd.grad(expected, logits)
    total, slope = loss_and_slope(logits.detach(), ids)
    assert total == pytest.approx(expected.item(), rel=1e-6) == summed_loss(logits.detach(), ids)
    assert slope.dtype == dtype and torch.allclose(slope, wanted, atol=1e-6)


def test_logits_of_too_few_windows_are_an_error() -> None:
    with pytest.raises(PrunekitError, match="logits came for 2 windows; expected 3"):
        mean_loss([torch.zeros(2, 4, 5)], torch.zeros(3, 4, dtype=torch.int64))
