"""The sample text is whole and honestly split; the sample model is whole, small and has learnt something."""

import math
import re
import subprocess
import sys
from functools import cache

import pytest

from prunekit import sample
from prunekit.errors import InputError
from prunekit.sample import text

pytestmark = pytest.mark.slow

MEBIBYTE = 2**20


@cache
def _lines(split: text.Split) -> set[str]:
    """Lines long enough to say something, so that `return None` is not called a copy."""
    lines = (line.strip() for document in text.documents(split) for line in document.text.splitlines())
    return {line for line in lines if len(line) >= 40}


def test_no_module_is_in_both_splits_or_listed_twice():
    names = [name for listed in text.MODULES.values() for name in listed]
    assert len(names) == len(set(names))


def test_every_listed_module_is_found_in_list_order_and_has_text():
    for split, names in text.MODULES.items():
        documents = text.documents(split)
        assert [document.name for document in documents] == names
        assert all(document.text.strip() for document in documents)


def test_held_out_is_seven_to_eleven_percent_of_the_text():
    size = {split: sum(len(document.text) for document in text.documents(split)) for split in text.MODULES}
    assert 0.07 < size["held-out"] / sum(size.values()) < 0.11


def test_held_out_text_is_not_copied_from_train():
    assert len(_lines("held-out") & _lines("train")) < 0.03 * len(_lines("held-out"))


def test_the_help_topics_are_prose_not_python():
    topics = next(document.text for document in text.documents("train") if document.name == text.TOPICS)
    assert "\nAssert statements are a convenient way" in topics
    assert "\\n" not in topics[:2000]


def test_a_stranger_of_the_same_name_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "csv.py").write_text("stranger = True")
    monkeypatch.syspath_prepend(tmp_path)
    documents = {document.name: document.text for document in text.documents("held-out")}
    assert "stranger" not in documents["csv"]


@pytest.mark.parametrize("name", ["no_such_module", "json.no_such_part", "no_such_package.part", "math"])
def test_a_module_without_source_is_an_input_error_that_names_it(name, monkeypatch):
    monkeypatch.setitem(text.MODULES, "held-out", ["csv", name])
    with pytest.raises(InputError, match=f"module {name}"):
        text.documents("held-out")


def test_reading_the_text_imports_neither_torch_nor_the_modules_it_reads():
    code = (
        "import sys; from prunekit.sample import text; text.documents('train'); text.documents('held-out');"
        "print([name for name in ('torch', 'transformers', 'asyncio', 'xml.sax') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_model_folder_is_below_twelve_megabytes_and_holds_no_pickle():
    files = [file for file in sample.PATH.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12 * MEBIBYTE
    assert {file.suffix for file in files} <= {".py", ".md", ".json", ".safetensors"}


def test_the_model_loads_plainly_with_every_weight_in_its_place():
    import torch
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(sample.PATH, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == len(model.model.layers) == 12
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_tokenizer_gives_text_back_exactly_and_adds_nothing():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sample.PATH)
    source = "def prune(x: float = 1e-3):\n\treturn  'déjà vu 🌳' , x\n\n"
    assert tokenizer.is_fast
    assert (len(tokenizer), tokenizer.model_max_length) == (2048, 512)
    assert tokenizer.decode(tokenizer(source).input_ids) == source
    assert tokenizer.eos_token_id not in tokenizer(source).input_ids
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"


def test_the_card_tells_the_truth_about_text_the_model_never_saw():
    """Some of the card's windows, measured as the card says; another Python differs a little."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sample.PATH)
    model = AutoModelForCausalLM.from_pretrained(sample.PATH, dtype=torch.float32)
    held_out = tokenizer.eos_token.join(document.text for document in text.documents("held-out"))
    tokens = tokenizer(held_out, return_tensors="pt", verbose=False).input_ids[0]
    windows = tokens[: len(tokens) // 512 * 512].view(-1, 512)[::20]
    with torch.inference_mode():
        losses = [model(batch, labels=batch).loss.item() for batch in windows.split(1)]
    card = (sample.PATH / "README.md").read_text()
    (claimed,) = re.findall(r"held-out perplexity\D*([\d.]+)", card)
    perplexity = math.exp(sum(losses) / len(losses))
    assert perplexity == pytest.approx(float(claimed), rel=0.15)
    assert perplexity < 64
