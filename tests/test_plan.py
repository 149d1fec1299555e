import json
from pathlib import Path

import pytest

from prunekit.depth.actions import RemoveBlock
from prunekit.errors import InputError, UsageError
from prunekit.plan import Pattern, PrunePlan
from prunekit.weights.actions import Sparsify

ZEROED = {"kind": "sparsify", "linear": "a", "sparsity": 0.5}
GONE = {"kind": "remove_block", "block": 3}
PLAN = PrunePlan(
    method="wanda",
    ratio=0.5,
    actions=(
        Sparsify(linear="model.layers.0.mlp.up_proj", sparsity=0.5),
        Sparsify(linear="model.layers.0.mlp.down_proj", sparsity=0.5, pattern="2:4"),
    ),
    notes=("a remark",),
    recipe={"method": "wanda", "calibration": {"samples": 8}},
    source={"config.json": "00ff"},
)


@pytest.mark.parametrize(("text", "sparsity"), [("unstructured", None), ("2:4", 0.5), ("1:4", 0.75)])
def test_a_pattern_knows_the_sparsity_it_implies_and_reads_back_as_it_was_written(
    text: str, sparsity: float | None
) -> None:
    pattern = Pattern.parse(text)

    assert pattern.sparsity == sparsity
    assert str(pattern) == text


@pytest.mark.parametrize("text", ["3:2", "4:4", "0:4", "2:", ":4", "2-4", "-2:4", "2:4:8", "", "Unstructured", "2:4\n"])
def test_a_bad_pattern_is_refused_with_the_form_that_was_expected(text: str) -> None:
    with pytest.raises(UsageError, match="N:M with 1 <= N < M") as caught:
        Pattern.parse(text)

    assert repr(text) in caught.value.message
    assert caught.value.exit_code == 2


def test_a_plan_survives_json_unchanged() -> None:
    text = PLAN.to_json()

    assert PrunePlan.from_json(text) == PLAN
    assert PrunePlan.from_json(text).to_json() == text
    assert text.endswith("}\n")


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.to_json(), encoding="utf-8")

    assert PrunePlan.read(tmp_path / "plan.json") == PLAN


def test_a_plan_knows_the_blocks_that_go_and_the_linears_that_lose_weights() -> None:
    plan = PLAN.model_copy(update={"actions": (*PLAN.actions, RemoveBlock(block=5), RemoveBlock(block=2))})

    assert plan.removed_blocks() == (2, 5)
    assert plan.sparsify() == PLAN.sparsify()
    assert PrunePlan.from_json(plan.to_json()) == plan


def test_a_plan_knows_that_it_was_edited() -> None:
    planned = PLAN.model_copy(update={"digest": PLAN.fingerprint()})
    again = PrunePlan.from_json(planned.to_json())
    changed = PrunePlan.from_json(planned.to_json().replace('"sparsity": 0.5', '"sparsity": 0.4', 1))

    assert not again.edited and not PLAN.edited
    assert changed.edited


def test_a_manifest_is_read_as_the_plan_that_it_holds() -> None:
    manifest = json.dumps({"schema_version": 1, "plan": json.loads(PLAN.to_json())})

    assert PrunePlan.from_json(manifest) == PLAN


def test_a_plan_finds_its_action_by_linear() -> None:
    actions = PLAN.sparsify()

    assert list(actions) == ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    assert actions["model.layers.0.mlp.down_proj"].pattern == "2:4"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"ratio": 1.2}, "ratio: Input should be less than 1"),
        ({"ratio": 0}, "ratio: Input should be greater than 0"),
        ({"schema_version": 99}, "schema_version: Input should be 1"),
        ({"actions": [ZEROED | {"sparsity": 1}]}, "actions.0.sparsity: Input should be less than 1"),
        ({"actions": [ZEROED | {"pattern": "3:2"}]}, "actions.0.pattern: pattern '3:2' is not"),
        ({"actions": [ZEROED | {"mask": []}]}, "actions.0.mask: Extra inputs"),
        ({"actions": [ZEROED] * 2}, "a has 2 actions; expected one"),
        ({"actions": [GONE] * 2}, "block 3 has 2 actions; expected one"),
        ({"actions": [GONE | {"block": -1}]}, "actions.0.block: Input should be greater than or equal to 0"),
        ({"actions": [{"kind": "melt"}]}, "actions.0: actions of kind 'melt' come with a plug-in"),
    ],
)
def test_a_plan_with_something_wrong_is_refused_by_the_place(change: dict[str, object], found: str) -> None:
    text = json.dumps(json.loads(PLAN.to_json()) | change)

    with pytest.raises(InputError) as caught:
        PrunePlan.from_json(text, name="p.json")

    assert caught.value.message.startswith("p.json is not a prunekit plan: ")
    assert found in caught.value.message
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_file_that_holds_no_plan_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"plan\.json"):
        PrunePlan.read(path)


def test_a_missing_plan_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file") as caught:
        PrunePlan.read(tmp_path / "absent.json")

    assert caught.value.hint == "prunekit plan MODEL -o plan.json"
