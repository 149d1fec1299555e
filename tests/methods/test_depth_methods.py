"""ShortGPT, SLEB and `layers` choose what their papers, or the user, say; compared with plain transformers code."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from prunekit import testing as checks
from prunekit.errors import UsageError
from prunekit_methods.layers import Layers
from prunekit_methods.shortgpt import ShortGPT
from prunekit_methods.sleb import SLEB

Model = Callable[..., Path]
IDS = torch.randint(320, (6, 24), generator=torch.Generator().manual_seed(5))


def deep(make: Model) -> Path:
    """A random model whose blocks do clearly different amounts of work."""
    return make(num_hidden_layers=6, initializer_range=0.3)


def hidden_states(folder: Path) -> tuple[Tensor, ...]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    states: list[Tensor] = []
    for block in model.model.layers:
        block.register_forward_pre_hook(lambda _, args, kwargs: states.append(args[0]), with_kwargs=True)
        last = block.register_forward_hook(lambda _, args, output: states.append(output))
        if block is not model.model.layers[-1]:
            last.remove()
    with torch.no_grad():
        model(IDS, use_cache=False)
    return tuple(states)


def loss_without(folder: Path, gone: set[int]) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.model.layers = torch.nn.ModuleList(b for i, b in enumerate(model.model.layers) if i not in gone)
    model.config.num_hidden_layers = len(model.model.layers)
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()).item()


def test_shortgpt_measures_block_influence_and_removes_the_smallest(tiny_llama: Model) -> None:
    folder = deep(tiny_llama)
    states = hidden_states(folder)
    expected = [1 - cosine_similarity(x, y, dim=-1).mean().item() for x, y in pairwise(states)]
    ctx = checks.open_context(folder, ShortGPT(), ids=IDS, ratio=0.33)
    plan = ShortGPT().plan(ctx)
    assert plan.evidence["importance"] == pytest.approx(expected, rel=1e-4)
    assert plan.removed_blocks() == tuple(sorted(sorted(range(1, 5), key=lambda i: expected[i])[:2]))


def test_sleb_removes_what_a_brute_force_search_removes(tiny_llama: Model) -> None:
    folder, gone = deep(tiny_llama), set[int]()
    order: list[int] = []
    for _ in range(3):
        losses = {i: loss_without(folder, gone | {i}) for i in range(1, 5) if i not in gone}
        order.append(min(losses, key=lambda i: losses[i]))
        gone.add(order[-1])
    ctx = checks.open_context(folder, SLEB(), ids=IDS, ratio=0.5)
    plan = SLEB().plan(ctx)
    assert plan.evidence["order"] == order
    assert min(loss for _, loss in plan.evidence["losses"][-1]) == pytest.approx(loss_without(folder, gone), rel=1e-5)
    said = next(note for note in ctx.notes if "blocks per batch" in note)
    run, plain = (int(word) for word in said.split() if word.isdigit())
    assert run < plain == 4 * 5 + 3 * 4 + 2 * 3


@pytest.mark.parametrize(
    ("given", "gone"), [("1-2,4", (1, 2, 4)), (3, (3,)), ([0, 5], (0, 5)), ("4, 2", (2, 4))], ids=str
)
def test_layers_removes_exactly_what_is_named(given: object, gone: tuple[int, ...], tiny_llama: Model) -> None:
    method = Layers.model_validate({"blocks": given})
    plan = method.plan(checks.open_context(deep(tiny_llama), method))
    assert plan.removed_blocks() == gone
    assert plan.ratio == len(gone) / 6


@pytest.mark.parametrize("given", ["", "2-1", "x", "6", "0-5"])
def test_layers_refuses_what_names_no_blocks_or_all(given: str, tiny_llama: Model) -> None:
    method = Layers(blocks=given)
    with pytest.raises(UsageError):
        method.plan(checks.open_context(deep(tiny_llama), method))
