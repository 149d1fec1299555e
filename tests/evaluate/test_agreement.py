"""KL divergence and agreement are those of their formulas, on the tokens of the perplexity."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.blockwise import loss
from prunekit.evaluate import agreement, side_by_side
from prunekit.evaluate.agreement import Agreement, divergence
from prunekit.evaluate.side_by_side import Texts
from prunekit.model.prunable import PrunableModel

Model = Callable[..., Path]
TEXT = "The cat sat on the mat, and the dog sat on the log; 0123456789 is a number.\n"


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 40)
    return str(path)


def test_divergence_is_that_of_two_distributions_worked_out_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    kl, same = divergence(p.log(), q.log() + 3)  # logits are free up to a constant
    assert kl == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(0.5), abs=1e-6)
    assert same == 0
    reverse, _ = divergence(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log())
    assert reverse == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6), "dense || model"


def test_divergence_of_equal_logits_is_0_and_of_what_is_no_number_is_no_number() -> None:
    logits = torch.randn(5, 17, generator=torch.Generator().manual_seed(0))
    assert divergence(logits, logits) == (0.0, 5)
    broken = logits.clone()
    broken[2, 3] = math.nan
    kl, same = divergence(logits, broken)
    assert math.isnan(kl) and same == 4
    never = logits.clone()
    never[:, 0] = -math.inf  # a token that both leave out
    assert divergence(never, never) == (0.0, 5)
    assert divergence(logits, never)[0] == math.inf


def test_the_parts_that_are_computed_at_once_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(2, 30, 11, generator=torch.Generator().manual_seed(0))
    whole = divergence(a, b)
    monkeypatch.setattr(agreement, "CHUNK", 44)
    kl, same = divergence(a, b)
    assert kl == pytest.approx(whole[0], rel=1e-12) and same == whole[1]


def test_the_last_position_of_a_window_predicts_nothing() -> None:
    a, b = torch.randn(2, 3, 6, 11, generator=torch.Generator().manual_seed(0))
    found = Agreement()
    assert torch.equal(torch.cat(list(found.watch(a.split(2), b.split(2)))), b)
    changed = b.clone()
    changed[:, -1] += torch.arange(11.0)
    other = Agreement()
    list(other.watch(a.split(2), changed.split(2)))
    assert found.tokens == 3 * 5
    assert (found.kl, found.same) == (other.kl, other.same)


def test_figures_are_those_of_plain_transformers(tiny_llama: Model, text: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    one, other = tiny_llama(name="one"), tiny_llama(name="other", seed=1)
    row = (
        side_by_side.evaluate([str(other)], side_by_side.Questions(texts=Texts([text], windows=3)), baseline=str(one))
        .models[1]
        .perplexity[0]
    )

    ids = AutoTokenizer.from_pretrained(one)(Path(text).read_text(), return_tensors="pt", verbose=False).input_ids
    windows = ids[0, : 3 * 128].view(3, 128)
    with torch.no_grad():
        dense, model = (AutoModelForCausalLM.from_pretrained(folder)(windows).logits[:, :-1] for folder in (one, other))
    kl = torch.nn.functional.kl_div(model.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="sum")
    assert row.kl == pytest.approx(kl.item() / (3 * 127), rel=1e-4)
    assert row.agreement == (dense.argmax(-1) == model.argmax(-1)).double().mean().item()
    assert row.value == pytest.approx(
        math.exp(loss.mean_loss([torch.cat([model, model[:, :1]], 1)], windows)), rel=1e-4
    ), "the same pass gives the perplexity that a model alone has"


def test_a_model_agrees_with_itself_to_the_bit(tiny_llama: Model, text: str) -> None:
    one = str(tiny_llama())
    done = side_by_side.evaluate([one], side_by_side.Questions(texts=Texts([text], windows=3)), baseline=one)
    dense, itself = done.models
    (mine,) = itself.perplexity

    assert (dense.baseline, itself.baseline) == (True, False)
    assert (mine.kl, mine.agreement, mine.ratio) == (0.0, 1.0, 1.0)
    assert mine.value == dense.perplexity[0].value
    assert itself.size.parameters.ratio == itself.size.stored_bytes.ratio == 1.0


def test_hidden_states_of_both_can_wait_on_disk(tiny_llama: Model, text: str) -> None:
    one, other = str(tiny_llama(name="one")), str(tiny_llama(name="other", seed=1))
    kept = side_by_side.evaluate([other], side_by_side.Questions(texts=Texts([text, text], windows=2)), baseline=one)
    assert (
        side_by_side.evaluate(
            [other], side_by_side.Questions(texts=Texts([text, text], windows=2), offload="disk"), baseline=one
        )
        == kept
    )


def test_the_baseline_goes_through_a_text_once_for_all_models(
    tiny_llama: Model, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[Path] = []
    passed = agreement.stream.passed

    def watched(model: PrunableModel, *all: Any, **more: Any) -> Any:
        walked.append(model.checkpoint.folder)
        return passed(model, *all, **more)

    monkeypatch.setattr(agreement.stream, "passed", watched)
    folders = [tiny_llama(name=name, seed=seed) for seed, name in enumerate(("dense", "one", "other"))]
    dense, *models = map(str, folders)
    side_by_side.evaluate(models, side_by_side.Questions(texts=Texts([text], windows=2)), baseline=dense)
    assert walked == folders


def test_models_that_choose_from_other_vocabularies_are_not_compared(tiny_llama: Model, text: str) -> None:
    one, other = str(tiny_llama(name="one")), str(tiny_llama(name="other", vocab_size=352))
    figure = (
        side_by_side.evaluate([other], side_by_side.Questions(texts=Texts([text], windows=1)), baseline=one)
        .models[1]
        .perplexity[0]
    )
    assert (figure.kl, figure.agreement) == (None, None)
    assert figure.ratio is not None, "perplexity on the same tokens can be compared"
