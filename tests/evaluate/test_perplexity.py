"""Perplexity is that of the protocol it names, and equals a direct computation with transformers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunekit.blockwise.loss import mean_loss
from prunekit.errors import InputError, UnsupportedError, UsageError
from prunekit.evaluate import perplexity as module
from prunekit.evaluate.perplexity import (
    PROTOCOLS,
    Perplexity,
    Windows,
    cut,
    exp_or_inf,
    find_protocol,
    perplexity,
    read_text,
    windows,
)
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.prunable import PrunableModel
from prunekit.text.sources import Text

TEXT = "The cat sat on the mat, and the dog sat on the log. " * 40


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer)


def measure(
    model: PrunableModel, tokenizer: Any, text: str, protocol: str = "sparsegpt", limit: int | None = None
) -> Perplexity:
    """Perplexity as a run measures it."""
    return cut(read_text(text), model.config, tokenizer, find_protocol(protocol), limit).measure(model)


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


def first(tokenizer: Any, protocol: str, positions: int | None, limit: int | None = None, **text: Any) -> torch.Tensor:
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
    found = first(tokenizer, "sparsegpt", 100)
    assert found.shape == (len(ids) // 100, 100)
    assert found.flatten().tolist() == ids[: found.numel()]


def test_the_limit_and_the_sets_own_bound_keep_the_first_windows(tokenizer: Any) -> None:
    every = first(tokenizer, "sparsegpt", 50)
    assert torch.equal(first(tokenizer, "sparsegpt", 50, limit=3), every[:3])
    assert torch.equal(first(tokenizer, "sparsegpt", 50, max_windows=2), every[:2])
    assert torch.equal(first(tokenizer, "sparsegpt", 50, limit=1, max_windows=2), every[:1])
    assert torch.equal(first(tokenizer, "sparsegpt", 50, limit=10_000), every)


def test_a_text_shorter_than_one_window_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="expected at least 2048 for one window") as caught:
        first(tokenizer, "sparsegpt", None, documents=["short"])
    assert "llm-pruner" in str(caught.value.hint)


def test_less_than_one_window_cannot_be_asked_for(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="0 windows"):
        first(tokenizer, "sparsegpt", 50, limit=0)


def test_an_end_of_text_line_is_ordinary_text(tokenizer: Any) -> None:
    document = f"{TEXT}\n<|endoftext|>\n{TEXT}"
    ids = tokenizer(document, verbose=False)["input_ids"]
    assert first(tokenizer, "sparsegpt", 50, documents=[document]).flatten().tolist() == ids[: len(ids) // 50 * 50]


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


def test_hidden_states_that_wait_on_disk_change_nothing_and_leave_nothing(
    tiny_llama: Callable[..., Path], tokenizer: Any, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PrunableModel.open(Checkpoint.open(tiny_llama()), device="cpu")
    ids = first(tokenizer, "sparsegpt", 128, limit=3)
    seen: list[int] = []
    loss = module.mean_loss

    def count(logits: Any, ids: torch.Tensor) -> float:
        found = loss(logits, ids)
        seen.append(len(list((tmp_path / "hidden").iterdir())))
        return found

    monkeypatch.setattr(module, "mean_loss", count)
    on_disk = perplexity(model, ids, offload=tmp_path / "hidden")
    monkeypatch.setattr(module, "mean_loss", loss)
    assert on_disk == perplexity(model, ids)
    assert seen == [1] and not (tmp_path / "hidden").exists()


def test_windows_are_comparable_when_they_hold_the_same_tokens(tokenizer: Any, story: Path) -> None:
    from transformers import LlamaConfig

    text = read_text(str(story))
    config = LlamaConfig(max_position_embeddings=128)
    one, same = (cut(text, config, tokenizer, PROTOCOLS["sparsegpt"], 2) for _ in range(2))
    shorter = cut(text, config, tokenizer, PROTOCOLS["sparsegpt"], 1)
    others = Windows(one.ids + 1, one.set, one.revision, one.split, one.protocol, one.join)
    assert one.same_tokens(same)
    assert not one.same_tokens(shorter) and not one.same_tokens(others)


def test_a_table_names_the_option_that_chooses_its_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "1", "b": "2"}\n')
    with pytest.raises(InputError, match="several columns of text") as caught:
        read_text(str(tmp_path / "a.jsonl"))
    assert caught.value.hint == "name one with --ppl-column"
    assert read_text(str(tmp_path / "a.jsonl"), column="b").documents[0] == "2"


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
