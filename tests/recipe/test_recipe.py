from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, Field, ValidationError

from prunekit.contract import Context, Method, Needs
from prunekit.errors import UsageError
from prunekit.plan import PrunePlan
from prunekit.recipe import recipe as recipes
from prunekit.recipe import registry
from prunekit.recipe.meaning import refuse_idle
from prunekit.recipe.options import OPTIONS
from prunekit.recipe.recipe import Recipe, leaves, value_at


class Lottery(Method):
    """Draw the weights to remove."""

    name: ClassVar[str] = "lottery"
    paper: ClassVar[str] = "none"
    needs: ClassVar[Needs] = Needs(budget=True)

    tickets: int = Field(default=4, ge=1, description="Number of draws.")

    def plan(self, ctx: Context) -> PrunePlan:
        raise NotImplementedError

    def apply(self, ctx: Context, plan: PrunePlan) -> None:
        raise NotImplementedError


@pytest.fixture
def lottery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda name, kind="method": Lottery)


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(method="wanda", ratio=0.3, options={"variant": True})

    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_recipe_is_fixed_and_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(method="wanda").seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Recipe.model_validate({"method": "wanda", "ration": 0.5})


@pytest.mark.parametrize(
    ("settings", "sparsity"),
    [
        ({"ratio": 0.3}, 0.3),
        ({"pattern": "2:4"}, 0.5),
        ({"pattern": "1:4"}, 0.75),
        ({"pattern": "2:4", "ratio": 0.5}, 0.5),
    ],
)
def test_the_sparsity_is_the_ratio_or_what_the_pattern_implies(settings: dict[str, Any], sparsity: float) -> None:
    assert Recipe(method="wanda", **settings).sparsity == sparsity


def test_a_ratio_that_contradicts_the_pattern_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ratio 0\.6 contradicts pattern 2:4, which zeroes 0\.5") as caught:
        Recipe(method="wanda", ratio=0.6, pattern="2:4")
    assert "0.5" in str(caught.value.hint)


def test_no_ratio_and_no_pattern_is_refused_with_an_example() -> None:
    with pytest.raises(UsageError, match="no ratio is given") as caught:
        _ = Recipe(method="wanda").sparsity
    assert "--ratio 0.5" in str(caught.value.hint)


def test_an_impossible_pattern_is_refused() -> None:
    with pytest.raises(UsageError, match="pattern '3:2'"):
        Recipe(method="wanda", pattern="3:2")


def test_every_setting_has_a_path_and_a_sentence() -> None:
    recipe = Recipe(method="wanda")

    assert {"ratio", "calibration.samples", "export.verify"} <= set(leaves())
    assert not {"options", "calibration"} & set(leaves())
    assert value_at(recipe, "calibration.samples") == 128
    for path in leaves():
        value_at(recipe, path)
    for group in (Recipe, *(type(value) for value in vars(recipe).values() if isinstance(value, BaseModel))):
        for name, field in group.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert nested or (field.description or "").endswith("."), name


def test_the_protocols_of_a_recipe_are_those_that_can_be_measured() -> None:
    from prunekit.evaluate.perplexity import PROTOCOLS
    from prunekit.recipe.fields import fields

    accepted = {field.name: field.accepts for field in fields(recipes.EvaluationRecipe)}["protocol"]
    assert set(accepted.replace(" or ", ", ").split(", ")) == set(PROTOCOLS)


@pytest.mark.usefixtures("lottery")
def test_options_become_the_method() -> None:
    method = recipes.method(Recipe(method="lottery", options={"tickets": "7"}))

    assert isinstance(method, Lottery)
    assert method.tickets == 7


@pytest.mark.usefixtures("lottery")
@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        (
            {"tickets": 0},
            "lottery: option tickets is 0; expected a whole number of at least 1",
            "prunekit methods lottery",
        ),
        ({"ticket": 3}, "lottery has no option 'ticket'", "did you mean tickets?"),
        ({"sampels": 3}, "lottery has no option 'sampels'", "did you mean calibration.samples?"),
        ({"zzz": 3}, "lottery has no option 'zzz'", "prunekit methods lottery"),
    ],
)
def test_an_option_that_does_not_fit_is_named(options: dict[str, Any], said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipes.method(Recipe(method="lottery", options=options))
    assert (caught.value.message, caught.value.hint) == (said, hint)


def test_an_allocator_is_refused_for_a_method_that_takes_no_budget() -> None:
    with pytest.raises(UsageError, match="takes no budget"):
        refuse_idle(Recipe(method="shortgpt", allocator="owl"), Needs())
    refuse_idle(Recipe(method="shortgpt"), Needs())
    refuse_idle(Recipe(method="wanda", allocator="owl"), Needs(budget=True))


def test_the_choices_and_defaults_of_the_command_line_are_those_of_the_recipe() -> None:
    schema = Recipe.model_json_schema()
    for name, option in OPTIONS.items():
        for path in option.paths:
            field: Any = schema
            for part in path.split("."):
                parent = field if "properties" in field else schema["$defs"][field["$ref"].rpartition("/")[2]]
                field = parent["properties"][part]
            if "enum" in field:
                assert tuple(option.choices) == tuple(field["enum"]), name
            elif option.choices:
                assert field.get("type") == "string" or {"type": "string"} in field["anyOf"], name
