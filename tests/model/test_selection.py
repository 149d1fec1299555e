"""Patterns that say which linears a method touches."""

import pytest

from prunekit.errors import UsageError
from prunekit.model.selection import Selection

INSIDE = ("self_attn.q_proj", "mlp.up_proj", "mlp.gate")
PATHS = [f"model.layers.{block}.{name}" for block in (0, 10) for name in INSIDE]


@pytest.mark.parametrize(
    ("targets", "ignore", "chosen"),
    [
        ((), (), PATHS),
        (("q_proj",), (), [PATHS[0], PATHS[3]]),
        (("mlp.*",), (), [PATHS[1], PATHS[2], PATHS[4], PATHS[5]]),
        (("model.layers.0.*",), (), PATHS[:3]),
        ((), ("*gate",), [PATHS[0], PATHS[1], PATHS[3], PATHS[4]]),
        (("mlp.*",), ("re:.*\\.10\\.",), PATHS[1:3]),
        (("re:model\\.layers\\.0\\.mlp", "q_proj"), (), [*PATHS[:4]]),
        (("re:up_proj",), (), []),  # a regular expression begins where the path begins
    ],
)
def test_targets_choose_and_ignore_takes_away(targets: tuple[str, ...], ignore: tuple[str, ...], chosen: list) -> None:
    selection = Selection(targets, ignore)
    assert [path for path in PATHS if path in selection] == chosen


@pytest.mark.parametrize(
    ("targets", "ignore", "words"),
    [
        (("k_proj",), (), "'k_proj' matches no linear"),
        (("mlp.*",), ("mlp.*",), "leave no linear"),
    ],
)
def test_a_pattern_without_a_linear_and_a_selection_of_none_are_refused(
    targets: tuple[str, ...], ignore: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Selection(targets, ignore).check(PATHS)
    assert caught.value.hint == f"a path looks like {PATHS[0]}"


def test_a_regular_expression_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a regular expression"):
        Selection(("re:(",))
