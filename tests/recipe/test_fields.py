from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prunekit.recipe.fields import fault, fields, nearest, shorten


class Inner(BaseModel):
    count: int = Field(1, ge=1, description="How many.")


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    share: float | None = Field(None, gt=0, lt=1, description="How much.")
    size: int = Field(8, ge=1, le=64)
    place: Literal["memory", "disk"] = "memory"
    quick: bool = True
    inner: Inner = Inner()
    shard: str = Field("5GB", pattern=r"^\d+GB$", examples=["5GB"])
    even: int = 2

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("is odd")
        return value


def test_fields_are_put_into_words() -> None:
    words = {field.name: field.accepts for field in fields(Options)}

    assert words["share"] == "a number above 0 and below 1"
    assert words["size"] == "a whole number from 1 to 64"
    assert words["place"] == "memory or disk"
    assert words["quick"] == "true or false"
    assert words["shard"] == "a text such as 5GB"
    assert fields(Inner)[0].accepts == "a whole number of at least 1"
    assert fields(Inner)[0].description == "How many."


@pytest.mark.parametrize(
    ("values", "path", "said"),
    [
        ({"share": "abc"}, "share", "is abc; expected a number above 0 and below 1"),
        ({"size": 65}, "size", "is 65; expected a whole number from 1 to 64"),
        ({"place": "tape"}, "place", "is tape; expected memory or disk"),
        ({"inner": {"count": 0}}, "inner.count", "is 0; expected a whole number of at least 1"),
        ({"even": 3}, "even", "is odd"),
        ({"extra": 3}, "extra", "is 3; expected"),
    ],
)
def test_a_fault_says_what_was_found_and_what_was_expected(values: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Options.model_validate(values)

    where, problem = fault(Options, caught.value)
    assert where == path
    assert problem.startswith(said)


def test_values_are_shortened_and_quoted_where_they_would_be_misread() -> None:
    assert shorten("abc") == "abc"
    assert shorten("") == "''"
    assert shorten(" a") == "' a'"
    assert shorten("x" * 100) == "x" * 40 + "…"


def test_the_nearest_name_is_found_and_none_when_nothing_is_near() -> None:
    assert nearest("sampels", ["samples", "seed"]) == "samples"
    assert nearest("quux", ["samples", "seed"]) is None
