"""Perplexity is that of the protocol it names, and equals a direct computation with transformers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunekit.checkpoint import Checkpoint
from prunekit.errors import InputError, PrunekitError, UnsupportedError, UsageError
from prunekit.evaluate import perplexity as module
from prunekit.evaluate.perplexity import PROTOCOLS, Perplexity, exp_or_inf, mean_loss, measure, windows
from prunekit.model import PrunableModel
from prunekit.texts import Text

TEXT = "The cat sat on the mat, and the dog sat on the log. " * 40


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer)


def direct(folder: Path, text: str, window: int, limit: int | None = None) -> float:
    """Perplexity as anyone would compute it with transformers: the issue's fifteen lines."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", verbose=False).input_ids
    losses = []
    for start in range(0, ids.shape[1] - window + 1, window)[:limit]:
        part = ids[:, start : start + window]
        with torch.no_grad():
            logits = model(part).logits[0, :-1]
        losses.append(cross_entropy(logits, part[0, 1:]).item())
    return math.exp(sum(losses) / len(losses))


# --- the mathematics -------------------------------------------------------------------------------------


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
    monkeypatch.setattr(module, "CHUNK", 40)  # three positions at a time
    assert mean_loss([logits], ids) == pytest.approx(whole, rel=1e-6)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits, ids = (torch.randn(2, 6, 50) * 4).bfloat16(), torch.randint(50, (2, 6))
    assert mean_loss([logits], ids) == pytest.approx(mean_loss([logits.double().float()], ids), rel=1e-7)


def test_logits_of_too_few_windows_are_an_error() -> None:
    with pytest.raises(PrunekitError, match="logits came for 2 windows; expected 3"):
        mean_loss([torch.zeros(2, 4, 5)], torch.zeros(3, 4, dtype=torch.int64))


@pytest.mark.parametrize(("bad", "text"), [(math.nan, "nan"), (math.inf, "nan"), (-math.inf, "inf")])
def test_a_broken_model_has_a_perplexity_that_says_so(bad: float, text: str) -> None:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    logits = torch.zeros(1, 4, 5)
    logits[0, 1, 0] = bad
    value = exp_or_inf(mean_loss([logits], ids))
    record = Perplexity(value, "t", None, "all", "sparsegpt", "\n\n", 4, 1, 3).record()
    assert record["value"] == text
    assert json.loads(json.dumps(record, allow_nan=False))["value"] == text


def test_a_loss_too_large_for_a_float_is_an_infinite_perplexity() -> None:
    assert exp_or_inf(1000.0) == math.inf


# --- windows ---------------------------------------------------------------------------------------------


def cut(tokenizer: Any, protocol: str, positions: int | None, limit: int | None = None, **text: Any) -> torch.Tensor:
    options = {"source": "t", "revision": None, "documents": [TEXT, TEXT]} | text
    return windows(Text(**options), tokenizer, PROTOCOLS[protocol], positions, limit)


@pytest.mark.parametrize(
    ("protocol", "positions", "window"),
    [
        ("sparsegpt", 4096, 2048),
        ("sparsegpt", 512, 512),
        ("sparsegpt", None, 2048),
        ("wanda", 4096, 4096),
        ("wanda", 512, 512),
        ("llm-pruner", 4096, 128),
        ("llm-pruner", 64, 64),
    ],
)
def test_each_protocol_has_its_window(protocol: str, positions: int | None, window: int) -> None:
    assert PROTOCOLS[protocol].window_for(positions) == window


def test_windows_of_the_models_maximum_need_a_maximum() -> None:
    with pytest.raises(UnsupportedError, match="the config states none"):
        PROTOCOLS["wanda"].window_for(None)


def test_windows_are_the_joined_text_without_its_rest(tokenizer: Any) -> None:
    ids = tokenizer(f"{TEXT}\n\n{TEXT}", verbose=False)["input_ids"]
    found = cut(tokenizer, "sparsegpt", 100)
    assert found.shape == (len(ids) // 100, 100)
    assert found.flatten().tolist() == ids[: found.numel()]


def test_the_limit_and_the_sets_own_bound_keep_the_first_windows(tokenizer: Any) -> None:
    every = cut(tokenizer, "sparsegpt", 50)
    assert torch.equal(cut(tokenizer, "sparsegpt", 50, limit=3), every[:3])
    assert torch.equal(cut(tokenizer, "sparsegpt", 50, max_windows=2), every[:2])
    assert torch.equal(cut(tokenizer, "sparsegpt", 50, limit=1, max_windows=2), every[:1])
    assert torch.equal(cut(tokenizer, "sparsegpt", 50, limit=10_000), every)


def test_a_text_shorter_than_one_window_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="expected at least 2048 for one window") as caught:
        cut(tokenizer, "sparsegpt", None, documents=["short"])
    assert "llm-pruner" in str(caught.value.hint)


def test_less_than_one_window_cannot_be_asked_for(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="0 windows"):
        cut(tokenizer, "sparsegpt", 50, limit=0)


def test_an_end_of_text_line_is_ordinary_text(tokenizer: Any) -> None:
    document = f"{TEXT}\n<|endoftext|>\n{TEXT}"
    ids = tokenizer(document, verbose=False)["input_ids"]
    assert cut(tokenizer, "sparsegpt", 50, documents=[document]).flatten().tolist() == ids[: len(ids) // 50 * 50]


# --- models ----------------------------------------------------------------------------------------------


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_result_states_everything_it_depends_on(
    tiny_llama: Callable[..., Path], tokenizer: Any, story: Path
) -> None:
    folder = tiny_llama()
    found = measure(PrunableModel.open(Checkpoint.open(folder), device="cpu"), tokenizer, str(story), limit=3)
    assert found.value == pytest.approx(direct(folder, TEXT, 128, limit=3), rel=1e-4)
    assert found.record() == {
        "value": found.value,
        "set": str(story),
        "revision": None,
        "split": "all",
        "protocol": "sparsegpt",
        "join": "\n\n",
        "window": 128,
        "windows": 3,
        "tokens": 3 * 127,
    }


def test_the_same_text_is_tokenised_once(
    tiny_llama: Callable[..., Path],
    tokenizer: Any,
    story: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    calls: list[str] = []
    encode = module.encode
    monkeypatch.setattr(module, "encode", lambda tokenizer, text: calls.append(text) or encode(tokenizer, text))
    model = PrunableModel.open(Checkpoint.open(tiny_llama()), device="cpu")
    first, again = (measure(model, tokenizer, str(story), limit=2) for _ in range(2))
    assert first == again
    assert len(calls) == 1
    assert measure(model, tokenizer, str(story), limit=3).windows == 3
    assert len(calls) == 2


def test_an_unknown_protocol_is_refused_with_those_there_are(
    tiny_llama: Callable[..., Path], tokenizer: Any, story: Path
) -> None:
    model = PrunableModel.open(Checkpoint.open(tiny_llama()), device="cpu")
    with pytest.raises(UsageError, match="sparsegpt, wanda, llm-pruner"):
        measure(model, tokenizer, str(story), protocol="p2048")


def test_a_tokenizer_of_another_model_is_refused(tiny_llama: Callable[..., Path], tokenizer: Any, story: Path) -> None:
    model = PrunableModel.open(Checkpoint.open(tiny_llama(vocab_size=64)), device="cpu")
    with pytest.raises(InputError, match="vocabulary has 64"):
        measure(model, tokenizer, str(story))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perplexity_equals_a_direct_computation_on_a_trained_model(
    protocol: str, shared_data: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = shared_data / "models" / "stories260K"
    path = tmp_path / "stories.txt"
    path.write_bytes((shared_data / "text" / "tinystories-valid.txt").read_bytes()[:8_000])
    model = PrunableModel.open(Checkpoint.open(folder), device="cpu", dtype="float32")
    found = measure(model, AutoTokenizer.from_pretrained(folder), str(path), protocol, limit=4)
    assert found.value == pytest.approx(
        direct(folder, path.read_text(encoding="utf-8"), found.window, limit=4), rel=1e-4
    )
    assert 2 < found.value < 20
