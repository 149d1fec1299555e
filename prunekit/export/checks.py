"""What is checked of a model folder: its files agree, it loads, it computes what it should, its cache works.

These run in the fresh process that `prunekit.export.verify` starts and know nothing of the run that wrote the
folder. Each takes what it needs and returns a `Check`; none raises for a bad folder.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from prunekit.export.manifest import MANIFEST, Manifest
from prunekit.model.checkpoint import INDEX, SINGLE
from prunekit.plan import Action, Frozen

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
CACHE_SLACK = 4
PROMPT_TOKENS = 16
NEW_TOKENS = 20
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
BASE = Action.problems.__func__  # what a kind that looks at nothing inherits
KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")

Headers = dict[str, tuple[str, tuple[int, ...]]]  # tensor name -> safetensors dtype, shape


class Check(Frozen):
    """One thing that was looked at, and what was found."""

    name: str
    passed: bool
    detail: str


class Generated(Frozen):
    """A greedy continuation, as token ids."""

    prompt: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class Probe:
    """Token ids (1, tokens) and, when known, the logits (tokens, vocabulary) that they must give."""

    ids: Tensor
    logits: Tensor | None = None

    @classmethod
    def read(cls, path: Path) -> "Probe":
        """From a safetensors file with `input_ids` and `logits`."""
        with safe_open(path, framework="pt") as file:
            return cls(file.get_tensor("input_ids"), file.get_tensor("logits"))

    @classmethod
    def made_up(cls, vocabulary: int) -> "Probe":
        """A few token ids, for a folder whose logits nobody recorded."""
        return cls(torch.arange(1, PROMPT_TOKENS + 1).unsqueeze(0) % vocabulary)


def tolerance(dtype: torch.dtype) -> float:
    """How far logits may be apart, relative to the largest logit, and still be the same model's.

    The recorded and the reloaded model hold the same numbers; they may differ in the order in which products
    are summed (block by block or whole, masks given or implied). One rounding is 6e-8 in float32, 4e-3 in
    bfloat16, 5e-4 in float16, and over the depth of a model the errors add up like a random walk. On random
    Llamas of 4 to 48 blocks, two truly different orders (with and without the cache) differed by 1e-6, 2e-2
    and 2.5e-3; the two forwards of a probe are mostly equal to the bit. One tensor of other numbers moves
    logits by 1e-1 and more. Float32 thus leaves a factor of a hundred to either side. Half precision is a
    coarser net.
    """
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])


def check_files(folder: Path) -> tuple[Check, Headers]:
    """The index, the weight files and config.json agree; the answer lists every tensor of the files."""
    problems: list[str] = []
    files: dict[str, Headers] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            files[path.name] = _headers(path)
        except Exception as error:  # each kind of damage has its own exception
            problems.append(f"{path.name} cannot be read: {error}")
    problems += _index_problems(folder, files) + _config_problems(folder)
    tensors = {name: info for headers in files.values() for name, info in headers.items()}
    size = f"{len(files)} weight file{'s' if len(files) != 1 else ''} with {len(tensors)} tensors"
    return _check("files", problems, f"{size}, index and config.json agree"), tensors


def check_loads(folder: Path, tensors: Headers, **options: Any) -> tuple[Check, PreTrainedModel | None]:
    """Plain `from_pretrained` finds every tensor it wants, in its shape, and none that it does not want.

    transformers fills a missing tensor with random numbers and only warns. A bool, integer or scalar tensor
    that it does not want is a mask of older versions, which the source brought along; it is counted and
    passes.
    """
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True, **options
        )
        model, info = answer
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # whatever it is, a plain load does not work
        return _check("loads", [f"from_pretrained fails: {_one_line(error)}"], ""), None
    leftover = {name for name in info["unexpected_keys"] if _is_mask(tensors.get(name))}
    found = {kind: {_key(key) for key in info[kind]} - leftover for kind in KEYS}
    problems = [f"{kind.replace('_', ' ')}: {_some(names)}" for kind, names in found.items() if names]
    masks = f"; {len(leftover)} left-over mask buffers are ignored" if leftover else ""
    detail = f"from_pretrained fills every parameter and leaves none over{masks}"
    return _check("loads", problems, detail), model.eval()


def check_manifest(folder: Path) -> Check | None:
    """The zeros of every linear are as many as `prunekit.json` says; None when there is no manifest.

    A linear whose weight is stored under another name than its module (transformers converts it) is not
    counted.
    """
    if not (folder / MANIFEST).is_file():
        return None
    try:
        linears = Manifest.read(folder).result.linears
    except Exception as error:
        return _check("manifest", [_one_line(error)], "")
    counted = _zeros(folder, {f"{path}.weight" for path in linears})
    problems = [
        f"{path} has {counted[f'{path}.weight']} zeros, the manifest says {linear.zeros}"
        for path, linear in linears.items()
        if counted.get(f"{path}.weight", linear.zeros) != linear.zeros
    ]
    detail = f"the zeros of {len(counted)} of {len(linears)} linears are as recorded"
    return _check("manifest", problems, detail)


def check_actions(folder: Path, model: PreTrainedModel | None) -> Check | None:
    """The model is as the plan's actions say, for kinds that look at it (`Action.problems`); None without such a kind.

    A folder that is checked block by block has no whole model to look at, which the detail says.
    """
    if not (folder / MANIFEST).is_file():
        return None
    kinds = Manifest.read(folder).plan.kinds()
    looking = {kind: actions for kind, actions in kinds.items() if kind.problems.__func__ is not BASE}
    if not looking:
        return None
    names = ", ".join(actions[0].kind for actions in looking.values())
    if model is None:
        return _check("actions", [], f"{names}: not looked at, since the model was not loaded whole")
    problems = [problem for kind, actions in looking.items() for problem in kind.problems(model, actions)]
    return _check("actions", problems, f"{names}: as planned")


def check_logits(found: Tensor, expected: Tensor, allowed: float) -> Check:
    """Logits (tokens, vocabulary) equal the recorded ones within `allowed` times the largest recorded one."""
    if found.shape != expected.shape:
        return _check("logits", [f"shape {tuple(found.shape)}, recorded {tuple(expected.shape)}"], "")
    apart = distance(found, expected)
    text = f"largest difference {apart:.1e} of the largest logit, {allowed:.0e} allowed"
    return _check("logits", [] if apart <= allowed else [text], text)


@torch.no_grad()
def check_generation(model: PreTrainedModel, ids: Tensor) -> tuple[Check, Generated | None]:
    """Greedy generation with the cache gives what it gives without; the answer holds the continuation.

    Both runs are followed as long as their tokens agree, and through the first place where they do not: until
    there they have read the same tokens, so their logits must be equal up to rounding. A different token is
    thus no failure where two logits tie within rounding. In float32 every common step is compared; in half
    precision, where caching moves logits by 2 %, equal tokens are enough. CACHE_SLACK tolerances are
    allowed.
    """
    try:
        cached, plain = (_generate(model, ids, use_cache) for use_cache in (True, False))
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # generation runs the model's own code
        return _check("generation", [f"generate fails: {_one_line(error)}"], ""), None
    allowed = CACHE_SLACK * tolerance(model.dtype)
    generated = Generated(prompt=ids[0].tolist(), tokens=cached[0].tolist())
    return compare_generations(cached, plain, allowed, exact=model.dtype == torch.float32), generated


def compare_generations(
    cached: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], allowed: float, *, exact: bool
) -> Check:
    """Compare two runs: of each the new tokens (n,) and the logits (n, vocabulary) they were chosen from."""
    (tokens, logits), (other_tokens, other_logits) = cached, plain
    differing = (tokens != other_tokens).nonzero()
    last = int(differing[0]) if len(differing) else len(tokens) - 1
    steps = range(last + 1) if exact else [last] if len(differing) else []
    far = [step for step in steps if not distance(logits[step], other_logits[step]) <= allowed]
    problems = [f"at new token {step + 1} the logits with the cache are others" for step in far[:1]]
    tie = f" up to token {last + 1}, where two tokens tie" if len(differing) else ""
    detail = f"{len(tokens)} greedy tokens with the cache equal those without{tie}"
    return _check("generation", problems, detail)


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest finite value expected; nan when either holds one.

    Logits that are minus infinity in both (tokens that a model rules out) are equal.
    """
    found, expected = found.float(), expected.float()
    apart = (found - expected).abs().masked_fill(found == expected, 0)
    scale = expected.abs().nan_to_num(posinf=0).max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(apart.max() / scale)


def _generate(model: PreTrainedModel, ids: Tensor, use_cache: bool) -> tuple[Tensor, Tensor]:
    """New tokens (n,) and their logits (n, vocabulary); no token ends the text, as some models have none."""
    model.generation_config = GenerationConfig(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    ids = ids.to(model.device)
    answer: Any = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        use_cache=use_cache,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return answer.sequences[0, ids.shape[1] :].cpu(), torch.cat(answer.logits).float().cpu()


def _headers(path: Path) -> Headers:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is not a mapping
        return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def _index_problems(folder: Path, files: Mapping[str, Headers]) -> list[str]:
    if not (folder / INDEX).is_file():
        found = _some(files) or "none"
        return [] if found == SINGLE else [f"without {INDEX} one {SINGLE} is expected, found {found}"]
    index = _json(folder / INDEX)
    places = index.get("weight_map") if index else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        return [f"{INDEX} is not a JSON object with a weight_map from tensors to files"]
    named = set(places.values())
    problems = [f"{file} is missing" for file in sorted(named) if not (folder / file).is_file()]
    problems += [f"{file} is not in the index" for file in sorted(files.keys() - named)]
    absent = [name for name, file in places.items() if file in files and name not in files[file]]
    held = [(name, file) for file, headers in files.items() if file in named for name in headers]
    extra = [name for name, file in held if places.get(name) != file]
    problems += [f"the index names {_some(absent)}, which its file does not hold"] if absent else []
    return problems + ([f"the files hold {_some(extra)}, which the index does not name"] if extra else [])


def _config_problems(folder: Path) -> list[str]:
    config = _json(folder / "config.json")
    if config is None:
        return ["config.json is missing or is not a JSON object"]
    return [] if config.get("model_type") else ["config.json names no model_type"]


def _zeros(folder: Path, names: set[str]) -> dict[str, int]:
    """Name -> number of zeros, for those of the names that are stored; one tensor in memory at a time."""
    counted: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in names.intersection(file.keys()):
                tensor = file.get_tensor(name)
                counted[name] = tensor.numel() - int(tensor.count_nonzero())
    return counted


def _is_mask(info: tuple[str, tuple[int, ...]] | None) -> bool:
    return info is not None and (info[0] == "BOOL" or info[0][0] in "IU" or info[1] == ())


def _key(key: Any) -> str:
    """A loading report names a tensor, or for another shape the tensor with both shapes."""
    return key if isinstance(key, str) else f"{key[0]} (stored {tuple(key[1])}, wanted {tuple(key[2])})"


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _check(name: str, problems: list[str], detail: str) -> Check:
    return Check(name=name, passed=not problems, detail="; ".join(problems) or detail)


def _some(names: Iterable[str]) -> str:
    """The first two names and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 2} more" if len(ordered) > 2 else ""
    return ", ".join(ordered[:2]) + more


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
