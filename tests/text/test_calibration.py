"""Calibration draws what the reference code draws, caches it, and says what it had to do differently."""

import hashlib
import json
import logging
import random
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prunekit import cache
from prunekit.errors import InputError, UsageError
from prunekit.sample import PATH as SAMPLE
from prunekit.text import calibration
from prunekit.text.calibration import calibrate, draw
from prunekit.text.sources import Text

WORDS = "the cat sat on a mat and the dog sat on a log ".split()


def prose(words: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture
def tokenizer(tiny_tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer)


def reference_stream(joined: str, tokenizer: Any, samples: int, seq_len: int, seed: int) -> torch.Tensor:
    ids = tokenizer(joined, return_tensors="pt", verbose=False).input_ids
    random.seed(seed)
    starts = [random.randint(0, ids.shape[1] - seq_len - 1) for _ in range(samples)]
    return torch.cat([ids[:, start : start + seq_len] for start in starts])


def reference_documents(texts: list[str], tokenizer: Any, samples: int, seq_len: int, seed: int) -> torch.Tensor:
    random.seed(seed)
    crops = []
    for _ in range(samples):
        while True:
            ids = tokenizer(texts[random.randint(0, len(texts) - 1)], return_tensors="pt", verbose=False).input_ids
            if ids.shape[1] > seq_len:
                break
        start = random.randint(0, ids.shape[1] - seq_len - 1)
        crops.append(ids[:, start : start + seq_len])
    return torch.cat(crops)


# --- drawing ---------------------------------------------------------------------------------------------


def test_a_stream_is_cropped_as_the_reference_code_does(tokenizer: Any) -> None:
    texts = [prose(30, seed) for seed in range(40)]
    drawn = draw(Text("t", None, texts, " ", "stream"), tokenizer, samples=9, seq_len=32, seed=3)
    assert torch.equal(drawn.ids, reference_stream(" ".join(texts), tokenizer, 9, 32, 3))
    assert (drawn.ids.dtype, drawn.sampling, drawn.notes) == (torch.int64, "stream", ())


def test_documents_are_drawn_as_the_reference_code_does(tokenizer: Any) -> None:
    texts = [prose(10 + 7 * seed, seed) for seed in range(12)]
    drawn = draw(Text("t", None, texts), tokenizer, samples=20, seq_len=64, seed=5)
    assert torch.equal(drawn.ids, reference_documents(texts, tokenizer, 20, 64, 5))
    assert (drawn.sampling, drawn.notes) == ("documents", ())


def test_the_seed_decides_the_samples(tokenizer: Any) -> None:
    text = Text("t", None, [prose(500)], sampling="stream")
    first, again, other = (draw(text, tokenizer, samples=4, seq_len=16, seed=seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_a_document_of_exactly_seq_len_tokens_is_too_short(tokenizer: Any) -> None:
    document = prose(50)
    length = len(tokenizer(document)["input_ids"])
    text = Text("t", None, [document, prose(80)])
    drawn = draw(text, tokenizer, samples=8, seq_len=length, seed=0)
    assert torch.equal(drawn.ids, reference_documents(list(text.documents), tokenizer, 8, length, 0))


def test_only_drawn_documents_are_tokenised(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = calibration.encode
    monkeypatch.setattr(calibration, "encode", lambda tokenizer, text: seen.append(text) or encode(tokenizer, text))
    draw(Text("t", None, [prose(60, seed) for seed in range(1000)]), tokenizer, samples=5, seq_len=16, seed=0)
    assert len(seen) == 5


def test_short_documents_are_joined_and_the_result_says_so(tokenizer: Any) -> None:
    texts = [prose(8, seed) for seed in range(100)]
    drawn = draw(Text("t", None, texts), tokenizer, samples=3, seq_len=128, seed=0)
    assert torch.equal(drawn.ids, reference_stream("\n\n".join(texts), tokenizer, 3, 128, 0))
    assert drawn.sampling == "stream"
    assert drawn.notes == ("found no document of more than 128 tokens; all 100 are joined by '\\n\\n' instead",)


def test_the_search_for_a_long_document_is_bounded_and_so_is_the_text(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MAX_MISSES", 5)
    monkeypatch.setattr(calibration, "FALLBACK_CHARACTERS", 2000)
    texts = ["the cat sat on a mat"] * 1000
    drawn = draw(Text("t", None, texts), tokenizer, samples=2, seq_len=64, seed=0)
    assert "the first 100 of 1000" in drawn.notes[0]
    assert torch.equal(drawn.ids, reference_stream("\n\n".join(texts[:100]), tokenizer, 2, 64, 0))


def test_samples_that_must_overlap_are_noted(tokenizer: Any) -> None:
    drawn = draw(Text("t", None, [prose(100)], sampling="stream"), tokenizer, samples=50, seq_len=32, seed=0)
    assert "samples overlap" in drawn.notes[0]


@pytest.mark.parametrize("sampling", ["stream", "documents"])
def test_too_little_text_is_an_error_with_both_numbers(sampling: Any, tokenizer: Any) -> None:
    count = len(tokenizer("the cat sat")["input_ids"])
    with pytest.raises(InputError, match=f"t has {count} tokens; expected more than 64") as caught:
        draw(Text("t", None, ["the cat sat"], sampling=sampling), tokenizer, samples=1, seq_len=64, seed=0)
    assert "--seq-len" in str(caught.value.hint)


@pytest.mark.parametrize("numbers", [{"samples": 0, "seq_len": 4}, {"samples": 1, "seq_len": 0}])
def test_numbers_below_one_are_usage_errors(numbers: dict[str, int], tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        draw(Text("t", None, ["text"]), tokenizer, seed=0, **numbers)


def test_a_long_text_gives_no_warning_of_the_tokenizer(tokenizer: Any) -> None:
    tokenizer.model_max_length = 16
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        draw(Text("t", None, [prose(500)], sampling="stream"), tokenizer, samples=1, seq_len=64, seed=0)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert heard == []


def test_the_hash_is_of_the_ids_as_little_endian_int64(tokenizer: Any) -> None:
    drawn = draw(Text("t", None, [prose(100)], sampling="stream"), tokenizer, samples=2, seq_len=8, seed=0)
    ids = drawn.ids.flatten().tolist()
    assert drawn.sha256 == hashlib.sha256(struct.pack(f"<{len(ids)}q", *ids)).hexdigest()


# --- the cache -------------------------------------------------------------------------------------------


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(prose(400), encoding="utf-8")
    return path


@pytest.fixture
def run(story: Path, tokenizer: Any, tmp_path: Path) -> Callable[..., calibration.Calibration]:
    def make(**changes: Any) -> calibration.Calibration:
        options: dict[str, Any] = {"samples": 4, "seq_len": 16, "cache": tmp_path / "cache"} | changes
        return calibrate(str(options.pop("source", story)), options.pop("tokenizer", tokenizer), **options)

    return make


Run = Callable[..., calibration.Calibration]


def forbid_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this should have come from the cache")

    monkeypatch.setattr(calibration, "draw", refuse)


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "calibration").iterdir())


def test_the_record_names_source_revision_numbers_and_hash(run: Run, story: Path) -> None:
    drawn = run()
    assert json.loads(json.dumps(drawn.record())) == {
        "source": str(story),
        "revision": None,
        "samples": 4,
        "seq_len": 16,
        "seed": 0,
        "sampling": "stream",
        "notes": [],
        "sha256": drawn.sha256,
    }


def test_a_second_run_takes_the_ids_from_the_cache(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(samples=100)
    forbid_drawing(monkeypatch)
    again = run(samples=100)
    assert torch.equal(first.ids, again.ids)
    assert first.notes
    assert again.record() == first.record()


def test_another_name_for_the_same_text_is_the_same_entry(
    run: Run, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    forbid_drawing(monkeypatch)
    moved = story.rename(tmp_path / "moved.txt")
    assert run(source=moved).record()["source"] == str(moved)


@pytest.mark.parametrize("change", [{"samples": 5}, {"seq_len": 17}, {"seed": 1}])
def test_every_number_has_its_own_entry(change: dict[str, int], run: Run, tmp_path: Path) -> None:
    assert run().sha256 != run(**change).sha256
    assert len(entries(tmp_path)) == 2


def test_a_changed_text_or_tokenizer_misses_the_cache(run: Run, story: Path, tokenizer: Any, tmp_path: Path) -> None:
    run()
    tokenizer.add_tokens(["cat"])
    run()
    story.write_text(prose(400, seed=9), encoding="utf-8")
    run()
    assert len(entries(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_entry_is_ignored_and_written_again(damage: str, run: Run, tmp_path: Path) -> None:
    first = run()
    (entry,) = entries(tmp_path)
    data = bytearray(entry.read_bytes())
    data[-8] ^= 1
    entry.write_bytes({"truncated": data[:-9], "flipped": data, "emptied": b""}[damage])
    assert run().sha256 == first.sha256
    assert cache.read(entry) is not None


def test_a_cache_that_cannot_be_written_is_no_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    assert run(cache=tmp_path / "file").samples == 4

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert run().samples == 4
    assert entries(tmp_path) == []


def test_a_pinned_text_is_not_read_when_its_ids_are_cached(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text(
        "wikitext2",
        "b08601e",
        [prose(400)],
        " ",
        "stream",
        pinned=calibration.pinned_identity("wikitext2", split="calibration"),
    )
    monkeypatch.setattr(calibration, "load_text", lambda *_, **__: text)
    first = run(source="wikitext2")

    def unreachable(*_: Any, **__: Any) -> None:
        raise InputError("the hub is out of reach")

    monkeypatch.setattr(calibration, "load_text", unreachable)
    assert run(source="wikitext2", offline=True).record() == first.record()
    with pytest.raises(InputError):
        run(source="c4")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "mine"))
    assert cache.folder() == tmp_path / "mine"
    monkeypatch.delenv("PRUNEKIT_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "prunekit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.folder() == tmp_path / ".cache" / "prunekit"


def test_the_default_cache_is_the_users(
    story: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))
    calibrate(str(story), tokenizer, samples=2, seq_len=8)
    assert len(entries(tmp_path)) == 1


def test_a_tokenizer_without_a_fast_backend_has_an_identity_too() -> None:
    def slow(**vocabulary: int) -> Any:
        return SimpleNamespace(get_vocab=lambda: vocabulary, init_kwargs={"add_bos_token": True})

    one, same, other = (
        calibration.tokenizer_identity(slow(**v)) for v in ({"a": 0, "b": 1}, {"b": 1, "a": 0}, {"a": 1})
    )
    assert one == same
    assert one != other


# --- defaults and checks ---------------------------------------------------------------------------------


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    calibration.check_vocabulary(torch.tensor([[0, 319]]), 320)
    with pytest.raises(InputError, match="token id 320; the model's vocabulary has 320"):
        calibration.check_vocabulary(torch.tensor([[0, 320]]), 320)


def test_the_default_text_is_the_sample_for_the_sample_only(tmp_path: Path) -> None:
    assert calibration.default_source("sample") == "sample"
    assert calibration.default_source(str(SAMPLE)) == "sample"
    assert calibration.default_source("org/model") == calibration.default_source(str(tmp_path)) == "wikitext2"


def test_the_default_length_is_the_models_maximum_but_at_most_2048() -> None:
    from transformers import GPT2Config, LlamaConfig

    assert calibration.default_seq_len(LlamaConfig(max_position_embeddings=512)) == 512
    assert calibration.default_seq_len(LlamaConfig(max_position_embeddings=131072)) == 2048
    assert calibration.default_seq_len(GPT2Config(n_positions=1024)) == 1024
    assert calibration.default_seq_len(SimpleNamespace()) == 2048


def test_the_sample_can_be_calibrated_on(tokenizer: Any) -> None:
    drawn = calibrate("sample", tokenizer, samples=2, seq_len=64)
    assert drawn.ids.shape == (2, 64)
    assert drawn.sampling == "documents"


def test_c4_documents_are_long_enough_for_real_crops(shared_data: Path, tokenizer: Any) -> None:
    path = shared_data / "text" / "c4-train-1000.jsonl"
    if not path.exists():
        pytest.skip("no C4 documents in the shared data")
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    drawn = calibrate(str(path), tokenizer, samples=4, seq_len=512)
    assert torch.equal(drawn.ids, reference_documents(texts, tokenizer, 4, 512, 0))
