"""Calibration: token batches drawn from a text, the same for the same text, tokenizer, numbers and seed.

Random crops as the SparseGPT and Wanda code draw them. From a stream: tokenise the joined text once, then per
sample `start = randint(0, N - seq_len - 1)`. From documents: per sample draw documents until one has more
than `seq_len` tokens, then `start = randint(0, n - seq_len - 1)`. The generator is `random.Random(seed)`.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunekit import cache as token_cache
from prunekit.errors import InputError, UsageError
from prunekit.progress import Progress
from prunekit.sample import PATH as SAMPLE
from prunekit.text.sources import Text, load_text, pinned_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE_VERSION = 1
MAX_MISSES = 10_000  # draws in a row that met no document long enough
FALLBACK_CHARACTERS = 16 * 2**20  # of short documents that are joined instead: some four million tokens
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Token ids (samples, seq_len), int64 on the CPU, and where they come from.

    `sampling` is how the crops were drawn, `notes` what the user should know about it. `sha256` is of the ids
    as little-endian int64.
    """

    ids: Tensor
    source: str
    revision: str | None
    seed: int
    sampling: str
    notes: tuple[str, ...]
    sha256: str

    @property
    def samples(self) -> int:
        """Number of crops."""
        return self.ids.shape[0]

    @property
    def seq_len(self) -> int:
        """Tokens in a crop."""
        return self.ids.shape[1]

    def record(self) -> dict[str, Any]:
        """What the manifest keeps."""
        return {
            "source": self.source,
            "revision": self.revision,
            "samples": self.samples,
            "seq_len": self.seq_len,
            "seed": self.seed,
            "sampling": self.sampling,
            "notes": list(self.notes),
            "sha256": self.sha256,
        }


def calibrate(
    source: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    samples: int = 128,
    seq_len: int = 2048,
    seed: int = 0,
    column: str | None = None,
    offline: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Load a text and draw from it, or take the token ids of an earlier run of the same content and numbers.

    A text pinned to a commit is not even read when its ids are in the cache. `cache` defaults to the user's
    cache folder. Raises what `load_text` and `draw` raise.
    """
    numbers = {"samples": samples, "seq_len": seq_len, "seed": seed}
    parts: dict[str, Any] = {"version": CACHE_VERSION, "tokenizer": tokenizer_identity(tokenizer), **numbers}
    entries = (cache or token_cache.folder()) / "calibration"
    text, identity = None, pinned_identity(source, split="calibration", column=column)
    if identity is None:
        text = load_text(source, split="calibration", column=column, offline=offline, progress=progress)
        identity = text.identity()
    entry = entries / f"{token_cache.key(text=identity, **parts)}.safetensors"
    if found := token_cache.read(entry):
        ids, kept = found
        revision = text.revision if text else kept["revision"]
        return Calibration(
            ids, source, revision, seed, kept["sampling"], tuple(kept["notes"]), token_cache.ids_digest(ids)
        )
    text = text or load_text(source, split="calibration", column=column, offline=offline, progress=progress)
    drawn = draw(text, tokenizer, **numbers)
    kept = {"revision": drawn.revision, "sampling": drawn.sampling, "notes": drawn.notes}
    token_cache.write(entry, drawn.ids, kept)
    return drawn


def draw(text: Text, tokenizer: "PreTrainedTokenizerBase", *, samples: int, seq_len: int, seed: int) -> Calibration:
    """Draw random crops of `seq_len` tokens; documents that are all too short are joined to a stream.

    Raises InputError when the whole text has too few tokens for one crop, UsageError for numbers below 1.
    """
    if samples < 1 or seq_len < 1:
        raise UsageError(f"{samples} samples of {seq_len} tokens; expected at least 1 of each")
    sampling, notes = text.sampling, list[str]()
    crops = crops_of_documents(text, tokenizer, samples, seq_len, seed) if sampling == "documents" else None
    if crops is None:
        joined, notes = (text.joined(), []) if sampling == "stream" else _join_short(text, seq_len)
        sampling = "stream"
        crops, tokens = crops_of_stream(joined, tokenizer, samples, seq_len, seed, text.source)
        if tokens < samples * seq_len:
            notes.append(f"the text has {tokens} tokens, fewer than {samples} x {seq_len}: samples overlap")
    ids = torch.tensor(crops, dtype=torch.int64)
    return Calibration(ids, text.source, text.revision, seed, sampling, tuple(notes), token_cache.ids_digest(ids))


def crops_of_stream(
    joined: str, tokenizer: "PreTrainedTokenizerBase", samples: int, seq_len: int, seed: int, name: str
) -> tuple[list[list[int]], int]:
    """Crops of a text that is tokenised once, and the number of its tokens."""
    rng, ids = random.Random(seed), encode(tokenizer, joined)
    if len(ids) <= seq_len:
        raise InputError(
            f"{name} has {len(ids)} tokens; expected more than {seq_len} for one sample",
            hint=f"give more text, or shorter samples: --seq-len {max(1, len(ids) // 2)}",
        )
    starts = [rng.randint(0, len(ids) - seq_len - 1) for _ in range(samples)]
    return [ids[start : start + seq_len] for start in starts], len(ids)


def crops_of_documents(
    text: Text, tokenizer: "PreTrainedTokenizerBase", samples: int, seq_len: int, seed: int
) -> list[list[int]] | None:
    """One crop each of documents drawn at random; None when no document is long enough.

    Only drawn documents are tokenised, and a short one only once.
    """
    rng, crops, misses = random.Random(seed), [], 0
    short: set[int] = set()
    while len(crops) < samples:
        if misses == MAX_MISSES or len(short) == len(text.documents):
            return None
        index = rng.randint(0, len(text.documents) - 1)
        ids = [] if index in short else encode(tokenizer, text.documents[index])
        if len(ids) <= seq_len:
            short.add(index)
            misses += 1
            continue
        start = rng.randint(0, len(ids) - seq_len - 1)
        crops.append(ids[start : start + seq_len])
        misses = 0
    return crops


def _join_short(text: Text, seq_len: int) -> tuple[str, list[str]]:
    """The documents as one bounded text, and the sentence that says so."""
    lengths = accumulate(len(document) for document in text.documents)
    count = next((n for n, total in enumerate(lengths, 1) if total >= FALLBACK_CHARACTERS), len(text.documents))
    which = f"all {count}" if count == len(text.documents) else f"the first {count} of {len(text.documents)}"
    note = f"found no document of more than {seq_len} tokens; {which} are joined by {text.separator!r} instead"
    return text.separator.join(text.documents[:count]), [note]


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a text of any length, with the special tokens that the tokenizer adds by itself."""
    return tokenizer(text, verbose=False, return_attention_mask=False)["input_ids"]  # type: ignore[return-value]


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the tokenizer as it would be saved: any change to it is another tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    options = repr(sorted(tokenizer.init_kwargs.items(), key=lambda item: item[0]))
    return hashlib.sha256(f"{type(tokenizer).__name__}\n{vocabulary}\n{options}".encode()).hexdigest()


def check_vocabulary(ids: Tensor, vocabulary: int) -> None:
    """Raise InputError when a token id is outside the model's vocabulary."""
    largest = int(ids.max()) if ids.numel() else 0
    if largest >= vocabulary:
        raise InputError(
            f"the tokenizer gives token id {largest}; the model's vocabulary has {vocabulary} tokens",
            hint="the tokenizer and the model do not belong together: look at the files in the model folder",
        )


def default_source(model: str) -> str:
    """The text to calibrate and measure on when the user names none: `sample` for the bundled model."""
    return "sample" if model == "sample" or Path(model).resolve() == SAMPLE.resolve() else "wikitext2"


def max_positions(config: Any) -> int | None:
    """The longest sequence that a model's config states, in tokens; None when it states none."""
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(inner, name, None) for name in POSITIONS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def default_seq_len(config: Any) -> int:
    """min(2048, the model's maximum)."""
    return min(2048, max_positions(config) or 2048)
