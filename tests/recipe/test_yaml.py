from typing import Any

import pytest

from prunekit.errors import RecipeError
from prunekit.recipe.yaml import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),  # 124 in YAML 1.1
        ("off", "off"),  # False in YAML 1.1
        ("1e-3", 0.001),  # a text in YAML 1.1
        ("0.5", 0.5),
        ("'0.5'", "0.5"),
        ("012", 12),
        ("true", True),
        ("null", None),
        ("", None),
        (".inf", float("inf")),
        ("2024-01-01", "2024-01-01"),
        ("{a: [1, b]}", {"a": [1, "b"]}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse(text, name="r.yaml") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "method: wanda\nmodel: !!python/object/apply:os.system [ls]",
            "line 2: the tag !!python/object/apply:os.system",
        ),
        ("a: 1\na: 2", "line 2: the key a stands twice"),
        ("&a [*a]", "refers to what it stands in"),
        ("a: [", "line 1"),
        ("a: *missing", "undefined alias"),
        ("? [1]\n: 2", "a name was expected"),
        ("--- 1\n--- 2", "another document"),
        ("a: \x00", "r.yaml is not YAML"),
        ("[" * 60, "line 1: nested too deeply"),
        ("[" * 100_000, "line 1: nested too deeply"),
    ],
)
def test_anything_but_plain_data_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, name="r.yaml")
    assert said in caught.value.message
    assert caught.value.message.startswith("r.yaml")


def test_aliases_that_would_multiply_without_end_cost_nothing() -> None:
    levels = [
        f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]" for below, name in zip("abcdefg", "bcdefgh", strict=True)
    ]
    parse("\n".join(["a: &a [x, x]", *levels]), name="r.yaml")
