"""Models side by side: all is found before anything is measured, and only what is alike is compared."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError, UsageError
from prunekit.evaluate import perplexity, side_by_side
from prunekit.evaluate.side_by_side import Texts
from prunekit.model.loading import Opening
from prunekit.progress import Silent
from prunekit.run import pipeline

Model = Callable[..., Path]
TEXT = "The cat sat on the mat, and the dog sat on the log; 0123456789 is a number.\n"


class Notes(Silent):
    """Keeps the stages and notes."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def stage(self, title: str, total: int) -> None:
        self.stages.append(title)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 40)
    return str(path)


def other_tokenizer(folder: Path) -> None:
    """Give a model folder a tokenizer whose tokens are single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=letters, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)


def test_a_ratio_is_null_where_the_tokens_differ(tiny_llama: Model, text: str) -> None:
    one, other, same = (str(tiny_llama(name=name)) for name in ("one", "other", "same"))
    other_tokenizer(Path(other))
    heard = Notes()
    done = side_by_side.evaluate(
        [other, same], side_by_side.Questions(texts=Texts([text], windows=2)), baseline=one, progress=heard
    )
    dense, differing, equal = (row.perplexity[0] for row in done.models)

    assert dense.windows == differing.windows == 2, "their number alone does not tell"
    assert (dense.ratio, differing.ratio) == (1.0, None)
    assert (differing.kl, differing.agreement) == (None, None)
    assert equal.ratio == 1.0
    assert len(heard.notes) == 1 and heard.notes[0].startswith(f"{other} reads {text} as other tokens or windows")


@pytest.mark.parametrize("missing", ["model", "tokenizer", "text", "protocol", "dtype"])
def test_everything_is_found_before_the_first_is_measured(missing: str, tiny_llama: Model, text: str) -> None:
    one, other = tiny_llama(name="one"), tiny_llama(name="other")
    sets, how, more = [text], {}, {}
    if missing == "model":
        shutil.rmtree(other)
    elif missing == "tokenizer":
        for file in other.glob("tokenizer*"):
            file.unlink()
    elif missing == "text":
        sets.append("no.txt")
    else:
        (how if missing == "protocol" else more)[missing] = "foo"
    heard = Notes()
    asked = side_by_side.Questions(texts=Texts(sets, **how), opening=Opening(**more))
    with pytest.raises((InputError, UsageError)):
        side_by_side.evaluate([str(one), str(other)], asked, progress=heard)
    assert heard.stages == []


def test_hidden_states_can_wait_on_disk_and_nothing_stays_there(
    tiny_llama: Model, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    used: list[Path] = []
    logits = perplexity.stream.logits
    monkeypatch.setattr(
        perplexity.stream, "logits", lambda *all, **more: used.append(more["offload"]) or logits(*all, **more)
    )
    model = str(tiny_llama())
    on_disk = side_by_side.evaluate([model], side_by_side.Questions(texts=Texts([text], windows=2), offload="disk"))
    assert on_disk == side_by_side.evaluate([model], side_by_side.Questions(texts=Texts([text], windows=2)))
    assert used[0].is_relative_to(tmp_path / "temporary") and used[1] is None
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_column_of_a_table_can_be_named(tiny_llama: Model, tmp_path: Path) -> None:
    import json

    lines = [json.dumps({"title": "a", "body": TEXT * 10}) for _ in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    model, table = str(tiny_llama()), str(tmp_path / "a.jsonl")
    (row,) = side_by_side.evaluate(
        [model], side_by_side.Questions(texts=Texts([table], windows=1, column="body"))
    ).models
    assert float(row.perplexity[0].value) > 1
    with pytest.raises(InputError, match="several columns of text"):
        side_by_side.evaluate([model], side_by_side.Questions(texts=Texts([table])))


def test_a_run_measures_before_and_after_with_hidden_states_where_it_was_told_to(
    tiny_llama: Model, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunekit.recipe import settings

    monkeypatch.chdir(tmp_path)
    used: list[Any] = []
    logits = perplexity.stream.logits
    monkeypatch.setattr(
        perplexity.stream, "logits", lambda *all, **more: used.append(more["offload"]) or logits(*all, **more)
    )
    flags = {"model": str(tiny_llama()), "method": "wanda", "ratio": 0.5, "calib": text, "seq_len": 32, "samples": 4}
    flags |= {"offload": "disk", "verify": "off", "eval_windows": 2}
    heard = Notes()
    done = pipeline.prune(settings.build(flags)[0], Path("out"), progress=heard)

    assert heard.stages == ["perplexity before", "pruning", "perplexity after"]
    assert [path.parts[-2:] for path in used] == [("hidden", "perplexity")] * 2
    assert done.perplexity is not None and done.perplexity["calibration_text"]
    assert any(f"on the calibration text itself, {text}" in note for note in heard.notes)
    assert any("on the calibration text itself" in note for note in done.notes)
