"""Runs are compared by what their manifests say, and none that another beats is called the best."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunekit.compare.table import pareto, table_of, varying
from prunekit.depth.actions import RemoveBlock
from prunekit.errors import InputError
from prunekit.evaluate.rows import Count, Rate, Row, Size, Speed
from prunekit.export.manifest import MANIFEST, LinearResult, Manifest, Result, Source
from prunekit.plan import PrunePlan
from prunekit.weights.actions import Sparsify

PATH = "model.layers.0.mlp.up_proj"
QUALITY = {"set": "sample", "protocol": "sparsegpt", "window": 64, "windows": 2, "tokens": 126, "revision": None}


def run(folder: Path, after: Any, *, size: int = 100, blocks: bool = False, **more: Any) -> Path:
    """A folder with a manifest and as many bytes of weights."""
    action: Any = RemoveBlock(block=1) if blocks else Sparsify(linear=PATH, sparsity=0.5)
    method = "shortgpt" if blocks else "wanda"
    recipe = {"method": method, "ratio": 0.5, "options": {}, "allocator": "uniform", "pattern": "unstructured"}
    recipe |= more.pop("recipe", {})
    manifest = Manifest.of(
        source=Source.of(more.pop("source", "sample"), folder, {}),
        recipe=recipe,
        plan=PrunePlan(method=method, ratio=0.5, actions=(action,), recipe=recipe),
        result=Result(
            parameters=size // 2,
            parameters_before=50,
            blocks=2 - blocks,
            weights=100,
            zeros=0 if blocks else 50,
            sparsity=0.0 if blocks else 0.5,
            linears={PATH: LinearResult(weights=100, zeros=50, sparsity=0.5)},
        ),
        perplexity=None if after is None else QUALITY | {"before": 10.0, "after": after} | more.pop("quality", {}),
        **more,
    )
    folder.mkdir()
    manifest.write(folder)
    (folder / "model.safetensors").write_bytes(b"0" * size)
    return folder


def test_a_row_says_what_the_manifest_and_the_files_say(tmp_path: Path) -> None:
    (only,) = table_of({"a": run(tmp_path / "a", 12.0, size=40, blocks=True)}).runs
    assert (only.name, only.source, only.method, only.ratio) == ("a", "sample", "shortgpt", 0.5)
    assert (only.parameters, only.parameters_ratio, only.stored_bytes, only.blocks) == (20, 0.4, 40, 1)
    assert only.perplexity and (only.perplexity.ratio, only.quality, only.speed) == (1.2, 1.2, None)
    assert (only.allocator, only.pattern, only.settings) == (None, None, {})


def test_the_front_holds_what_no_other_run_beats(tmp_path: Path) -> None:
    folders = {
        "small": run(tmp_path / "small", 14.0, size=50, blocks=True),
        "beaten": run(tmp_path / "beaten", 15.0, size=60, blocks=True),
        "good": run(tmp_path / "good", 10.5),
        "broken": run(tmp_path / "broken", "inf", size=10, blocks=True),
        "unknown": run(tmp_path / "unknown", None, size=10, blocks=True),
    }
    found = table_of(folders)
    assert [each.name for each in found.runs if "size" in each.fronts] == ["small", "good"]
    assert not any("speed" in each.fronts for each in found.runs)
    assert found.notes == ("no perplexity is known of unknown",)


def test_a_speed_that_noise_may_explain_puts_no_run_on_the_front(tmp_path: Path) -> None:
    folders = {name: run(tmp_path / name, after) for name, after in {"good": 10.5, "noisy": 10.6, "fast": 12.0}.items()}
    speeds = {"good": (0.97, 0.9, 1.1), "noisy": (1.05, 0.95, 1.2), "fast": (1.4, 1.2, 1.6)}
    found = table_of(folders, {name: timed(name, *speed) for name, speed in speeds.items()}).runs
    assert [each.speed for each in found] == [1.0, 1.0, 1.4]
    assert [each.timing and each.timing.ratio for each in found] == [0.97, 1.05, 1.4]
    assert [each.name for each in found if "speed" in each.fronts] == ["good", "fast"]


def timed(name: str, ratio: float, low: float, high: float) -> Row:
    """A run of which nothing but its speed beside the dense model was measured."""
    rate = Rate(value=100.0, low=90.0, high=110.0, ratio=ratio, ratio_low=low, ratio_high=high)
    speed = Speed(
        prefill=rate, decode=rate, first_token=rate, peak_memory=None, flops_per_token=None, rounds=6, batch_size=1,
        prompt_tokens=8, new_tokens=8, device="cpu", dtype="float32", threads=1, compiled=False,
    )  # fmt: skip
    one = Count(value=1)
    return Row(model=name, baseline=False, size=Size(parameters=one, stored_bytes=one), speed=speed)


def test_equal_points_share_the_front() -> None:
    assert pareto([(1, 2), (1, 2), (2, 1), (2, 2), (None, 0), (0, None)]) == [0, 1, 2]


def test_figures_of_other_texts_or_models_are_called_incomparable(tmp_path: Path) -> None:
    folders = {"a": run(tmp_path / "a", 12.0), "b": run(tmp_path / "b", 9.0, source="org/x", quality={"windows": 9})}
    first, second = table_of(folders).notes
    assert first == "the runs pruned different models: sample, org/x"
    assert "sample, protocol sparsegpt, 2 windows of 64 tokens / sample, protocol sparsegpt, 9 windows" in second


def test_only_settings_that_differ_and_matter_are_shown() -> None:
    one = {"method": "wanda", "seed": 1, "calibration.samples": 8, "options.variant": True}
    two = {"method": "wanda", "seed": 1, "calibration.samples": 9}
    assert varying([one, two]) == ["calibration.samples", "options.variant"]
    assert varying([one, {"method": "trsp", "seed": 2}]) == ["seed"]


def test_settings_of_a_calibration_that_did_not_take_place_do_not_count(tmp_path: Path) -> None:
    calibration = {"source": "sample", "samples": 8}
    folders = {
        "a": run(tmp_path / "a", 12.0, recipe={"calibration": {"samples": 128}}),
        "b": run(tmp_path / "b", 12.0, recipe={"calibration": {"samples": 8}}, calibration=calibration),
    }
    assert [each.settings for each in table_of(folders).runs] == [{}, {}]


def test_a_folder_without_a_manifest_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=MANIFEST):
        table_of({"x": tmp_path})
    assert json.loads(table_of({}).model_dump_json()) == {
        "schema_version": 1,
        "runs": [],
        "baseline": None,
        "notes": [],
    }
