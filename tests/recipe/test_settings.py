from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunekit.errors import RecipeError, UsageError
from prunekit.recipe import registry, settings
from prunekit.recipe.recipe import leaves
from prunekit.recipe.settings import build, compute, override

WANDA = {"method": "wanda", "ratio": "0.5"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def owl(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator owl with one option, beside the real methods."""
    real = registry.names
    monkeypatch.setattr(registry, "names", lambda kind=None: [*real(kind), *([] if kind == "method" else ["owl"])])
    known = registry.find
    found = SimpleNamespace(name="owl", kind="allocator")
    monkeypatch.setattr(registry, "find", lambda name, kind=None: found if name == "owl" else known(name, kind))
    monkeypatch.setattr(registry, "load", lambda name, kind="method": SimpleNamespace(model_fields={"threshold": 0}))


def test_a_flag_beats_set_beats_a_variable_beats_the_recipe_beats_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, "method: wanda\nratio: 0.1\ncalibration: {samples: 1, seq_len: 11, seed: 21}\nseed: 5")
    environ = {"PRUNEKIT_RATIO": "0.2", "PRUNEKIT_SAMPLES": "2", "PRUNEKIT_SEQ_LEN": "12", "PRUNEKIT_DEVICE": ""}
    recipe, origins = build({"ratio": "0.4"}, ["ratio=0.3", "calibration.samples=3"], environ, file)

    assert (recipe.ratio, origins["ratio"]) == (0.4, "flag")
    assert (recipe.calibration.samples, origins["calibration.samples"]) == (3, "--set")
    assert (recipe.calibration.seq_len, origins["calibration.seq_len"]) == (12, "environment")
    assert (recipe.seed, origins["seed"]) == (5, "recipe")
    assert (recipe.compute.device, origins["compute.device"]) == ("auto", "default")


def test_every_setting_of_fixed_name_has_an_origin() -> None:
    assert set(build(WANDA)[1]) == set(leaves())


def test_every_option_fills_a_setting_that_exists() -> None:
    of_eval = {f"gates.{name}" for name in ("min_acc", "max_acc_drop", "max_kl", "min_speedup")}  # no run measures them
    assert {path for paths in settings.SETTINGS.values() for path in paths} == set(leaves()) - of_eval


def test_the_seed_is_that_of_the_crops_and_of_the_method() -> None:
    recipe, _ = build({**WANDA, "seed": "7"})

    assert (recipe.calibration.seed, recipe.seed) == (7, 7)


def test_what_yaml_1_1_misreads_arrives_as_written(tmp_path: Path) -> None:
    file = written(tmp_path, "method: wanda\npattern: 2:4\nexport: {verify: off}")
    recipe, _ = build(file=file)

    assert (recipe.pattern, recipe.export.verify) == ("2:4", "off")
    assert build({"method": "wanda"}, ["pattern=2:4"])[0].sparsity == 0.5


def test_set_reaches_options_of_the_method_of_the_allocator_and_of_the_recipe() -> None:
    sets = ["variant=true", "options.x=1", "allocator_options.y=a", "calibration.samples=64", "trust_remote_code=true"]
    recipe, origins = build(WANDA, sets)

    assert recipe.options == {"variant": True, "x": 1}
    assert recipe.allocator_options == {"y": "a"}
    assert recipe.calibration.samples == 64
    assert recipe.trust_remote_code
    assert origins["options.variant"] == "--set"


def test_options_of_a_recipe_and_of_set_are_joined(tmp_path: Path) -> None:
    file = written(tmp_path, "method: wanda\nratio: 0.5\noptions: {a: 1, b: 2}\nallocator_options:")

    assert build({}, ["b=3"], {}, file)[0].options == {"a": 1, "b": 3}


@pytest.mark.parametrize("found", ["0", "1", "1.2", "-0.5", "abc", "nan", "true"])
def test_a_ratio_out_of_bounds_is_refused_in_the_words_of_its_place(found: str, tmp_path: Path) -> None:
    expected = f"is {found}; expected a number above 0 and below 1"
    with pytest.raises(UsageError) as caught:
        build({"method": "wanda", "ratio": found})
    assert caught.value.message == f"--ratio {expected}"
    with pytest.raises(UsageError) as caught:
        build({"method": "wanda"}, environ={"PRUNEKIT_RATIO": found})
    assert caught.value.message == f"PRUNEKIT_RATIO {expected}"
    file = written(tmp_path, f"method: wanda\nratio: '{found}'")
    with pytest.raises(RecipeError) as caught:
        build(file=file)
    assert caught.value.message == f"{file}: ratio {expected}"


@pytest.mark.parametrize(
    ("flags", "sets", "said", "hint"),
    [
        ({"ratio": "0.5"}, [], "no method is given", "--method wanda"),
        ({"method": "wanda"}, [], "no ratio is given", "--ratio 0.5"),
        ({"method": "wnda", "ratio": "0.5"}, [], "'wnda'", "did you mean wanda?"),
        ({**WANDA, "allocator": "unifrom"}, [], "no allocator is called 'unifrom'", "did you mean uniform?"),
        ({**WANDA, "pattern": "3:2"}, [], "pattern '3:2'", "2:4"),
        ({**WANDA, "pattern": "1:4"}, [], "ratio 0.5 contradicts pattern 1:4", "0.75"),
        ({**WANDA, "offload": "tape"}, [], "--offload is tape; expected memory or disk", ""),
        ({**WANDA, "samples": "0"}, [], "--samples is 0; expected a whole number of at least 1", ""),
        ({**WANDA, "max_shard_size": "5"}, [], "--max-shard-size is 5; expected a text such as 500MB or 5GB", ""),
        (WANDA, ["variant"], "--set 'variant' is not key=value", "calibration.samples=64"),
        (WANDA, ["=3"], "--set '=3' is not key=value", ""),
        (WANDA, ["calibration=3"], "calibration is a group of settings", "calibration.source"),
        (WANDA, ["calibration.sampels=3"], "no setting 'calibration.sampels'", "did you mean calibration.samples?"),
        (WANDA, ["x=!!python/name:os.system"], "--set x, line 1: the tag", ""),
        (WANDA, ["calibration.samples=[1]"], "--set calibration.samples is [1]; expected", ""),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(
    flags: dict[str, str], sets: list[str], said: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        build(flags, sets)
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("ration: 0.5", "unknown key 'ration'", "did you mean ratio?"),
        ("calibration: {sample: 3}", "unknown key 'calibration.sample'", "did you mean calibration.samples?"),
        ("calibration: 5", "calibration is 5; a mapping was expected", ""),
        ("- method", "a mapping of settings was expected", "recipe init"),
        ("!!python/object:os.system {}", "the tag !!python/object:os.system", "without a tag"),
        ("method: wanda\nmethod: magnitude", "the key method stands twice", ""),
        ("method: 5", "method is 5; expected a text", ""),
        ("method: wanda\noptions: [1]", "options is [1]; a mapping was expected", ""),
    ],
)
def test_a_wrong_recipe_file_is_a_recipe_error_that_names_it(tmp_path: Path, text: str, said: str, hint: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        build(file=file)
    assert caught.value.message.startswith(str(file))
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_recipe_that_cannot_be_read_is_a_recipe_error(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"method: \xff\xfe")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        build(file=binary)
    with pytest.raises(RecipeError, match="No such file"):
        build(file=tmp_path / "absent.yaml")


def test_an_incomplete_recipe_is_allowed_where_it_is_only_looked_at(tmp_path: Path) -> None:
    file = written(tmp_path, "method: wanda")

    assert build(file=file, complete=False)[0].ratio is None


@pytest.mark.usefixtures("owl")
def test_an_allocator_named_as_the_method_allocates_for_wanda() -> None:
    recipe, origins = build({"method": "owl", "ratio": "0.5"}, ["variant=true", "threshold=5"])

    assert (recipe.method, recipe.allocator) == ("wanda", "owl")
    assert (origins["method"], origins["allocator"]) == ("default", "flag")
    assert recipe.options == {"variant": True}
    assert recipe.allocator_options == {"threshold": 5}


@pytest.mark.usefixtures("owl")
def test_an_allocator_named_as_the_method_takes_another_base() -> None:
    recipe, _ = build({"method": "owl", "ratio": "0.5"}, ["base=magnitude"])

    assert (recipe.method, recipe.allocator, recipe.options) == ("magnitude", "owl", {})
    with pytest.raises(UsageError, match="no method is called 'magnitud'"):
        build({"method": "owl", "ratio": "0.5"}, ["base=magnitud"])


@pytest.mark.usefixtures("owl")
def test_two_allocators_contradict_each_other_unless_the_stronger_place_names_one() -> None:
    with pytest.raises(UsageError, match="--method owl is an allocator, and --allocator names another, uniform"):
        build({"method": "owl", "allocator": "uniform", "ratio": "0.5"})
    recipe, _ = build({"method": "owl", "ratio": "0.5"}, environ={"PRUNEKIT_ALLOCATOR": "uniform"})
    assert recipe.allocator == "owl"


RUNS_CODE = "wants to run code that comes with the model"


def test_a_recipe_file_alone_does_not_let_the_models_code_run(tmp_path: Path) -> None:
    file = written(tmp_path, "method: wanda\nratio: 0.5\ntrust_remote_code: true")
    with pytest.raises(UsageError) as caught:
        build(file=file)
    assert caught.value.message == f"the recipe {file} {RUNS_CODE}"
    assert caught.value.hint == "read it, then add --trust-remote-code"
    assert build(file=file, complete=False)[0].trust_remote_code, "it can be looked at"
    assert build({"trust_remote_code": True}, file=file)[0].trust_remote_code
    assert build(sets=["trust_remote_code=true"], file=file)[0].trust_remote_code
    assert build(environ={"PRUNEKIT_TRUST_REMOTE_CODE": "1"}, file=file)[0].trust_remote_code
    assert not build({"trust_remote_code": False}, file=file)[0].trust_remote_code


def test_a_plan_alone_does_not_let_the_models_code_run() -> None:
    carried = {**WANDA, "trust_remote_code": True}
    with pytest.raises(UsageError, match=f"the plan {RUNS_CODE}"):
        override(carried, {"device": "cpu"})
    assert override(carried, {"trust_remote_code": True}).trust_remote_code
    assert not override(carried, {"trust_remote_code": False}).trust_remote_code


def test_a_command_without_a_recipe_has_its_options_checked_in_the_same_words() -> None:
    found = compute(device="cpu", dtype=None, offload="disk")
    assert (found.device, found.dtype, found.offload) == ("cpu", "auto", "disk")
    with pytest.raises(UsageError, match="--dtype is foo; expected auto, float32, bfloat16 or float16"):
        compute(dtype="foo")


def test_the_settings_of_a_plan_can_be_overridden() -> None:
    carried = build({**WANDA, "samples": "7"}, ["variant=true"])[0].model_dump(mode="json")
    recipe = override(carried, {"device": "cpu", "eval_quick": False})

    assert (recipe.compute.device, recipe.evaluation.quick) == ("cpu", False)
    assert (recipe.calibration.samples, recipe.options) == (7, {"variant": True})
    broken: dict[str, Any] = {**carried, "seed": "x"}
    with pytest.raises(RecipeError, match="the plan's seed is x; expected a whole number"):
        override(broken, {})
