"""What models make of the same beginning, always by their most likely token: a look, and no measure."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunekit.model.checkpoint import Checkpoint
from prunekit.model.device import choose_device, choose_dtype, give_back_memory
from prunekit.model.prunable import PrunableModel
from prunekit.plan import Frozen
from prunekit.progress import Progress, Silent

NEW_TOKENS, PROMPT_CHARACTERS = 48, 160


class Continuation(Frozen):
    """What one model wrote after the prompt."""

    model: str
    prompt: str
    text: str


def continuations(
    folders: Mapping[str, Path],
    prompt: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[Continuation]:
    """What each model writes after a prompt; one of them is in memory, whole, at a time."""
    progress = progress or Silent()
    progress.stage("sample", len(folders))
    found: list[Continuation] = []
    for name, folder in folders.items():
        text = _go_on(folder, prompt, device, dtype, trust_remote_code)
        found.append(Continuation(model=name, prompt=prompt, text=text))
        progress.step(name)
    return found


@torch.no_grad()
def _go_on(folder: Path, prompt: str, device: str, dtype: str, trust_remote_code: bool) -> str:
    from transformers import AutoTokenizer

    checkpoint, place = Checkpoint.open(folder), choose_device(device)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    opened = PrunableModel.open(checkpoint, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    model: Any = opened.load(choose_dtype(dtype, place, checkpoint)).eval()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]], device=place)
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
    said = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy)
    del model, opened
    give_back_memory()
    return str(tokenizer.decode(said[0, ids.shape[1] :]))


def beginning(documents: Sequence[str]) -> str:
    """Some letters, up to the end of a word, from a paragraph in the midst of a text: it says more than a heading."""
    text = next((document for document in documents if len(document) > 4 * PROMPT_CHARACTERS), "\n\n".join(documents))
    middle = text.find("\n\n", len(text) // 2)
    rest = text[middle:].strip() if middle >= 0 and len(text) - middle > PROMPT_CHARACTERS else text.strip()
    short = rest[:PROMPT_CHARACTERS]
    words = re.match(r"(?s)(.*\S)\s", short)
    return words[1] if len(rest) > len(short) and words else short
