"""Every installed plug-in keeps the contract of `prunekit.contract`; a new one is tested here without a new line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prunekit import testing as checks
from prunekit.contract import Method
from prunekit.recipe import registry

pytestmark = pytest.mark.slow

METHODS, ALLOCATORS = registry.names("method"), registry.names("allocator")
OPTIONS = {  # what a plug-in cannot do without, or is too slow without
    "layers": {"blocks": "1"},
    "measured": {"rounds": 1, "samples": 2},
    "trsp": {"gate_steps": 3, "epochs": 2, "batch": 2, "hold_out": 0.3},
}
Model = Callable[..., Path]


def made(name: str) -> Method:
    """A method as the tests use it."""
    return registry.load(name).model_validate(OPTIONS.get(name, {}))


each_method = pytest.mark.parametrize("name", METHODS)
each_allocator = pytest.mark.parametrize("name", ALLOCATORS)


def test_the_methods_and_allocators_that_come_with_prunekit_are_registered() -> None:
    assert {"magnitude", "wanda", "sparsegpt", "layers", "shortgpt", "sleb", "trsp"} <= set(METHODS)
    assert "uniform" in ALLOCATORS


@each_method
def test_a_method_says_its_name_its_idea_and_its_paper(name: str) -> None:
    checks.check_describes_itself(name, registry.load(name))


@each_allocator
def test_an_allocator_says_its_name_its_idea_and_its_paper(name: str) -> None:
    checks.check_describes_itself(name, registry.load(name, "allocator"))


@each_method
def test_every_option_of_a_method_has_a_default_and_a_sentence(name: str) -> None:
    checks.check_options_explain_themselves(registry.load(name))


@each_allocator
def test_every_option_of_an_allocator_has_a_default_and_a_sentence(name: str) -> None:
    checks.check_options_explain_themselves(registry.load(name, "allocator"))


@each_method
def test_plan_leaves_every_weight_byte_identical_and_survives_json(
    name: str, tiny_llama: Model, tmp_path: Path
) -> None:
    plan = checks.check_plan_only_reads(made(name), tiny_llama(), tmp_path / "work")
    checks.check_plan_survives_json(plan)


@each_method
def test_the_same_settings_give_the_same_plan(name: str, tiny_llama: Model) -> None:
    checks.check_plan_is_repeatable(made(name), tiny_llama())


@each_method
def test_a_reloaded_plan_gives_the_same_bytes(name: str, tiny_llama: Model, tmp_path: Path) -> None:
    checks.check_reloaded_plan_gives_the_same_bytes(made(name), tiny_llama(), tmp_path / "work")


@each_method
def test_a_weight_method_changes_the_planned_linears_and_nothing_else(
    name: str, tiny_llama: Model, tmp_path: Path
) -> None:
    checks.check_only_linears_change(made(name), tiny_llama(), tmp_path / "work")


@each_method
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_export_of_a_method_loads_by_plain_from_pretrained(
    name: str, dtype: str, tiny_llama: Model, tmp_path: Path
) -> None:
    checks.check_export_loads(made(name), tiny_llama(dtype=dtype), tmp_path / "work")


@each_allocator
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7])
def test_a_budget_covers_all_linears_and_meets_the_mean(name: str, ratio: float, tiny_llama: Model) -> None:
    allocator = registry.load(name, "allocator").model_validate(OPTIONS.get(name, {}))
    checks.check_allocates(allocator, tiny_llama(), ratio)


def test_the_checks_fail_for_a_method_that_breaks_the_contract(tiny_llama: Model, tmp_path: Path) -> None:
    from prunekit.contract import Context
    from prunekit.plan import PrunePlan
    from prunekit_methods.magnitude import Magnitude

    class Hasty(Magnitude):
        def plan(self, ctx: Context) -> PrunePlan:
            plan = super().plan(ctx)
            self.apply(ctx, plan)
            return plan

    with pytest.raises(AssertionError):
        checks.check_plan_only_reads(Hasty(), tiny_llama(), tmp_path / "work")
    with pytest.raises(AssertionError, match="registered as hasty"):
        checks.check_describes_itself("hasty", Hasty)
